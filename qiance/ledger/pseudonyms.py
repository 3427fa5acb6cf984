"""Random stand-ins for user ids: the ledger never holds an id, only a keyed hash that finds its pseudonym."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from qiance.ledger.database import Database, chunks, insert_ignoring
from qiance.ledger.records import LedgerError
from qiance.ledger.schema import erasures, key_checks, pseudonyms

KEY_BYTES = 32
LEAST_KEY_BYTES = 16

_FIND = select(pseudonyms.c.lookup, pseudonyms.c.pseudonym).where(
    pseudonyms.c.tenant_id == bindparam("tenant"),
    pseudonyms.c.lookup.in_(bindparam("lookups", expanding=True)),
)
_LAST_ERASED = (
    select(erasures.c.lookup, func.max(erasures.c.erased_at))
    .where(
        erasures.c.tenant_id == bindparam("tenant"),
        erasures.c.lookup.in_(bindparam("lookups", expanding=True)),
    )
    .group_by(erasures.c.lookup)
)
_FINGERPRINT = select(key_checks.c.fingerprint).where(key_checks.c.tenant_id == bindparam("tenant"))


def load_or_create_key(path: Path) -> bytes:
    """The secret key in `path`; if there is none, 32 random bytes are put there, readable by the owner only.

    Safe under concurrent callers: all get the same key. Raises LedgerError if the file is too short.
    """
    path = Path(path)
    if not path.exists():
        _create_key(path)
    try:
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"pseudonym_key_file: {path} cannot be read ({error.strerror})") from error
    if len(key) < LEAST_KEY_BYTES:
        raise LedgerError(
            f"pseudonym_key_file: {path} holds {len(key)} bytes, a key has at least {LEAST_KEY_BYTES}; "
            "restore it from a backup (a new key makes every known user a stranger)"
        )
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails if another process was first: then its key is the key
        except FileExistsError:
            return
    finally:
        draft.unlink()


def lookup_of(key: bytes, tenant: str, user_id: str) -> str:
    """HMAC-SHA256(key, tenant ∥ 0 ∥ user id), hex: the same id has unrelated hashes in two tenants."""
    if not isinstance(user_id, str) or not user_id:
        raise ValueError(f"user_id: {user_id!r} is not a non-empty text")
    message = tenant.encode() + b"\x00" + user_id.encode("utf-8", "surrogatepass")
    return hmac.new(key, message, hashlib.sha256).hexdigest()


class Pseudonyms(Database):
    """Get-or-create of pseudonyms."""

    def pseudonym(self, user_id: str) -> str:
        """The pseudonym of `user_id`, made on first sight."""
        return self.pseudonyms([user_id])[0]

    def pseudonyms(self, user_ids: Sequence[str]) -> list[str]:
        """One pseudonym per id, in order; made where there is none, the same one for every caller."""
        lookups = [self._lookup(user_id) for user_id in user_ids]
        found = self._find(lookups)
        # Again where an erasure came between the making and the finding.
        while missing := list(dict.fromkeys(lookup for lookup in lookups if lookup not in found)):
            self._create(missing)
            found |= self._find(missing)
        return [found[lookup] for lookup in lookups]

    def resolve(self, user_ids: Sequence[str]) -> dict[str, str]:
        """user id → pseudonym for the ids that have one; makes none."""
        lookups = {user_id: self._lookup(user_id) for user_id in user_ids}
        found = self._find(list(lookups.values()))
        return {user_id: found[lookup] for user_id, lookup in lookups.items() if lookup in found}

    def _lookup(self, user_id: str) -> str:
        return lookup_of(self._key, self.tenant, user_id)

    def _find(self, lookups: Sequence[str]) -> dict[str, str]:
        with self.read() as connection:
            return {
                lookup: pseudonym
                for part in chunks(lookups)
                for lookup, pseudonym in connection.execute(_FIND, {"tenant": self.tenant, "lookups": part})
            }

    def _last_erased(self, lookups: Sequence[str]) -> dict[str, datetime]:
        """lookup → when its user was last erased, for those who were."""
        with self.read() as connection:
            return {
                lookup: at
                for part in chunks(lookups)
                for lookup, at in connection.execute(_LAST_ERASED, {"tenant": self.tenant, "lookups": part})
            }

    def _create(self, lookups: Sequence[str]) -> None:
        with self.write() as connection:
            connection.execute(insert_ignoring(self.dialect, pseudonyms), self._new_rows(lookups))

    def _new_rows(self, lookups: Sequence[str]) -> list[dict[str, Any]]:
        now = self._now()
        # Sorted, so that two callers with the same users wait for each other instead of deadlocking.
        return [
            {
                "tenant_id": self.tenant,
                "lookup": lookup,
                "pseudonym": secrets.token_hex(16),
                "created_at": now,
            }
            for lookup in sorted(lookups)
        ]

    def _claim_key(self, connection: Connection) -> None:
        """Notes which key the tenant's pseudonyms are made with, if none is noted yet."""
        row = {"tenant_id": self.tenant, "fingerprint": self._fingerprint()}
        connection.execute(insert_ignoring(self.dialect, key_checks), row)

    def _compare_key(self, connection: Connection) -> bool:
        """Whether a key is noted; refuses one other than that."""
        stored = connection.execute(_FINGERPRINT, {"tenant": self.tenant}).scalar_one_or_none()
        if stored is not None and not hmac.compare_digest(stored, self._fingerprint()):
            raise LedgerError(
                f"pseudonym_key_file: this is not the key that tenant {self.tenant!r} was made with; "
                "every known user would become a stranger. Restore the key file, or name another ledger.url"
            )
        return stored is not None

    def _fingerprint(self) -> str:
        return hmac.new(self._key, b"qiance pseudonym key check", hashlib.sha256).hexdigest()
