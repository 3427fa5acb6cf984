"""A challenger against the champion, on rows that neither was trained on.

The loop's models split users by a hash of their id, which stays when rows are added: the test rows of one
training are test rows of the next. They are kept beside the models, so that any two can be compared later.
Response models are trained on all rows of their file, and are compared on another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from training.response.fairness import Fairness, audit
from training.response.rows import response_rows

OUTCOMES = ("click", "conversion")
MAX_GAP = 0.05

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


def compare_effects(
    champion: EffectModel,
    challenger: EffectModel,
    table: pa.Table,
    rule: PromotionRule,
    protected: Protected | None = None,
    max_gap: float = MAX_GAP,
) -> tuple[PromotionTest, Mapping[str, Fairness]]:
    """The test for two effect models, and the challenger's audit by outcome.

    table: features, labels and user_id of held-out rows. protected: attribute → `[n]` values.
    """
    outcomes = dict[str, Rivals]()
    draws = [model.predict(model.schema.columns(table)) for model in (champion, challenger)]
    for task in OUTCOMES:
        if task in champion.tasks and task in challenger.tasks and task in table.column_names:
            y = np.asarray(table[task].to_numpy(zero_copy_only=False), dtype=np.float64)
            own = [getattr(one, task).mean(axis=1, dtype=np.float64) for one in draws]
            outcomes[task] = Rivals(y, *(np.clip(p, 0.0, 1.0) for p in own))
    return _judge(outcomes, table["user_id"].to_numpy(zero_copy_only=False), rule, protected or {}, max_gap)


def compare_responses(
    champion: ResponseModel,
    challenger: ResponseModel,
    responses: ResponseTable,
    rule: PromotionRule,
    protected: Sequence[str] = (),
    max_gap: float = MAX_GAP,
) -> tuple[PromotionTest, Mapping[str, Fairness]]:
    """The test for two response models on a file that neither was trained on."""
    label = challenger.info.label
    if champion.info.label != label:
        raise ValueError(f"label: the champion predicts {champion.info.label}, the challenger {label}")
    for model in (champion, challenger):
        if model.artifact.manifest.data_fingerprint == responses.fingerprint:
            raise ValueError(
                f"--data: {responses.name} is what model {model.version} was trained on; give a later log"
            )
    rows = response_rows(responses, label, None, protected)
    own = [
        model.predict(model.schema.columns(responses.table)).mean(axis=1) for model in (champion, challenger)
    ]
    return _judge({label: Rivals(rows.target, *own)}, rows.units, rule, rows.protected, max_gap)


def _judge(
    outcomes: Mapping[str, Rivals], units: Any, rule: PromotionRule, protected: Protected, max_gap: float
) -> tuple[PromotionTest, Mapping[str, Fairness]]:
    audits = {
        name: audit(np.asarray(one.y), np.asarray(one.challenger), protected, max_gap, rule.seed)
        for name, one in outcomes.items()
        if protected
    }
    unfair = [f"{name}: {text}" for name, found in audits.items() for text in found.broken]
    return promotion_test(outcomes, units, rule, unfair), audits
