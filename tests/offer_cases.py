"""Tables of offers for the tests, and an independent check of what was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import optimize

OFFERS = ("cheese", "coffee", "pasta")
DEPTH = {"cheese": 0.1, "coffee": 0.2, "pasta": 0.3}


def make_offers(users: int, seed: int, days: int = 1) -> pd.DataFrame:
    """A row per user, day and offer, some of them missing, in no order."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        region, house = rng.choice(["north", "south"]), f"h{rng.integers(0, max(users // 2, 1))}"
        for day in range(days):
            for offer in OFFERS:
                value, cost = rng.gamma(1, 100) - 20, rng.gamma(2, 30)
                rows.append((f"u{user}", f"d{day}", offer, value, cost, region, house))
    names = ["user", "day", "offer", "value", "cost", "region", "house"]
    frame = pd.DataFrame(rows, columns=names).sample(frac=0.85, random_state=seed)
    frame["depth"] = frame["offer"].map(DEPTH)
    frame["brand"] = frame["offer"].map({"cheese": "own", "coffee": "other", "pasta": "own"})
    frame["margin"], frame["sales"] = 0.3 * frame["value"] + 5, frame["value"].clip(lower=0) + 40
    frame["print"] = 0.5 * frame["cost"]
    return frame.reset_index(drop=True)


def written_spec(folder: Path, spec: dict[str, Any]) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def full_spec(frame: pd.DataFrame) -> dict[str, Any]:
    """Every limit that can be kept over chunks; none of them trivial."""
    total = float(frame.groupby("user")["cost"].max().sum())
    return {
        "budget": 0.35 * total,
        "budgets": [
            {"name": "deep", "column": "offer", "values": ["coffee", "pasta"], "limit": 0.25 * total},
            {"name": "print", "cost": "print", "limit": 0.15 * total},
        ],
        "stock": {"column": "brand", "units": {"own": float(frame["user"].nunique() // 4)}},
        "segment_floors": [{"column": "region", "value": "north", "share": 0.25}],
        "margin_floor": {"floor": 0.1},
        "depth_fairness": {"column": "region", "depth": "depth", "spread": 0.05},
    }


def rows_of(frame: pd.DataFrame, spec: dict[str, Any]) -> list[tuple[np.ndarray, float]]:
    """(coefficient of each row of the frame, most), written from the spec and nothing else."""
    found = [(frame["cost"].to_numpy(), spec["budget"])]
    for one in spec.get("budgets", ()):
        cost = frame[one.get("cost", "cost")].to_numpy()
        mine = frame[one["column"]].isin(one["values"]) if "column" in one else np.ones(len(frame))
        found.append((cost * np.asarray(mine, dtype=float), one["limit"]))
    stock = spec.get("stock", {"units": {}})
    for key, units in stock["units"].items():
        found.append(((frame[stock.get("column", "offer")] == key).to_numpy() * 1.0, np.floor(units)))
    slots = frame.groupby(["user", "day"] if "columns" in spec else ["user"])
    for one in spec.get("segment_floors", ()):
        members = slots[one["column"]].first()
        mine = (frame[one["column"]] == one["value"]).to_numpy() * 1.0
        found.append((-mine, -np.ceil(one["share"] * (members == one["value"]).sum() - 1e-9)))
    if "margin_floor" in spec:
        floor = spec["margin_floor"]["floor"]
        found.append(((floor * frame["sales"] - frame["margin"]).to_numpy(), 0.0))
    if "depth_fairness" in spec:
        fair = spec["depth_fairness"]
        sizes = slots[fair["column"]].first().value_counts()
        mean = {g: ((frame[fair["column"]] == g) * frame["depth"] / sizes[g]).to_numpy() for g in sizes.index}
        found += [(mean[g] - mean[h], fair["spread"]) for g in sizes.index for h in sizes.index if g != h]
    if "daily_budgets" in spec:
        for day in sorted(frame["day"].unique()):
            cost = ((frame["day"] == day) * frame["cost"]).to_numpy()
            found.append((cost, spec["daily_budgets"]["limits"][day]))
    if "frequency_cap" in spec:
        cap = spec["frequency_cap"]
        for person in frame[cap.get("column", "user")].unique():
            found.append(((frame[cap.get("column", "user")] == person).to_numpy() * 1.0, cap["most"]))
    return found


def reference(frame: pd.DataFrame, spec: dict[str, Any]) -> float | None:
    """The best value by HiGHS; None where no plan keeps the limits."""
    slot = frame.groupby(["user", "day"] if "columns" in spec else ["user"]).ngroup().to_numpy()
    once = np.zeros((slot.max() + 1, len(frame)))
    once[slot, np.arange(len(frame))] = 1.0
    constraints = [optimize.LinearConstraint(once, -np.inf, 1.0)]
    constraints += [optimize.LinearConstraint(row[None], -np.inf, most) for row, most in rows_of(frame, spec)]
    found = optimize.milp(
        -frame["value"].to_numpy(),
        integrality=np.ones(len(frame)),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 1e-6, "node_limit": 5_000},
    )
    return -found.fun if found.status == 0 else None


def check_choices(frame: pd.DataFrame, spec: dict[str, Any], chosen: pd.DataFrame) -> None:
    """The choices are rows of the frame, one a user (and day), and keep every limit."""
    key = ["user", "day"] if "columns" in spec else ["user"]
    assert not chosen.duplicated(key).any()
    assert set(map(tuple, chosen[key].to_numpy())) == set(map(tuple, frame[key].to_numpy()))
    given = chosen.dropna(subset=["offer"])
    joined = frame.reset_index().merge(given, on=[*key, "offer"], suffixes=("", "_out"))
    assert len(joined) == len(given), "every offer that is given is one of the data"
    np.testing.assert_allclose(joined["value"], joined["value_out"])
    np.testing.assert_allclose(joined["cost"], joined["cost_out"])
    taken = np.zeros(len(frame))
    taken[joined["index"]] = 1.0
    for row, most in rows_of(frame, spec):
        assert row @ taken <= most + 1e-9 * max(abs(most), 1.0)
    assert (chosen["reason"].isna() == chosen["offer"].notna()).all()
