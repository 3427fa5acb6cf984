"""From a registered model to the one that serves: the test, the report, the change, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qiance.artifacts.effect import KIND as EFFECT
from qiance.artifacts.effect import EffectModel
from qiance.artifacts.response import KIND as RESPONSE
from qiance.artifacts.response import ResponseModel
from qiance.cli.loop.people import learnable
from qiance.evaluate.promotion import PromotionRule, PromotionTest
from qiance.features.columns import EFFECT_SCHEMA
from qiance.ledger import Ledger
from qiance.settings import Settings
from qiance.workspace import Workspace, write_json

SERVED = "effect"  # the name whose champion the service follows


@dataclass(frozen=True)
class Contest:
    """A challenger before the champion's place. champion: None where there is none yet.

    notes: sentences on what could not be audited.
    """

    champion: Any
    challenger: Any
    test: PromotionTest
    report: Path
    notes: tuple[str, ...] = ()


def contest(
    workspace: Workspace,
    settings: Settings,
    ledger: Ledger,
    champion: Any,
    challenger: Any,
    log: Callable[[], Any] | None = None,
) -> Contest:
    """Test a registered challenger, and write the report with the audit by protected group.

    champion: registered, or None for the first model, which has to be fair but not better than another.
    log: reads the response log that response models are compared on. Raises ValueError where they cannot be
    compared, ArtifactError where one cannot be loaded.
    """
    rivals = [one for one in (champion, challenger) if one is not None]
    if len({one.kind for one in rivals}) > 1:
        raise ValueError(
            f"model {challenger.name!r}: {champion.kind} cannot be compared with {challenger.kind}"
        )
    compare = {EFFECT: _effects, RESPONSE: _responses}.get(challenger.kind)
    if compare is None:
        raise ValueError(f"model {challenger.name!r}: models of kind {challenger.kind!r} cannot be compared")
    found = compare(workspace, settings, ledger, rivals, log)
    test = found.test
    if champion is None:
        reason = (
            "; ".join(f"unfair: {text}" for text in test.unfair) or "the first model: nothing to compare with"
        )
        test = PromotionTest(not test.unfair, reason, test.rows, test.units, test.confidence, (), test.unfair)
    report = _report(workspace, champion, challenger, test, found)
    return Contest(champion, challenger, test, report, found.notes)


def crown(
    workspace: Workspace,
    ledger: Ledger,
    found: Any,
    *,
    by: str,
    reason: str,
    action: Literal["promote", "rollback"] = "promote",
    override: bool = False,
) -> None:
    """Make `found` the champion; a running service changes to it within a second.

    The ledger first: if the registry cannot be written then, the same command again puts it right.
    """
    from training.registry import make_champion

    if found.name == SERVED:
        served = workspace.artifact(EFFECT, found.artifact_version)
        if served.resolve() != found.path.resolve():
            raise ValueError(f"model {found.name!r}: is in {found.path}, and the service loads {served}")
        EffectModel.load(served, EFFECT_SCHEMA)  # what cannot be loaded must not be called live
        ledger.set_versions(model=found.artifact_version, by=by)
    uri = workspace.tracking_url
    make_champion(uri, found, by=by, reason=reason, action=action, override=override)


def check_registration(name: str, folder: Path) -> None:
    """Before an hour is spent on training: ValueError where a response model could not be registered."""
    if name == SERVED:
        raise ValueError(
            f"--register: {name!r} is the name of the model that the service follows; give another"
        )
    if not folder.is_dir():
        raise ValueError(
            f"--workspace: {folder} does not exist; pass the folder whose registry takes the model"
        )


def register_response(trained: Any, name: str, folder: Path) -> str:
    """Register what `qiance train effect` trained as challenger `name`; the registry's number."""
    from training.registry import register

    check_registration(name, folder)
    manifest = trained.artifact.manifest
    return register(
        trained.artifact,
        Workspace(folder.resolve()).tracking_url,
        name,
        metrics=manifest.metrics,
        params={key: trained.metrics[key] for key in ("label", "rows", "units", "calibrated_by")},
        split=f"nothing of the data {manifest.data_fingerprint}",
    )


def _rule(settings: Settings) -> PromotionRule:
    chosen = settings.promotion
    return PromotionRule(chosen.log_loss_margin, chosen.ece_margin, chosen.confidence, seed=settings.seed)


def _thresholds(settings: Settings) -> Any:
    from training.response.fairness import Thresholds

    chosen = settings.promotion
    return Thresholds(chosen.max_gap, chosen.max_exposure_gap, chosen.max_depth_gap)


def _effects(workspace: Workspace, settings: Settings, ledger: Ledger, rivals: list[Any], _log: Any) -> Any:
    from training.promotion import check_split, check_unseen, compare_effects, read_held_out

    table, split = read_held_out(workspace.held_out / f"{rivals[-1].name}.parquet")
    check_split(split, rivals)
    table = learnable(ledger, table, settings.privacy.unrecorded)
    models = [EffectModel.load(one.path) for one in rivals]
    check_unseen(settings.promotion.protected, models[-1].schema.names)
    protected, notes = _attributes(workspace, table, settings.promotion.protected)
    found = compare_effects(models[0], models[-1], table, _rule(settings), protected, _thresholds(settings))
    return replace(found, notes=notes)


def _responses(
    _workspace: Workspace, settings: Settings, _ledger: Ledger, rivals: list[Any], log: Any
) -> Any:
    from training.promotion import compare_responses

    if log is None:
        raise ValueError(
            f"model {rivals[-1].name!r}: give a log that no rival was trained on, with --data and --mapping"
        )
    models = [ResponseModel.load(one.path) for one in rivals]
    chosen = settings.promotion
    return compare_responses(
        models[0],
        models[-1],
        log(),
        _rule(settings),
        chosen.protected,
        _thresholds(settings),
        chosen.depth_feature,
    )


def _attributes(
    workspace: Workspace, table: pa.Table, names: tuple[str, ...]
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """`[n]` values of the users' protected attributes, and a sentence for each that they do not have.

    The list is that of response logs too, whose attributes may be others; a list of which users have none is
    a mistake.
    """
    if not names:
        return {}, ()
    users = pq.read_table(workspace.data / "users.parquet")
    known = [name for name in users.column_names if name != "user_id"]
    there = [name for name in names if name in known]
    if not there:
        raise ValueError(f"promotion.protected: {names[0]!r} is not among the users' {', '.join(known)}")
    row = pc.index_in(table["user_id"], value_set=users["user_id"].combine_chunks())
    values = {name: np.asarray(users[name].take(row).to_pylist(), dtype=object) for name in there}
    missing = (name for name in names if name not in there)
    return values, tuple(f"not audited by {name!r}: users have {', '.join(known)}" for name in missing)


def _report(workspace: Workspace, champion: Any, challenger: Any, test: PromotionTest, found: Any) -> Path:
    path = workspace.root / "promotion" / f"{challenger.name}-{challenger.version}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "model": challenger.name,
        "champion": None if champion is None else champion.artifact_version,
        "challenger": challenger.artifact_version,
        "test": asdict(test),
        "fairness": {name: asdict(audit) for name, audit in found.audits.items()},
        "notes": list(found.notes),
    }
    write_json(path, document)
    return path


def note(workspace: Workspace, found: Contest) -> None:
    """Keep the verdict with the challenger in the registry."""
    from training.registry import TEST_TAG, tag_version

    text = json.dumps({"passed": found.test.passed, "reason": found.test.reason[:4_000]}, ensure_ascii=False)
    tag_version(workspace.tracking_url, found.challenger, TEST_TAG, text)
