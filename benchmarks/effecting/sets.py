"""The three public sets, each as rows to learn from: what is predicted, from what, and who is one user."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.effecting.journey import CATEGORICAL, NUMERIC, PACKAGE, contacts
from benchmarks.harness import ROOT
from qiance.data.errors import DataError
from qiance.data.hillstrom import read_hillstrom
from qiance.data.open_bandit import read_open_bandit
from qiance.data.packages import package_folder
from qiance.features.schema import Columns, FeatureSchema
from training.response.rows import ResponseRows, response_rows

HILLSTROM = ROOT.parent / "shared" / "data" / "hillstrom" / "hillstrom.csv.gz"
SERVICE = "response_log"


def load_sets(names: Sequence[str]) -> tuple[dict[str, ResponseRows], dict[str, str]]:
    """Rows by name, and by name the reason of each that cannot be had."""
    found, missing = dict[str, ResponseRows](), dict[str, str]()
    for name in names:
        try:
            found[name] = SETS[name]()
        except DataError as error:
            missing[name] = str(error).replace(str(ROOT.parent), "…")
    return found, missing


def hillstrom(label: str) -> ResponseRows:
    """64,000 customers and three arms; `click` is the visit of the site."""
    if not HILLSTROM.exists():
        raise DataError(
            "Hillstrom", "is not on this machine", f"put it at ../{HILLSTROM.relative_to(ROOT.parent)}"
        )
    return response_rows(read_hillstrom(HILLSTROM), label)


def open_bandit() -> ResponseRows:
    """All six logs of the sample, 60,000 impressions: too few clicks in one to say anything of it alone."""
    logs = {
        f"{campaign}-{behaviour}": response_rows(read_open_bandit(None, campaign, behaviour), "click")
        for campaign in ("all", "men", "women")
        for behaviour in ("random", "bts")
    }
    first = next(iter(logs.values()))
    names = (*first.schema.categorical, "campaign", "policy")
    parts = [_named(rows, *log.split("-")) for log, rows in logs.items()]
    columns = {
        name: np.concatenate([part[name] for part in parts]) for name in (*first.schema.numeric, *names)
    }
    target = np.concatenate([rows.target for rows in logs.values()])
    return _rows("open_bandit", columns, first.schema.numeric, names, target, segment="campaign")


def _named(rows: ResponseRows, campaign: str, policy: str) -> Columns:
    """With the log's own names; an item number means another item in each campaign."""
    count = len(rows)
    items = np.array([f"{campaign}-{item}" for item in rows.columns["arm"]], dtype=object)
    own = {
        "arm": items,
        "campaign": np.full(count, campaign, object),
        "policy": np.full(count, policy, object),
    }
    return {**rows.columns, **own}


def journey_redemption() -> ResponseRows:
    """6,589 contacts of 27 campaigns: is a coupon of the campaign redeemed?"""
    return _journey("redeemed")


def journey_spend() -> ResponseRows:
    """The same contacts: what the household spends while the campaign runs, where it buys at all."""
    return _journey("bought")


def _journey(label: str) -> ResponseRows:
    folder = package_folder(PACKAGE)
    if folder is None:
        raise DataError("The Complete Journey", f"{PACKAGE} is not installed", "run `make setup`")
    table = contacts(folder / "data")
    table["bought"] = (table.spend_in > 0).astype(np.int8)
    columns: Columns = {name: table[name].to_numpy(dtype=np.float64) for name in NUMERIC}
    columns = {**columns, **{name: table[name].to_numpy(dtype=object) for name in CATEGORICAL}}
    return _rows(
        f"journey_{label}",
        columns,
        NUMERIC,
        CATEGORICAL,
        table[label].to_numpy(dtype=np.float64),
        segment="campaign_type",
        units=table.household_id.to_numpy().astype(np.str_),
        sales=table.spend_in.to_numpy(dtype=np.float64) if label == "bought" else None,
    )


def _rows(
    name: str,
    columns: Columns,
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    target: NDArray[np.float64],
    segment: str,
    units: NDArray[np.str_] | None = None,
    sales: NDArray[np.float64] | None = None,
) -> ResponseRows:
    return ResponseRows(
        name=name,
        label="conversion" if sales is not None else "click",
        schema=FeatureSchema(SERVICE, numeric, categorical),
        columns=columns,
        target=target,
        units=np.arange(target.size).astype(np.str_) if units is None else units,
        segment=segment,
        fingerprint=hashlib.sha256(target.tobytes()).hexdigest(),
        sales=sales,
    )


SETS: dict[str, Callable[[], ResponseRows]] = {
    "open_bandit_click": open_bandit,
    "journey_redemption": journey_redemption,
    "hillstrom_visit": lambda: hillstrom("click"),
    "hillstrom_conversion": lambda: hillstrom("conversion"),
    "journey_spend": journey_spend,
    "hillstrom_spend": lambda: hillstrom("conversion"),
}
# Whether it buys is another set's question, or none where nearly every household does: here, how much.
VALUE_ONLY = ("journey_spend", "hillstrom_spend")
