"""Open Bandit: recommendations of a fashion shop, logged with clicks and propensities (Saito et al. 2021)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.mapped import MappedResult, Progress, read_mapped, sort_arms
from qiance.data.mapping import Mapping
from qiance.data.packages import package_folder
from qiance.data.responses import ResponseTable
from qiance.data.store import fingerprint_table
from qiance.data.tabular import read_raw

AFFINITY = "user-item_affinity_"
_USER_FEATURES = tuple(f"user_feature_{number}" for number in range(4))
_ITEM_CATEGORIES = ("item_feature_1", "item_feature_2", "item_feature_3")


def read_open_bandit(
    path: Path | None = None,
    campaign: Literal["all", "men", "women"] = "all",
    behaviour: Literal["random", "bts"] = "random",
    *,
    quarantine: Path | None = None,
    progress: Progress | None = None,
) -> ResponseTable:
    """Read `<behaviour>/<campaign>/<campaign>.csv` and `item_context.csv` of the Open Bandit layout.

    path: folder that holds `random` and `bts`; None takes the sample in the package `obp` (10,000 rows).
    The arm is the item shown; its propensity is the logged one, uniform under `random`. Features: the
    position and four user features (categorical), the user's affinity to the item (`affinity`, its value
    for every item in `pair_features`) and the item's own (`arm_features`). No money is logged.
    """
    folder = _folder(path, behaviour, campaign)
    affinities = _affinity_columns(folder / f"{campaign}.csv")
    mapping = _mapping(campaign, behaviour, affinities)
    result = read_mapped(folder / f"{campaign}.csv", mapping, quarantine=quarantine, progress=progress)
    items = _items(folder / "item_context.csv")
    return _with_items(result, items)


def _folder(path: Path | None, behaviour: str, campaign: str) -> Path:
    root = path
    if root is None:
        package = package_folder("obp")
        if package is None:
            remedy = "install it with `pip install --no-deps obp==0.4.1`, or pass the folder of your copy"
            raise DataError("Open Bandit", "the package obp is not installed", remedy)
        root = package / "dataset" / "obd"
    folder = root / behaviour / campaign
    if not folder.is_dir():
        remedy = "behaviour is random or bts, campaign is all, men or women"
        raise DataError(root, f"has no folder {behaviour}/{campaign}", remedy)
    return folder


def _affinity_columns(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(file, "does not exist", "pass the folder that holds random/ and bts/")
    with file.open(encoding="utf-8", errors="replace") as stream:
        header = stream.readline().strip().split(",")
    return [name for name in header if re.fullmatch(rf"{AFFINITY}\d+", name)]


def _mapping(campaign: str, behaviour: str, affinities: list[str]) -> Mapping:
    return Mapping.model_validate(
        {
            "kind": "responses",
            "name": f"open-bandit-{campaign}-{behaviour}",
            "currency": "JPY",
            "columns": {"arm": "item_id", "propensity": "propensity_score", "occurred_at": "timestamp"},
            "features": {
                "numeric": {name: {"column": name, "required": True} for name in affinities},
                "categorical": {
                    name: {"column": name, "required": True} for name in ("position", *_USER_FEATURES)
                },
            },
            "labels": {"click": "click"},
            "randomised": behaviour == "random",
        }
    )


def _items(file: Path) -> pa.Table:
    """`[items]` arm and item_feature_0..3; the first is a number, the others are hashed words."""
    names = ["item_id", "item_feature_0", *_ITEM_CATEGORIES]
    raw = read_raw(file, names).table
    try:
        number = raw["item_feature_0"].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(file, f"item_feature_0 is not a number ({error})", "copy the file again") from None
    columns = {
        "arm": raw["item_id"],
        "item_feature_0": number,
        **{name: raw[name] for name in _ITEM_CATEGORIES},
    }
    return pa.table(columns)


def _with_items(result: MappedResult, items: pa.Table) -> ResponseTable:
    responses = result.responses
    assert responses is not None
    arms = sort_arms(items["arm"].to_pylist())
    strange = sorted(set(responses.arms) - set(arms))
    if strange:
        problem = f"item {strange[0]!r} was shown but is not in item_context.csv"
        raise DataError(responses.report.source, problem, "copy both files from the same release")
    order = pc.index_in(pa.array(arms, pa.string()), value_set=items["arm"].combine_chunks())
    features = items.take(order)
    full = replace(responses, arms=arms, arm_cost=dict.fromkeys(arms, 0))
    shown = full.arm_index()
    affinity = _affinity(responses, arms)
    user = [name for name in responses.table.column_names if not name.startswith(AFFINITY)]
    table = responses.table.select(user)
    table = table.append_column("affinity", pa.array(affinity[np.arange(len(full)), shown]))
    for name in ("item_feature_0", *_ITEM_CATEGORIES):
        table = table.append_column(name, features[name].combine_chunks().take(pa.array(shown)))
    return replace(
        full,
        table=table,
        numeric=("affinity", "item_feature_0"),
        categorical=(*responses.categorical, *_ITEM_CATEGORIES),
        arm_features=features,
        pair_features={"affinity": affinity},
        fingerprint=fingerprint_table(table),
    )


def _affinity(responses: ResponseTable, arms: tuple[str, ...]) -> NDArray[np.float64]:
    """`[N, K]` affinity of each row's user to each item."""
    columns = []
    for arm in arms:
        name = f"{AFFINITY}{arm}"
        if name not in responses.table.column_names:
            raise DataError(responses.report.source, f"has no column {name!r}", "copy the file again")
        columns.append(responses.table[name].to_numpy())
    return np.stack(columns, axis=1)
