"""Headline tests: texts that were shown at random within a test, with impressions and clicks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qiance.artifacts.manifest import file_hash
from qiance.data.errors import DataError
from qiance.data.tabular import column_names, read_raw

REQUIRED = ("test_id", "text", "impressions", "clicks")
OPTIONAL = ("shown_with", "story", "at")
# The Upworthy Research Archive by its own names. A package is a headline with an image, so headlines are
# compared where the image is the same; tests that share an image are about one story.
UPWORTHY = {
    "test_id": "clickability_test_id",
    "text": "headline",
    "impressions": "impressions",
    "clicks": "clicks",
    "shown_with": "eyecatcher_id",
    "story": "eyecatcher_id",
    "at": "test_week",
}
# The archive's authors: tests of these weeks were probably not randomised.
UPWORTHY_DROPPED = (201325, 201402)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CopyTests:
    """n texts, one row per text and group.

    texts: `[n]`, white space normalised. test, group: `[n]` codes; texts of one group were shown at random
    with everything else equal. story: `[n]` codes of what must not be split, since tests of one story share
    texts. at: `[n]` when, in the file's own unit, 0 where it has none. impressions, clicks: `[n]`. dropped:
    rows of the file left out, by reason.
    """

    texts: NDArray[np.object_]
    test: Ints
    group: Ints
    story: Ints
    at: Floats
    impressions: Floats
    clicks: Floats
    fingerprint: str
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def tests(self) -> int:
        return len(np.unique(self.test))

    def take(self, rows: NDArray[Any]) -> CopyTests:
        """The rows by mask or index."""
        parts = (getattr(self, name)[rows] for name in self.__slots__[:7])
        return CopyTests(*parts, self.fingerprint, self.dropped)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two texts of one group each: `first`, `second` `[m]` are rows, `won` `[m]` whether the first had the
    higher click rate. Pairs of equal rates have no winner and are left out. z: `[m]` how clear it was, the
    difference over its standard error with the rates pooled. test: `[m]` codes."""

    first: Ints
    second: Ints
    won: NDArray[np.bool_]
    z: Floats
    test: Ints

    def __len__(self) -> int:
        return len(self.first)


def read_tests(path: Path) -> CopyTests:
    """Read CSV, JSON lines or Parquet, with our column names or those of the Upworthy archive.

    DataError where columns are missing, a count is no count, or no test compares two texts.
    """
    if not path.is_file():
        raise DataError(path, "does not exist", "pass the path of your headline tests with --data")
    present = column_names(path)
    upworthy = UPWORTHY["test_id"] in present
    named = UPWORTHY if upworthy else {name: name for name in (*REQUIRED, *OPTIONAL) if name in present}
    missing = [name for name in REQUIRED if name not in named]
    if missing:
        raise DataError(
            path,
            f"has no column {missing[0]!r} (found: {', '.join(map(repr, present[:12]))})",
            f"name the columns {', '.join(REQUIRED)}, and if known {', '.join(OPTIONAL)}",
        )
    raw = read_raw(path, sorted(set(named.values())))
    if raw.faults.num_rows:
        fault = raw.faults.slice(0, 1).to_pylist()[0]
        raise DataError(path, f"row {fault['row']} cannot be read", "correct the row")
    columns = raw.table.to_pandas()
    frame = pd.DataFrame({ours: columns[theirs] for ours, theirs in named.items()})
    return from_frame(frame, path, file_hash(path), UPWORTHY_DROPPED if upworthy else None)


def from_frame(
    frame: pd.DataFrame, source: Path | str, fingerprint: str, dropped_at: tuple[float, float] | None = None
) -> CopyTests:
    """From columns `REQUIRED` and any of `OPTIONAL`; dropped_at: rows whose `at` lies in it are left out."""
    frame = frame.assign(**{name: _counts(frame, name, source) for name in ("impressions", "clicks")})
    if (frame["clicks"] > frame["impressions"]).any():
        row = int(np.flatnonzero(frame["clicks"] > frame["impressions"])[0]) + 1
        raise DataError(source, f"row {row} has more clicks than impressions", "count each visitor once")
    frame["at"] = _times(frame, source)
    frame["text"] = frame["text"].fillna("").astype(str).str.split().str.join(" ")
    frame["test_id"] = frame["test_id"].astype(str)
    for name in ("shown_with", "story"):
        frame[name] = frame[name].fillna("").astype(str) if name in frame else ""
    dropped: dict[str, int] = {}
    frame = _without(frame, frame["text"] == "", "no text", dropped)
    frame = _without(frame, frame["impressions"] <= 0, "never shown", dropped)
    if dropped_at is not None:
        frame = _without(frame, frame["at"].between(*dropped_at), "probably not randomised", dropped)
    frame = frame.assign(story=_stories(frame))
    return _grouped(frame, source, fingerprint, dropped)


def _counts(frame: pd.DataFrame, name: str, source: Path | str) -> pd.Series:
    values = pd.to_numeric(frame[name], errors="coerce")
    bad = ~(np.isfinite(values) & (values >= 0) & (values == values.round()))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        problem = f"row {row + 1} has {name} {str(frame[name].iloc[row])!r}"
        raise DataError(source, problem, "write a whole number that is not negative")
    return values.astype(np.float64)


def _times(frame: pd.DataFrame, source: Path | str) -> pd.Series:
    """Numbers as they are, anything else as instants in seconds."""
    if "at" not in frame:
        return pd.Series(0.0, index=frame.index)
    numbers = pd.to_numeric(frame["at"], errors="coerce")
    if numbers.notna().all():
        return numbers.astype(np.float64)
    try:
        moments = pd.to_datetime(frame["at"], utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise DataError(source, f"column 'at' is no time ({error})", "write ISO 8601 or numbers") from None
    if moments.isna().any():
        row = int(np.flatnonzero(moments.isna())[0]) + 1
        raise DataError(source, f"row {row} has no 'at'", "give every row its time, or leave the column out")
    return (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


def _without(frame: pd.DataFrame, bad: pd.Series, reason: str, dropped: dict[str, int]) -> pd.DataFrame:
    if bad.any():
        dropped[reason] = int(bad.sum())
    return frame[~bad]


def _stories(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Connected components of tests that share a text (whatever its case) or a story."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    tests, _ = pd.factorize(frame["test_id"])
    keys = pd.concat([frame["text"].str.lower().radd("text "), frame["story"].radd("story ")])
    codes, names = pd.factorize(keys)
    size = tests.max(initial=-1) + 1
    linked = (keys != "story ").to_numpy()
    ends = np.tile(tests, 2)[linked], codes[linked] + size
    nodes = size + len(names)
    graph = coo_matrix((np.ones(len(ends[0])), ends), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][tests], dtype=np.int64)


def _grouped(frame: pd.DataFrame, source: Path | str, fingerprint: str, dropped: dict[str, int]) -> CopyTests:
    """One row per text and group; groups of a single text compare nothing."""
    keys = ["test_id", "shown_with", "text"]
    rows = frame.groupby(keys, sort=True, as_index=False).agg(
        impressions=("impressions", "sum"),
        clicks=("clicks", "sum"),
        at=("at", "min"),
        story=("story", "first"),
    )
    of_group = rows.groupby(keys[:2])["text"]
    alone = of_group.transform("count") < 2
    dropped |= {"nothing to compare with": int(alone.sum())} if alone.any() else {}
    rows = rows[~alone]
    if rows.empty:
        raise DataError(
            source,
            "has no test that compares two texts",
            "give the texts of one test the same test_id, and the same shown_with where it is given",
        )
    return CopyTests(
        rows["text"].to_numpy(dtype=object),
        pd.factorize(rows["test_id"])[0].astype(np.int64),
        rows.groupby(keys[:2]).ngroup().to_numpy(dtype=np.int64),
        rows["story"].to_numpy(dtype=np.int64),
        rows["at"].to_numpy(dtype=np.float64),
        rows["impressions"].to_numpy(dtype=np.float64),
        rows["clicks"].to_numpy(dtype=np.float64),
        fingerprint,
        dropped,
    )


def pairs_of(tests: CopyTests) -> Pairs:
    """All pairs within a group whose click rates differ."""
    order = np.argsort(tests.group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(tests.group[order])) + 1)
    found = np.array([pair for rows in members for pair in combinations(rows, 2)], dtype=np.int64)
    first, second = found.reshape(-1, 2).T
    rate, shown, clicks = tests.clicks / tests.impressions, tests.impressions, tests.clicks
    kept = rate[first] != rate[second]
    first, second = first[kept], second[kept]
    pooled = (clicks[first] + clicks[second]) / (shown[first] + shown[second])
    error = np.sqrt(pooled * (1 - pooled) * (1 / shown[first] + 1 / shown[second]))
    difference = rate[first] - rate[second]
    return Pairs(first, second, difference > 0, difference / error, tests.test[first])


def split_by_story(tests: CopyTests, share: float, seed: int) -> tuple[Ints, Ints]:
    """Rows to learn from and rows to judge by, no story in both: about `share` of the texts are judged.

    With times the later stories are judged, and a story that began before and went on after is in neither.
    Without, stories are drawn at random. DataError where there are too few stories.
    """
    if len(np.unique(tests.at)) > 1:
        cut = np.quantile(tests.at, 1 - share)
        last, first = _extreme(tests, np.maximum), _extreme(tests, np.minimum)
        fit, held = last < cut, first >= cut
    else:
        names, code = np.unique(tests.story, return_inverse=True)
        chosen = np.random.default_rng(seed).permutation(len(names)) < round(share * len(names))
        held = chosen[code]
        fit = ~held
    if not fit.any() or not held.any():
        raise DataError(
            "tests", "are too few to hold some out", "give tests of more stories, or of more days"
        )
    return np.flatnonzero(fit), np.flatnonzero(held)


def _extreme(tests: CopyTests, choose: Any) -> Floats:
    """`[n]` first or last time of each row's story."""
    _, code = np.unique(tests.story, return_inverse=True)
    found = np.full(code.max() + 1, -np.inf if choose is np.maximum else np.inf)
    choose.at(found, code, tests.at)
    return found[code]


def folds_of(tests: CopyTests, folds: int, seed: int) -> Ints:
    """`[n]` fold of each row; a story is in one fold."""
    names, code = np.unique(tests.story, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(names)) % folds, dtype=np.int64)[code]


def text_fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
