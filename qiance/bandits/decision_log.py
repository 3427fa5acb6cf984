"""The log of a bandit's decisions as a table that off-policy evaluation reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qiance.bandits.play import Rows
from qiance.bandits.shop import Shop
from qiance.evaluate.bandit_log import BanditLog
from qiance.market.simulate import second_of_day

LOG, MAPPING, UNIFORM = "decisions.parquet", "decisions.map.yaml", "uniform.parquet"


def write_log(folder: Path, shop: Shop, rows: Rows) -> Path:
    """Write `decisions.parquet`, the mapping that `qiance evaluate ope` reads it with, and `uniform.parquet`,
    a policy for it: any admissible arm. Returns the first.

    A row per decision: id, user, arm and its propensity, features, what came of it, `reward` (margin minus
    the contact's cost, minor units), and under `p:ARM` the probability of every arm, 0 where it was not
    admissible.
    """
    arms, cost = np.array(shop.arms), shop.table.contact_cost
    at = np.datetime64(shop.start.replace(tzinfo=None), "s") + (rows.day * 86_400 + second_of_day(rows.user))
    columns: dict[str, Any] = {
        "decision_id": rows.ids,
        "user_id": np.array(shop.template.population.user_ids)[rows.user],
        "occurred_at": pa.array(at).cast(pa.timestamp("s", tz="UTC")),
        "arm": arms[rows.action],
        "propensity": rows.propensity,
        **dict(zip(shop.features, rows.context.T, strict=True)),
        **{name: getattr(rows, name) for name in ("click", "conversion", "sales", "margin")},
        "reward": rows.margin - cost[rows.action],
        **{f"p:{arm}": rows.probabilities[:, place] for place, arm in enumerate(arms)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"arms": "\n".join(arms), "features": "\n".join(shop.features)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / LOG)
    text = yaml.safe_dump(_mapping(shop), sort_keys=False, allow_unicode=True)
    (folder / MAPPING).write_text(text, encoding="utf-8")
    uniform = rows.admissible / rows.admissible.sum(axis=1, keepdims=True)
    policy = {"row_id": rows.ids, **dict(zip(shop.arms, uniform.T, strict=True))}
    pq.write_table(pa.table(policy), folder / UNIFORM)
    return folder / LOG


def read_log(path: Path) -> tuple[BanditLog, tuple[str, ...]]:
    """The decisions with `reward`, clustered by user, and the arms that `action` counts."""
    table = pq.read_table(path)
    told = {key.decode(): value.decode().split("\n") for key, value in (table.schema.metadata or {}).items()}
    if "arms" not in told or "features" not in told:
        raise ValueError(f"{path}: names no arms and features; it is no log of `write_log`")
    place = {arm: number for number, arm in enumerate(told["arms"])}
    log = BanditLog(
        action=np.array([place[arm] for arm in table["arm"].to_pylist()]),
        reward=table["reward"].to_numpy().astype(np.float64),
        propensity=table["propensity"].to_numpy(),
        context=np.column_stack([table[name].to_numpy() for name in told["features"]]),
        cluster=table["user_id"].to_numpy(),
    )
    return log, tuple(told["arms"])


def _mapping(shop: Shop) -> dict[str, Any]:
    return {
        "kind": "responses",
        "name": "bandit",
        "columns": {
            "row_id": "decision_id",
            "unit_id": "user_id",
            "arm": "arm",
            "propensity": "propensity",
            "occurred_at": "occurred_at",
        },
        "features": {"numeric": list(shop.features)},
        "labels": {
            "click": "click",
            "conversion": "conversion",
            "sales": {"column": "sales", "unit": "minor"},
        },
        "control": shop.arms[0],
        "arm_cost": {
            arm: int(cost) for arm, cost in zip(shop.arms, shop.table.contact_cost, strict=True) if cost
        },
    }
