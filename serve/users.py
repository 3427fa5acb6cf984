"""A user's features at a decision: with consent, within their TTL, within a bounded wait, or by a default."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Purpose, UserTable
from qiance.features.defaults import Defaults
from qiance.features.online import Fetched, OnlineReader, Status
from qiance.features.rows import RowsUnavailableError
from qiance.features.session import Recent, no_session, session_features
from qiance.features.transforms import USER_CATEGORY_FEATURES, USER_FEATURES
from qiance.ledger import Ledger, LedgerUnavailableError
from qiance.workspace import Snapshot
from serve.profile import KnownRow, describe

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
logger = logging.getLogger(__name__)

# Words of `degraded` in an answer.
NO_CONSENT = "no_consent"
COLD_START = "cold_start"
STALE = "stale_features"
FROM_SNAPSHOT = "feature_snapshot"
FROM_DEFAULTS = "feature_defaults"
# Flags of users in whose place the population's means stand.
STRANGERS = frozenset({NO_CONSENT, COLD_START, STALE, FROM_DEFAULTS})
# How long a store that failed is left alone, so that its time-outs do not add to every decision.
PAUSE_S = 1.0


class Consents(Protocol):
    """Who agreed to being known."""

    def __call__(self, user_ids: Sequence[str]) -> Bools:
        """`[U]` whether personal features of the user may be read."""
        ...


class LedgerConsents:
    """Consent to personalisation, as the ledger has it now; while it does not answer nobody has agreed."""

    def __init__(self, ledger: Ledger, unrecorded: frozenset[Purpose]) -> None:
        self._ledger, self._unrecorded = ledger, unrecorded

    def __call__(self, user_ids: Sequence[str]) -> Bools:
        """See `Consents`."""
        try:
            found = self._ledger.consents(user_ids, self._unrecorded)
        except LedgerUnavailableError as error:
            logger.warning("consent cannot be looked up, so nobody is personalised: %s", error)
            return np.zeros(len(user_ids), dtype=np.bool_)
        return np.array([Purpose.PERSONALISATION in found[user] for user in user_ids], dtype=np.bool_)


@dataclass(frozen=True)
class UserRead:
    """Features of U users.

    known: `[U]` per user and session feature, NaN where unknown; filled: the same with defaults in the
    gaps; user_category: `[U, C]` per feature, NaN where there is no row; flags: degraded parts of each user.
    """

    known: UserTable
    filled: Mapping[str, Floats]
    user_category: Mapping[str, Floats]
    flags: tuple[tuple[str, ...], ...]

    @property
    def strangers(self) -> Bools:
        """`[U]` users of whom nothing is known."""
        return np.array([not STRANGERS.isdisjoint(of_user) for of_user in self.flags], dtype=np.bool_)


class LiveUsers:
    """Reads users from the online store, from the snapshot while the store is down, else by defaults."""

    def __init__(self, reader: OnlineReader, consents: Consents, snapshot: Snapshot) -> None:
        self._reader, self._consents, self._snapshot = reader, consents, snapshot
        self._defaults = Defaults.learn(snapshot.users.columns)
        self._row = {user: row for row, user in enumerate(snapshot.users.user_ids)}
        self._category = {name: column for column, name in enumerate(snapshot.categories)}
        self._paused_until = 0.0

    def read(
        self, user_ids: Sequence[str], categories: Sequence[str], now_us: Ints, allowed: Bools
    ) -> UserRead:
        """Features of `user_ids` at `now_us` `[U]`; of the categories only `categories` are read.

        allowed: `[U]` whether personal features of the user may be read.
        """
        if len(user_ids) and allowed.all():  # most often: nothing need be put together
            found = self._known(user_ids, categories, now_us)
            known = found.known.columns
            return UserRead(
                UserTable(tuple(user_ids), known), self._filled(known), found.user_category, found.flags
            )
        known, category, flags = self._empty(len(user_ids), len(self._snapshot.categories))
        places = np.flatnonzero(allowed).tolist()
        for place in np.flatnonzero(~allowed).tolist():
            flags[place] = (NO_CONSENT,)
        if len(places):
            found = self._known([user_ids[place] for place in places], categories, now_us[places])
            for name, values in found.known.columns.items():
                known[name][places] = values
            for name, values in found.user_category.items():
                category[name][places] = values
            for place, flag in zip(places, found.flags, strict=True):
                flags[place] = flag
        table = UserTable(tuple(user_ids), known)
        return UserRead(table, self._filled(known), category, tuple(flags))

    def allowed(self, user_ids: Sequence[str]) -> Bools:
        """`[U]` whether personal features of the user may be read."""
        return self._consents(user_ids)

    def describe(self, user_id: str, now_us: int) -> list[KnownRow]:
        """Every row that is known of a user at `now_us`; raises RowsUnavailableError."""
        return describe(self._reader, bool(self._consents([user_id])[0]), user_id, now_us)

    def _known(self, ids: Sequence[str], categories: Sequence[str], now_us: Ints) -> UserRead:
        """Users who agreed to being known, without defaults."""
        fetched = self._fetch(ids, now_us)
        if fetched is None:
            return self._from_snapshot(ids, now_us)
        return self._from_store(fetched, categories)

    def _empty(
        self, users: int, categories: int
    ) -> tuple[dict[str, Floats], dict[str, Floats], list[tuple[str, ...]]]:
        known = {name: np.full(users, np.nan) for name in USER_FEATURES} | no_session(users)
        category = {name: np.full((users, categories), np.nan) for name in USER_CATEGORY_FEATURES}
        return known, category, [()] * users

    def _filled(self, known: Mapping[str, Floats]) -> dict[str, Floats]:
        return self._defaults.fill(known)

    def _fetch(self, ids: Sequence[str], now_us: Ints) -> Fetched | None:
        """What the store has, or None while it does not answer."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            return self._reader.fetch("user_id", ids, now_us)
        except RowsUnavailableError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            logger.warning("users are read from the snapshot for %g s: %s", PAUSE_S, error)
            return None

    def _from_store(self, fetched: Fetched, categories: Sequence[str]) -> UserRead:
        profile, session = fetched.block("user_profile"), fetched.block("user_session")
        size = len(profile.status)
        known = {name: profile.values[name] for name in USER_FEATURES}
        lists = (session.lists[name] for name in ("event_times", "event_types", "event_items"))
        recent = [Recent(*one) if one[0] is not None else None for one in zip(*lists, strict=True)]
        known |= session_features(recent, fetched.now_us)
        matrix = fetched.matrix("user_category", categories)
        columns = [self._category[name] for name in categories]
        category = {}
        for name in USER_CATEGORY_FEATURES:
            category[name] = np.full((size, len(self._category)), np.nan)
            category[name][:, columns] = matrix.values[name]
        flags = tuple(_flag_of(Status(status)) for status in profile.status)
        return UserRead(UserTable((), known), {}, category, flags)

    def _from_snapshot(self, ids: Sequence[str], now_us: Ints) -> UserRead:
        """The users as they were when the snapshot was made; too old or unknown is left to defaults."""
        snapshot, spec = self._snapshot, self._reader.views["user_profile"]
        as_of = np.full(len(ids), int(snapshot.as_of.timestamp() * 1e6), dtype=np.int64)
        fresh = spec.status(as_of, now_us) == Status.PRESENT
        rows = np.array([self._row.get(user, -1) for user in ids], dtype=np.int64)
        usable = fresh & (rows >= 0)
        known, category, _ = self._empty(len(ids), len(snapshot.categories))
        for name in USER_FEATURES:
            known[name][usable] = snapshot.users.columns[name][rows[usable]]
        for name in USER_CATEGORY_FEATURES:
            category[name][usable] = snapshot.user_category[name][rows[usable]]
        flags = tuple((FROM_SNAPSHOT,) if found else (FROM_DEFAULTS,) for found in usable)
        return UserRead(UserTable((), known), {}, category, flags)


def _flag_of(status: Status) -> tuple[str, ...]:
    return {Status.PRESENT: (), Status.MISSING: (COLD_START,), Status.STALE: (STALE,)}[status]
