"""Features of every item of the catalogue, in memory: refreshed in the background, swapped in one step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.features.defaults import Defaults
from qiance.features.online import Fetched, OnlineReader, Status
from qiance.features.rows import RowsUnavailableError
from qiance.features.transforms import ITEM_FEATURES, ITEM_POPULARITY_FEATURES
from qiance.workspace import Snapshot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PIECE = 256  # items read at once, some milliseconds
PAUSE_S = 0.01
logger = logging.getLogger(__name__)
VIEWS: Mapping[str, tuple[str, ...]] = {
    "item_state": ITEM_FEATURES,
    "item_popularity": ITEM_POPULARITY_FEATURES,
}


@dataclass(frozen=True)
class ItemFrame:
    """Items at one moment, in the order of the catalogue.

    columns: `[I]` per feature, NaN where unknown; event_us: `[I]` per view, 0 where there is no row.
    """

    columns: Mapping[str, Floats]
    event_us: Mapping[str, Ints]

    def equals(self, other: ItemFrame) -> bool:
        """Whether all values and times are the same, so that nothing need be worked out again."""
        pairs = [(self.columns[n], other.columns[n]) for n in self.columns]
        same = all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in pairs)
        return same and all(np.array_equal(self.event_us[v], other.event_us[v]) for v in self.event_us)


class ItemSnapshot:
    """The current `ItemFrame`, read again every `refresh_s` seconds by a thread of its own.

    Keys come from the catalogue, since the store has no scan. While the store is down the last frame stays;
    `at` still leaves out what has passed its TTL. on_change: called by that thread when values changed.
    """

    def __init__(
        self,
        reader: OnlineReader,
        snapshot: Snapshot,
        refresh_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader, self._refresh_s = reader, refresh_s
        self._on_change = on_change
        self._category = [item.category for item in snapshot.catalogue]
        self._defaults = Defaults.learn(snapshot.item, self._category)
        self._ids = [item.item_id for item in snapshot.catalogue]
        self._packed: list[bytes] = []
        self.degraded = False
        self.frame = self._first(snapshot)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qiance-items", daemon=True)
        self._thread.start()

    def at(self, now_us: int) -> tuple[ItemFrame, Mapping[str, Floats]]:
        """The frame, and `[I]` per item feature at `now_us`; a gap is filled with its category's mean."""
        frame = self.frame
        return frame, self._defaults.fill(self._present(frame, now_us), self._category)

    def next_expiry(self, frame: ItemFrame, now_us: int) -> float:
        """The next moment at which a row of `frame` passes its TTL: until then its values stay the same."""
        ends = [
            event_us + ttl
            for view, event_us in frame.event_us.items()
            if (ttl := self._reader.views[view].ttl_us) is not None
        ]
        later = [end[end >= now_us] for end in ends]
        return min((float(end.min()) for end in later if len(end)), default=float("inf"))

    def cold(self, now_us: int) -> NDArray[np.bool_]:
        """`[I]` items whose state is not known or too old, so that defaults stand in."""
        frame = self.frame
        status = self._status(frame, "item_state", now_us)
        return np.asarray((frame.event_us["item_state"] == 0) | (status != Status.PRESENT))

    def refresh(self) -> bool:
        """Read the store now; whether it answered."""
        try:
            packed, self.degraded = self._fetch(PAUSE_S), False
        except RowsUnavailableError as error:
            if not self.degraded:
                logger.warning("items stay as last read: %s", error)
            self.degraded = True
            return False
        if packed == self._packed:  # most often nothing has changed, and nothing need be decoded
            return True
        self._packed, fresh = packed, self._decoded(packed)
        if not fresh.equals(self.frame):
            self.frame = fresh
            self._on_change()
        return True

    def close(self) -> None:
        """Stop refreshing."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def present(self, now_us: int) -> dict[str, Floats]:
        """`[I]` per item feature at `now_us`, NaN where unknown or too old."""
        return self._present(self.frame, now_us)

    def _present(self, frame: ItemFrame, now_us: int) -> dict[str, Floats]:
        present = {}
        for view, names in VIEWS.items():
            stale = self._status(frame, view, now_us) == Status.STALE
            for name in names:
                values = frame.columns[name]
                present[name] = np.where(stale, np.nan, values) if stale.any() else values
        return present

    def _status(self, frame: ItemFrame, view: str, now_us: int) -> NDArray[np.int8]:
        event_us = frame.event_us[view]
        return self._reader.views[view].status(event_us, np.full(len(event_us), now_us, dtype=np.int64))

    def _first(self, snapshot: Snapshot) -> ItemFrame:
        """From the store; if it is down, from the file that the features were built with."""
        try:
            self._packed = self._fetch(0.0)
            return self._decoded(self._packed)
        except RowsUnavailableError as error:
            logger.warning("items are read from the file of the run: %s", error)
            self.degraded = True
            at = np.full(len(snapshot.catalogue), int(snapshot.as_of.timestamp() * 1e6), dtype=np.int64)
            return ItemFrame(snapshot.item, dict.fromkeys(VIEWS, at))

    def _fetch(self, pause_s: float) -> list[bytes]:
        """Every item as the store packs it, in the order of the catalogue.

        In pieces with pauses, so that decisions are never held up for long by the reading of thousands.
        """
        packed: list[bytes] = []
        for start in range(0, len(self._ids), PIECE):
            if start and pause_s:
                self._stop.wait(pause_s)
            # Whatever its age: what is too old is decided when it is used.
            packed += self._reader.fetch("item_id", self._ids[start : start + PIECE], 0).partitions
        return packed

    def _decoded(self, packed: list[bytes]) -> ItemFrame:
        fetched = Fetched(packed, self._reader.views, np.zeros(len(packed), dtype=np.int64))
        columns: dict[str, Floats] = {}
        event_us: dict[str, Ints] = {}
        for view, names in VIEWS.items():
            block = fetched.block(view)
            event_us[view] = block.event_us
            columns |= {name: block.values[name] for name in names}
        return ItemFrame(columns, event_us)

    def _run(self) -> None:
        while not self._stop.wait(self._refresh_s):
            try:
                self.refresh()
            except Exception as error:  # a thread that dies would leave items as they are for ever, unseen
                logger.error("items cannot be refreshed: %r", error)
                self.degraded = True
