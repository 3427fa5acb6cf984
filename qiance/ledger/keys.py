"""API keys: shown once, kept as a hash, scoped."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError

from qiance.ledger.audit import Audit
from qiance.ledger.database import checked
from qiance.ledger.records import ApiKey, Principal, Scope
from qiance.ledger.schema import api_keys

PREFIX = "qk_"
_RANDOM_BYTES = 32
_VERIFY = select(api_keys.c.key_hash, api_keys.c.name, api_keys.c.scopes).where(
    api_keys.c.tenant_id == bindparam("tenant"),
    api_keys.c.key_hash == bindparam("wanted"),
    api_keys.c.revoked_at.is_(None),
)
_NO_HASH = "0" * 64


def hash_token(token: str) -> str:
    """SHA-256 of a token, hex.

    A fast hash is enough: a token is 256 random bits, so there is no dictionary to try against it, which
    is what slow, salted password hashes are for; and every request pays for this one.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Keys(Audit):
    """Making, checking and revoking API keys."""

    def create_key(self, name: str, scopes: Iterable[Scope | str], by: str = "system") -> str:
        """A new key's token, which is never shown again; ValueError if an active key has that name."""
        wanted = _parse_scopes(scopes)
        token = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        row = {
            "tenant_id": self.tenant,
            "key_hash": hash_token(token),
            "name": checked("name", name),
            "scopes": json.dumps(wanted),
            "created_at": self._now(),
            "revoked_at": None,
        }
        try:
            with self.write() as connection:
                connection.execute(api_keys.insert(), row)
                self._write_line(connection, "key.created", name, by, {"scopes": wanted})
        except IntegrityError:
            raise ValueError(
                f"name: {name!r} is an active key; revoke it first, or choose another name"
            ) from None
        return token

    def verify_key(self, token: str) -> Principal | None:
        """Who `token` stands for; None if it is unknown or revoked.

        The time taken tells nothing useful: what is compared is a hash that a caller cannot steer, and
        the comparison itself takes the same time for any two hashes.
        """
        wanted = hash_token(token)
        with self.read() as connection:
            row = connection.execute(_VERIFY, {"tenant": self.tenant, "wanted": wanted}).one_or_none()
        matches = hmac.compare_digest(_NO_HASH if row is None else row.key_hash, wanted)
        if row is None or not matches:
            return None
        return Principal(row.name, frozenset(map(Scope, json.loads(row.scopes))), self.tenant)

    def revoke_key(self, name: str, by: str = "system") -> None:
        """Ends an active key at once; ValueError if there is none of that name."""
        statement = (
            update(api_keys)
            .where(
                api_keys.c.tenant_id == self.tenant, api_keys.c.name == name, api_keys.c.revoked_at.is_(None)
            )
            .values(revoked_at=self._now())
        )
        checked("name", name)
        with self.write() as connection:
            if connection.execute(statement).rowcount == 0:
                raise ValueError(f"name: {name!r} is not an active key; see `qiance keys list`")
            self._write_line(connection, "key.revoked", name, by, "")

    def has_keys(self) -> bool:
        """Whether any key is active; without one only loopback may be served."""
        statement = (
            select(api_keys.c.name)
            .where(api_keys.c.tenant_id == self.tenant, api_keys.c.revoked_at.is_(None))
            .limit(1)
        )
        with self.read() as connection:
            return connection.execute(statement).first() is not None

    def keys(self) -> list[ApiKey]:
        """Every key, revoked ones too, oldest first."""
        statement = (
            select(api_keys)
            .where(api_keys.c.tenant_id == self.tenant)
            .order_by(api_keys.c.created_at, api_keys.c.name)
        )
        with self.read() as connection:
            rows = connection.execute(statement).all()
        return [
            ApiKey(row.name, frozenset(map(Scope, json.loads(row.scopes))), row.created_at, row.revoked_at)
            for row in rows
        ]


def _parse_scopes(scopes: Iterable[Scope | str]) -> list[str]:
    given = list(dict.fromkeys(scopes))
    known = [scope.value for scope in Scope]
    for scope in given:
        if scope not in known:
            raise ValueError(f"scopes: {str(scope)!r} is not one of {', '.join(known)}")
    if not given:
        raise ValueError(f"scopes: give at least one of {', '.join(known)}")
    return sorted(Scope(scope).value for scope in given)
