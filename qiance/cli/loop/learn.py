"""Train the effect model on logged decisions, beside the baselines; register what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from qiance.artifacts.effect import EffectModel
from qiance.cli.contest import SERVED, contest, crown, note
from qiance.cli.loop.world import World
from qiance.cli.stages import Stage
from qiance.evaluate.promotion import PromotionTest
from qiance.features.columns import EFFECT_SCHEMA
from qiance.ledger import Ledger
from qiance.market.market import ActionTable
from qiance.market.simulate import MarketLog
from qiance.settings import Settings
from qiance.workspace import Workspace

LABELS = ("click", "conversion", "sales", "margin")


@dataclass(frozen=True)
class Learned:
    """A trained model with its scores beside the baselines'.

    registered: its number in the registry. segments: its calibration by segment. promotion: how it was tested
    before it could serve.
    """

    version: str
    model: EffectModel
    metrics: Mapping[str, float]
    scores: Mapping[str, Sequence[Any]]
    rows: int
    parents: tuple[str, ...]
    registered: str
    segments: Sequence[Any] = ()
    promotion: PromotionTest | None = None


def log_table(workspace: Workspace, world: World, actions: ActionTable, log: MarketLog) -> pa.Table:
    """Training rows of a simulated log."""
    from training.dataset import training_table

    ids = np.array(world.snapshot.users.user_ids, dtype=object)
    return training_table(
        workspace.features,
        world.snapshot.catalogue,
        actions.actions,
        ids[log.user].tolist(),
        log.action,
        log.at,
        log.contacts_7d,
        {"click": log.click, "conversion": log.conversion, "sales": log.sales, "margin": log.margin},
        world.words,
    )


def learn(
    workspace: Workspace,
    table: pa.Table,
    settings: Settings,
    stage: Stage,
    parents: tuple[str, ...] = (),
    baselines: bool = True,
) -> Learned:
    """Train, compare on held-out users, register as challenger; `parents` are the models this one follows."""
    from training.effect.baselines import compare
    from training.effect.fit import TrainSettings, train_effect
    from training.effect.split import split_by_unit
    from training.promotion import split_name, write_held_out
    from training.registry import register

    split = split_by_unit(table["user_id"].to_numpy(zero_copy_only=False), settings.seed)
    chosen = TrainSettings(**settings.training.model_dump(), seed=settings.seed)
    trained = train_effect(
        table,
        EFFECT_SCHEMA,
        labels=LABELS,
        split=split,
        settings=chosen,
        out=workspace.artifacts,
        storage=workspace.root / "training",
        data_fingerprint=fingerprint(table),
        parents=parents,
        progress=lambda done, what: stage.tell(0.8 * done, what),
        units=table["user_id"].to_numpy(zero_copy_only=False),
    )
    model = EffectModel.load(trained.artifact.path, EFFECT_SCHEMA)
    scores = {}
    for label in ("click", "conversion", "sales") if baselines else ():
        stage.tell(0.85, f"baselines for {label}")
        scores[label] = compare(table, EFFECT_SCHEMA, label, split, model)
    name = split_name(settings.seed)
    write_held_out(workspace.held_out / f"{SERVED}.parquet", table.filter(pa.array(split.test)), name)
    number = register(
        trained.artifact,
        workspace.tracking_url,
        SERVED,
        metrics=trained.metrics,
        params=settings.training.model_dump(mode="json"),
        history=trained.history,
        split=name,
    )
    stage.note(
        f"model {trained.artifact.version}: {table.num_rows:,} rows, conversion AUC "
        f"{trained.metrics['conversion_auc']:.3f}, normalised entropy {trained.metrics['conversion_ne']:.3f}"
    )
    if not model.encoder.reads_vectors:
        stage.note("it reads words by their surface only: they have no vectors, or text_components is 0")
    if model.info.width.doubt is not None:
        stage.note(model.info.width.doubt)
    return Learned(
        trained.artifact.version,
        model,
        trained.metrics,
        scores,
        table.num_rows,
        parents,
        number,
        trained.segments,
    )


def promote(
    workspace: Workspace, learned: Learned, ledger: Ledger, settings: Settings, by: str, stage: Stage
) -> Learned:
    """Let the model serve if it is not worse than the champion on rows that neither was trained on.

    The first model of a workspace has nothing to be compared with, but must be fair to protected groups;
    ValueError where it is not.
    """
    from training.registry import current, find

    champion = current(workspace.tracking_url, SERVED)
    challenger = find(workspace.tracking_url, SERVED, learned.registered)
    try:
        found = contest(workspace, settings, ledger, champion, challenger)
    except ValueError as error:
        if champion is None:
            raise
        # The champion was trained in another way, say: what serves goes on, and what was trained is kept.
        stage.note(f"model {learned.version} stays challenger: {error}")
        untested = PromotionTest(False, str(error), 0, 0, settings.promotion.confidence, ())
        return replace(learned, promotion=untested)
    note(workspace, found)
    for sentence in found.notes:
        stage.note(sentence)
    if found.test.passed:
        crown(workspace, ledger, found.challenger, by=by, reason=found.test.reason)
    elif champion is None:
        raise ValueError(f"model {learned.version}: {found.test.reason}; see {found.report}")
    verdict = "is promoted" if found.test.passed else "stays challenger"
    stage.note(f"model {learned.version} {verdict}: {found.test.reason}")
    return replace(learned, promotion=found.test)


def fingerprint(table: pa.Table) -> str:
    """SHA-256 over the content of `table`."""
    digest = hashlib.sha256()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()


def redemption_table(prepared: Any, workspace: Workspace) -> tuple[pa.Table, Any]:
    """The shop's real campaign log as training rows: user features at contact, whether a coupon was used.

    Contact was targeted, so nothing here is an effect of the campaign; it shows how well responders are
    told apart on real labels.
    """
    import pandas as pd

    from qiance.features.schema import FeatureSchema
    from qiance.features.transforms import USER_FEATURES
    from training.featurise import point_in_time_one

    contacts = prepared.contacts
    rows = pd.DataFrame(
        {
            "user_id": contacts["user_id"].to_numpy(zero_copy_only=False),
            "event_timestamp": contacts["contacted_at"].to_pandas(),
        }
    )
    joined = point_in_time_one(workspace.features, rows, "user_v1", ("user_id",))
    columns: dict[str, Any] = {name: pa.array(joined[name].to_numpy()) for name in USER_FEATURES}
    columns["n_coupons"] = pa.array(contacts["n_coupons"].to_numpy().astype(np.float64))
    columns["campaign_kind"] = contacts["campaign_kind"]
    columns["conversion"] = contacts["conversion"].cast(pa.int64())
    columns["sales"] = contacts["sales"].cast(pa.int64())
    columns["user_id"] = contacts["user_id"]
    schema = FeatureSchema("redemption_v1", (*USER_FEATURES, "n_coupons"), ("campaign_kind",))
    return pa.table(columns), schema


def learn_redemption(workspace: Workspace, prepared: Any, settings: Settings, stage: Stage) -> Any:
    """The same network and the baselines on real redemptions, split by household."""
    from training.effect.baselines import compare
    from training.effect.fit import TrainSettings, train_effect
    from training.effect.split import split_by_unit

    table, schema = redemption_table(prepared, workspace)
    users = table["user_id"].to_numpy(zero_copy_only=False)
    split = split_by_unit(users, settings.seed)
    trained = train_effect(
        table,
        schema,
        labels=("conversion",),
        split=split,
        # In this process: starting Ray Train takes longer than training on a few thousand rows.
        settings=TrainSettings(**(settings.training.model_dump() | {"workers": 0}), seed=settings.seed),
        out=workspace.artifacts,
        storage=workspace.root / "training",
        data_fingerprint=fingerprint(table),
        progress=lambda done, what: stage.tell(0.9 * done, what),
        units=users,
    )
    model = EffectModel.load(trained.artifact.path, schema)
    return compare(table, schema, "conversion", split, model)
