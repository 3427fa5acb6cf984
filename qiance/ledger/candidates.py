"""Candidate sets: the actions that decisions chose among, stored once by the hash of their content."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, bindparam, select

from qiance.domain import Action
from qiance.ledger.codec import action_from_dict, action_to_dict
from qiance.ledger.database import Database, checked, insert_ignoring
from qiance.ledger.schema import candidate_sets

SET_ID_LENGTH = 32  # half a SHA-256, in hex
_READ_BY = "words_read_by"  # a key of an entry beside those of the action
_KEPT = 64  # sets in memory; a replica decides with one at a time
_FIND = select(candidate_sets.c.set_id, candidate_sets.c.payload).where(
    candidate_sets.c.tenant_id == bindparam("tenant"),
    candidate_sets.c.set_id.in_(bindparam("wanted", expanding=True)),
)


class _Kept:
    """A set in memory: its actions, and their ids as the one tuple that its decisions share.

    read_by: action id → the encoder whose vector of its words was read.
    """

    __slots__ = ("actions", "ids", "read_by")

    def __init__(self, actions: tuple[Action, ...], read_by: Mapping[str, str]) -> None:
        self.actions, self.read_by = actions, read_by
        self.ids = tuple(action.action_id for action in actions)


class CandidateSets(Database):
    """Putting and finding candidate sets."""

    @cached_property
    def _kept(self) -> dict[str, _Kept]:
        return {}

    @cached_property
    def _keeping(self) -> threading.Lock:
        return threading.Lock()

    def put_candidates(self, actions: Sequence[Action], read_by: Mapping[str, str] | None = None) -> str:
        """Stores a set, unless it is there; its content hash, which decisions name. Durable on return.

        actions: in the order of the decisions' columns, `control` first. read_by: action id → the encoder
        whose vector of its words is read; those without one are not in it.
        """
        _check(actions)
        read_by = read_by or {}
        set_id, plain = content_of(actions, read_by)
        if set_id not in self._kept:
            row = {
                "tenant_id": self.tenant,
                "set_id": set_id,
                "payload": zlib.compress(plain),
                "created_at": self._now(),
            }
            with self.write() as connection:
                connection.execute(insert_ignoring(self.dialect, candidate_sets), row)
            self._keep(set_id, _Kept(tuple(actions), read_by))
        return set_id

    def candidates(self, set_id: str) -> tuple[Action, ...]:
        """The actions of a set, in order; ValueError if it was never put."""
        return self._found(set_id).actions

    def candidates_read_by(self, set_id: str) -> Mapping[str, str]:
        """What `put_candidates` was told; ValueError if the set was never put."""
        return self._found(set_id).read_by

    def _found(self, set_id: str) -> _Kept:
        found = self._kept.get(set_id)
        if found is None:
            with self.read() as connection:
                found = self._sets(connection, [set_id])[set_id]
        return found

    def _sets(self, connection: Connection, set_ids: Iterable[str]) -> dict[str, _Kept]:
        """set id → set, from memory where it is there; ValueError if one was never put."""
        wanted = set(set_ids)
        found = {name: kept for name in wanted if (kept := self._kept.get(name)) is not None}
        missing = sorted(wanted - found.keys())
        if missing:
            asking = {"tenant": self.tenant, "wanted": missing}
            for name, payload in connection.execute(_FIND, asking).all():
                found[name] = _unpack(payload)
                self._keep(name, found[name])
        for name in missing:
            if name not in found:
                raise ValueError(f"candidate_set: {name!r} is not stored; call put_candidates first")
        return found

    def _keep(self, set_id: str, kept: _Kept) -> None:
        with self._keeping:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[set_id] = kept


def content_of(actions: Sequence[Action], read_by: Mapping[str, str] | None = None) -> tuple[str, bytes]:
    """The hash that names a set, and the JSON that it is the hash of."""
    read = read_by or {}
    entries = [
        action_to_dict(action) | ({_READ_BY: read[action.action_id]} if action.action_id in read else {})
        for action in actions
    ]
    plain = json.dumps(entries, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    return hashlib.sha256(plain).hexdigest()[:SET_ID_LENGTH], plain


def _unpack(payload: bytes) -> _Kept:
    entries: list[Any] = json.loads(zlib.decompress(payload))
    return _Kept(
        tuple(action_from_dict(entry, f"candidates.{place}") for place, entry in enumerate(entries)),
        {entry["action_id"]: str(entry[_READ_BY]) for entry in entries if _READ_BY in entry},
    )


def _check(actions: Sequence[Action]) -> None:
    if not actions or not actions[0].is_control:
        raise ValueError("candidates: the first action must be control, which is always admissible")
    ids = [checked("candidates.action_id", action.action_id) for action in actions]
    if len(set(ids)) != len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise ValueError(f"candidates.action_id: {twice!r} is there twice; give each action once")
