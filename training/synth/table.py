"""Tables of users, and their marginals: to normal scores and back, without any single user's value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from qiance.data.errors import DataError
from qiance.data.tabular import column_names, read_raw

Floats = NDArray[np.float64]
ID = "user_id"
LEAST_USERS = 200
# No value that fewer users share is given out: it is averaged with its neighbours, or a rare category.
TOGETHER = 10
RARE = "(rare)"
SWEEPS, RIDGE, MOST = 30, 1e-3, 4.0


def read_users(path: Path) -> pd.DataFrame:
    """CSV, JSON lines or Parquet, a row per user; `user_id`, where it is there, is left out.

    DataError for too few users, no column, or a column that is neither numbers nor text.
    """
    if not path.is_file():
        raise DataError(path, "does not exist", "pass the path of your user table with --data")
    names = [name for name in column_names(path) if name != ID]
    if not names:
        raise DataError(path, f"has no column but {ID!r}", "add the features of the users")
    raw = read_raw(path, names)
    if raw.faults.num_rows:
        row = raw.faults.slice(0, 1).to_pylist()[0]["row"]
        raise DataError(path, f"row {row} cannot be read", "correct the row")
    frame = pd.DataFrame({name: _column(raw.table[name].to_pandas(), name, path) for name in names})
    if len(frame) < LEAST_USERS:
        raise DataError(
            path, f"has {len(frame)} users", f"give at least {LEAST_USERS}: of fewer, leakage cannot be told"
        )
    return frame


def _column(values: pd.Series, name: str, path: Path) -> pd.Series:
    """Numbers as float64 with NaN, else text with None; text that is all numbers is numbers."""
    numbers = pd.to_numeric(values, errors="coerce")
    text = values.map(lambda value: None if value is None or value != value else str(value).strip())
    text = text.where(text != "", None)
    if text.isna().all():
        raise DataError(path, f"{name}: is empty in every row", "leave the column out")
    if not (numbers.isna() & text.notna()).any():
        if np.isinf(numbers).any():
            raise DataError(path, f"{name}: has an infinite value", "correct it, or leave it empty")
        return numbers.astype(np.float64)
    if text.nunique() > max(50, len(text) // 20):
        raise DataError(
            path, f"{name}: has {text.nunique()} different texts", "leave out names, ids and free text"
        )
    return text.astype(object)


@dataclass(frozen=True)
class Marginal:
    """One column as bins in order: missing, then values ascending (categories by name).

    edges: `[b+1]` of the bins in [0, 1], by share of users. value: `[b]` the mean of each bin, or codes of
    `categories`; NaN is missing. smooth: `[b]` whether values between it and the next are given out.
    whole: all are integers.
    """

    edges: Floats
    value: Floats
    smooth: NDArray[np.bool_]
    whole: bool
    categories: tuple[str, ...] = ()

    def values(self, uniform: Floats) -> Floats | NDArray[np.object_]:
        """`[n]` values at quantiles `uniform` `[n]` in (0, 1)."""
        bins = np.clip(np.searchsorted(self.edges, uniform, side="right") - 1, 0, len(self.value) - 1)
        found = self.value[bins]
        middle = 0.5 * (self.edges[:-1] + self.edges[1:])
        after = np.where(uniform >= middle[bins], np.minimum(bins + 1, len(middle) - 1), bins)
        before = np.maximum(after - 1, 0)
        between = self.smooth[before] & self.smooth[after] & (after > before)
        span = np.where(between, middle[after] - middle[before], 1.0)
        share = np.clip((uniform - middle[before]) / span, 0.0, 1.0)
        found = np.where(
            between, self.value[before] + share * (self.value[after] - self.value[before]), found
        )
        if self.categories:
            names = np.array([*self.categories, None], dtype=object)
            return names[
                np.where(np.isnan(found), len(self.categories), np.nan_to_num(found)).astype(np.int64)
            ]
        return np.rint(found) if self.whole else found

    def bounds(self, column: pd.Series) -> tuple[Floats, Floats]:
        """`[n]` each: the quantiles in [0, 1] between which values equal to the user's lie."""
        codes = np.where(np.isnan(found := self.codes(column)), -np.inf, found)
        order = np.sort(codes)
        below, until = (np.searchsorted(order, codes, side) for side in ("left", "right"))
        return below / len(codes), until / len(codes)

    def codes(self, column: pd.Series) -> Floats:
        """Numbers as they are, categories as codes with rare ones together."""
        if not self.categories:
            return column.to_numpy(dtype=np.float64)
        index = {name: float(code) for code, name in enumerate(self.categories)}
        other = index.get(RARE, np.nan)
        return np.array([np.nan if value is None else index.get(value, other) for value in column])


def fit_marginal(column: pd.Series) -> Marginal:
    """Bins of at least `TOGETHER` users: one per value that so many share, means of neighbours between."""
    categories = _categories(column) if column.dtype == object else ()
    shell = Marginal(np.array([0.0, 1.0]), np.zeros(1), np.zeros(1, dtype=bool), False, categories)
    codes = shell.codes(column)
    known = np.sort(codes[~np.isnan(codes)])
    counts, values, smooth = [], [], []
    if (missing := len(codes) - len(known)) > 0:
        counts, values, smooth = [missing], [np.nan], [False]
    distinct, sizes = np.unique(known, return_counts=True)
    common = (sizes >= TOGETHER) | bool(categories)
    for run in np.split(np.arange(len(distinct)), np.flatnonzero(np.diff(common)) + 1):
        if common[run[0]]:
            counts += sizes[run].tolist()
            values += distinct[run].tolist()
            smooth += [False] * len(run)
            continue
        rows = np.repeat(distinct[run], sizes[run])
        for part in np.array_split(rows, max(len(rows) // TOGETHER, 1)):
            counts.append(len(part))
            values.append(float(part.mean()))
            smooth.append(True)
    edges = np.concatenate([[0.0], np.cumsum(counts) / len(codes)])
    whole = bool((known == np.rint(known)).all())
    return Marginal(edges, np.array(values), np.array(smooth), whole, categories)


def _categories(column: pd.Series) -> tuple[str, ...]:
    counts = column.value_counts()
    common = sorted(str(name) for name in counts.index[counts >= TOGETHER])
    return tuple(common) + ((RARE,) if (counts < TOGETHER).any() else ())


@dataclass(frozen=True)
class Marginals:
    """Those of all columns, by name."""

    columns: Mapping[str, Marginal]

    @classmethod
    def fit(cls, users: pd.DataFrame) -> Marginals:
        return cls({str(name): fit_marginal(users[name]) for name in users})

    def scores(self, users: pd.DataFrame, rng: np.random.Generator) -> Floats:
        """`[n, columns]` normal scores: Φ⁻¹ of the ranks; equal values are ordered as the other columns have
        it.

        Scores of equal values are drawn, in turns, from a Gaussian given the other columns, within the bounds
        of the value: in random order, zeros of two columns that go together would look independent. Source:
        Hoff, Extending the rank likelihood for semiparametric copula estimation, Ann. Appl. Stat. 1 (2007),
        265-283.
        """
        bounds = [own.bounds(users[name]) for name, own in self.columns.items()]
        low, high = (np.stack(side, axis=1) for side in zip(*bounds, strict=True))
        scores = stats.norm.ppf(low + (high - low) * _inside(rng, low.shape))
        below, above = stats.norm.ppf(low), stats.norm.ppf(high)
        for _ in range(SWEEPS if low.shape[1] > 1 else 0):
            precision = np.linalg.inv(np.corrcoef(scores, rowvar=False) + RIDGE * np.eye(low.shape[1]))
            for k in range(low.shape[1]):
                spread = precision[k, k] ** -0.5
                mean = scores[:, k] - scores @ precision[:, k] / precision[k, k]
                first, last = (stats.norm.cdf((edge[:, k] - mean) / spread) for edge in (below, above))
                drawn = stats.norm.ppf(first + (last - first) * _inside(rng, len(mean)))
                scores[:, k] = np.clip(mean + spread * drawn, *_finite(below[:, k], above[:, k]))
        return np.asarray(scores)

    def table(self, scores: Floats) -> pd.DataFrame:
        """Users with these marginals whose columns are ordered as those of `scores` `[n, columns]`."""
        uniform = (stats.rankdata(scores, axis=0, method="ordinal") - 0.5) / len(scores)
        return pd.DataFrame(
            {name: own.values(uniform[:, k]) for k, (name, own) in enumerate(self.columns.items())}
        )


def _inside(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Floats:
    """Uniform in (0, 1), away from both ends."""
    return np.asarray(np.clip(rng.random(shape), 1e-6, 1 - 1e-6))


def _finite(below: Floats, above: Floats) -> tuple[Floats, Floats]:
    return np.maximum(below, -MOST), np.minimum(above, MOST)
