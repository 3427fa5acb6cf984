"""A challenger against the champion, on rows that neither was trained on.

The loop's models split users by a hash of their id, which stays when rows are added: the test rows of one
training are test rows of the next. They are kept beside the models, so that any two can be compared later.
Response models are trained on all rows of their file, and are compared on another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qiance.artifacts.effect import EffectModel
from qiance.artifacts.response import ResponseModel
from qiance.data.responses import ResponseTable
from qiance.evaluate.promotion import PromotionRule, PromotionTest, Rivals, promotion_test
from training.registry import SPLIT_TAG, Registered
from training.response.fairness import Fairness, Thresholds, audit
from training.response.rows import response_rows

OUTCOMES = ("click", "conversion")
DEPTH = "depth"  # of the offer, in the rows of an effect model

Protected = Mapping[str, NDArray[Any]]


def split_name(seed: int) -> str:
    """How `split_by_unit` told which users test a model: two models with equal names held out the same."""
    return f"users by hash, seed {seed}"


def write_held_out(path: Path, table: pa.Table, split: str) -> None:
    """Keep the test rows of a training: features, labels and user_id; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.part")
    pq.write_table(table.replace_schema_metadata({SPLIT_TAG: split}), staging)
    staging.replace(path)


def read_held_out(path: Path) -> tuple[pa.Table, str]:
    """What `write_held_out` kept, and the name of the split. Raises ValueError where there is nothing."""
    if not path.exists():
        raise ValueError(
            f"{path}: no held-out rows are kept here, so models cannot be compared; train again, or promote "
            "with --override-by NAME --reason TEXT"
        )
    table = pq.read_table(path)
    return table, (table.schema.metadata or {}).get(SPLIT_TAG.encode(), b"").decode()


def check_split(split: str, rivals: Sequence[Registered]) -> None:
    """Refuse rows that one of the models may have been trained on."""
    for one in rivals:
        if one.tags.get(SPLIT_TAG, "") != split:
            noted = one.tags.get(SPLIT_TAG) or "rows that were not noted"
            raise ValueError(
                f"model {one.name!r} version {one.version}: its training held out {noted}, and the rows at "
                f"hand are {split!r}: it may have been trained on them; train it with the same seed, or "
                "promote with --override-by NAME --reason TEXT"
            )


@dataclass(frozen=True)
class Compared:
    """The test, the challenger's audit by outcome, and sentences on what could not be audited."""

    test: PromotionTest
    audits: Mapping[str, Fairness]
    notes: tuple[str, ...] = ()


def compare_effects(
    champion: EffectModel,
    challenger: EffectModel,
    table: pa.Table,
    rule: PromotionRule,
    protected: Protected | None = None,
    thresholds: Thresholds | None = None,
) -> Compared:
    """The test for two effect models, and the challenger's audit by outcome.

    table: features, labels and user_id of held-out rows, and `depth` of the offers. protected: attribute →
    `[n]` values; ValueError where the challenger sees one.
    """
    check_unseen(tuple(protected or {}), challenger.schema.names)
    outcomes = dict[str, Rivals]()
    draws = [model.predict(model.schema.columns(table)) for model in (champion, challenger)]
    for task in OUTCOMES:
        if task in champion.tasks and task in challenger.tasks and task in table.column_names:
            y = _floats(table, task)
            own = [getattr(one, task).mean(axis=1, dtype=np.float64) for one in draws]
            outcomes[task] = Rivals(y, *(np.clip(p, 0.0, 1.0) for p in own))
    depth = _floats(table, DEPTH) if DEPTH in table.column_names else None
    units = table["user_id"].to_numpy(zero_copy_only=False)
    audits = _audits(outcomes, units, protected or {}, thresholds, depth, rule.seed)
    return Compared(promotion_test(outcomes, units, rule, _unfair(audits)), audits)


def compare_responses(
    champion: ResponseModel,
    challenger: ResponseModel,
    responses: ResponseTable,
    rule: PromotionRule,
    protected: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    depth: str | None = None,
) -> Compared:
    """The test for two response models on a file that neither was trained on.

    protected: attributes that the challenger must not see, and is audited by where the log has them; depth:
    the log's feature with the depth of offers. ValueError where the challenger sees a protected one.
    """
    label = challenger.info.label
    if champion.info.label != label:
        raise ValueError(f"label: the champion predicts {champion.info.label}, the challenger {label}")
    check_unseen(protected, challenger.schema.names)
    for model in (champion, challenger):
        if model.artifact.manifest.data_fingerprint == responses.fingerprint:
            raise ValueError(
                f"--data: {responses.name} is what model {model.version} was trained on; give a later log"
            )
    there = [name for name in protected if name in responses.features]
    missing = [name for name in protected if name not in there]
    if depth is not None and depth not in responses.features:
        missing, depth = [*missing, depth], None
    rows = response_rows(responses, label, None, there, depth)
    own = [
        model.predict(model.schema.columns(responses.table)).mean(axis=1) for model in (champion, challenger)
    ]
    outcomes = {label: Rivals(rows.target, *own)}
    audits = _audits(outcomes, rows.units, rows.protected, thresholds, rows.depth, rule.seed)
    notes = [f"not audited by {name!r}: {responses.name} has no such feature" for name in missing]
    if there and depth is None and thresholds is not None and thresholds.max_depth_gap is not None:
        notes.append("offer depth is not audited: name its feature in promotion.depth_feature")
    return Compared(promotion_test(outcomes, rows.units, rule, _unfair(audits)), audits, tuple(notes))


def check_unseen(protected: Sequence[str], features: Sequence[str]) -> None:
    """Refuse a model that sees what it must not."""
    for name in protected:
        if name in features:
            raise ValueError(
                f"promotion.protected: {name!r} is a feature that the model sees; train one that does not"
            )


def _audits(
    outcomes: Mapping[str, Rivals],
    units: NDArray[Any],
    protected: Protected,
    thresholds: Thresholds | None,
    depth: NDArray[np.float64] | None,
    seed: int,
) -> dict[str, Fairness]:
    return {
        name: audit(
            np.asarray(one.y),
            np.asarray(one.challenger),
            protected,
            thresholds,
            units=units,
            depth=depth,
            seed=seed,
        )
        for name, one in outcomes.items()
        if protected
    }


def _unfair(audits: Mapping[str, Fairness]) -> list[str]:
    return [f"{name}: {text}" for name, found in audits.items() for text in found.broken]


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
