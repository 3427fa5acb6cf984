"""How much more of a category is bought on some days than on others, from the purchases of a log.

The index of a day is the factor of its weekday times that of being near a public holiday or not. Factors are
units bought ÷ units expected, with `PRIOR` units of the whole shop's factor added to both, so that a category
that sells little follows the shop (the posterior mean of a Poisson rate under a gamma prior).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qiance.features.calendar import DAY_US, calendar_features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEMAND = "demand.parquet"
MIN_DAYS = 28  # a shorter log does not tell one weekday from another
PRIOR = 50.0  # units
NEAR_DAYS = 3  # before a public holiday, and the day itself
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class DayDemand:
    """units: `[C, D]` bought of each category on each of D days in a row, the first of them `first` days
    after 1970-01-01 (UTC)."""

    categories: tuple[str, ...]
    first: int
    units: Floats

    @classmethod
    def of(cls, events: pa.Table, category_of: Mapping[str, str]) -> DayDemand:
        """From purchases; events: `item_id`, `type`, `quantity`, `occurred_at`. Other items count nowhere.

        Raises ValueError where nothing was bought.
        """
        bought = events.filter(pc.equal(events["type"], "purchase"))
        codes = {name: code for code, name in enumerate(sorted(set(category_of.values())))}
        items = pa.array(list(category_of), pa.string())
        place = pc.index_in(bought["item_id"], value_set=items)
        known = pc.is_valid(place)
        bought, place = bought.filter(known), place.filter(known).to_numpy()
        if not bought.num_rows:
            raise ValueError("events: hold no purchase of an item of the catalogue")
        of_item = np.array([codes[name] for name in category_of.values()], dtype=np.int64)
        day = pc.cast(bought["occurred_at"], pa.int64()).to_numpy() // DAY_US
        units = np.zeros((len(codes), int(day.max() - day.min()) + 1))
        quantity = bought["quantity"].to_numpy().astype(np.float64)
        np.add.at(units, (of_item[place], day - day.min()), quantity)
        return cls(tuple(codes), int(day.min()), units)

    def save(self, folder: Path) -> None:
        """Write `demand.parquet` under `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {"day": np.arange(self.first, self.first + self.units.shape[1])}
        columns |= dict(zip(self.categories, self.units, strict=True))
        pq.write_table(pa.table(columns), folder / DEMAND)

    @classmethod
    def load(cls, folder: Path) -> DayDemand | None:
        """What `save` wrote; None where there is none, as in runs of earlier versions."""
        if not (folder / DEMAND).is_file():
            return None
        table = pq.read_table(folder / DEMAND)
        names = tuple(name for name in table.column_names if name != "day")
        units = np.stack([table[name].to_numpy().astype(np.float64) for name in names])
        return cls(names, int(table["day"][0].as_py()), units)

    def index(self, category: str, days: Ints, country: str) -> Floats | None:
        """`[n]` demand on each of `days` (since 1970-01-01), 1 on an average day.

        None for a category that is not in the log, a log shorter than `MIN_DAYS`, or one without sales.
        """
        if category not in self.categories or self.units.shape[1] < MIN_DAYS or not self.units.any():
            return None
        logged = np.arange(self.first, self.first + self.units.shape[1])
        weekday, near = _kinds(logged, country)
        ones = np.ones(7), np.ones(2)
        shop = _factors(self.units.sum(axis=0), weekday, near, *ones)
        own = _factors(self.units[self.categories.index(category)], weekday, near, *shop)
        asked_weekday, asked_near = _kinds(days, country)
        return np.asarray(own[0][asked_weekday] * own[1][asked_near])


def day_number(moment: date) -> int:
    """Days since 1970-01-01."""
    return (date(moment.year, moment.month, moment.day) - _EPOCH).days


def _kinds(days: Ints, country: str) -> tuple[Ints, Ints]:
    """Weekday (0: Monday) and whether a public holiday is near, `[n]` each."""
    found = calendar_features(np.asarray(days, dtype=np.int64) * DAY_US, country)
    near = (found["days_to_holiday"] <= NEAR_DAYS).astype(np.int64)
    return np.asarray((days + 3) % 7, dtype=np.int64), near  # 1970-01-01 was a Thursday


def _factors(
    units: Floats, weekday: Ints, near: Ints, of_weekday: Floats, of_near: Floats
) -> tuple[Floats, Floats]:
    """Factors `[7]` of weekdays and `[2]` of being far from and near to a holiday, shrunk to those given."""
    mean = units.mean()
    expected = np.bincount(weekday, minlength=7) * mean
    weekdays = (np.bincount(weekday, units, minlength=7) + PRIOR * of_weekday) / (expected + PRIOR)
    expected = np.bincount(near, mean * weekdays[weekday], minlength=2)
    nearness = (np.bincount(near, units, minlength=2) + PRIOR * of_near) / (expected + PRIOR)
    return np.asarray(weekdays), np.asarray(nearness)
