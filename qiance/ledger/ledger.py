"""The ledger: everything that must not be lost, of one tenant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError

from qiance.ledger.askers import Askers
from qiance.ledger.database import Clock, build_engine, parse_url, utc_now
from qiance.ledger.decided import Decided
from qiance.ledger.erasure import Erasures
from qiance.ledger.keys import Keys
from qiance.ledger.migrate import upgrade
from qiance.ledger.pseudonyms import LEAST_KEY_BYTES, load_or_create_key
from qiance.ledger.records import LedgerError, LedgerUnavailableError
from qiance.ledger.slates import Slates
from qiance.ledger.strategies import Strategies
from qiance.ledger.text_vectors import TextVectors
from qiance.settings import Settings


class Ledger(Erasures, Slates, Askers, Decided, Strategies, TextVectors, Keys):
    """Decisions, outcomes, budgets, strategies, versions, users, their consent and events, keys: of a tenant.

    Safe to use from several threads; every process opens its own (a connection does not survive a fork).
    Methods raise ValueError for what the caller must mend and LedgerUnavailableError when the database does
    not answer.
    """

    @classmethod
    def open(
        cls,
        url: str,
        *,
        tenant: str = "default",
        key: bytes,
        now: Clock = utc_now,
        system_now: Clock = utc_now,
        timeout_s: float | None = None,
    ) -> Self:
        """Opens the database at `url`, making or upgrading its schema first.

        url: `sqlite:///path` or `postgresql+psycopg://user@host/name`; key: the secret of the pseudonyms
        (`load_or_create_key`); now: the clock of what is recorded; system_now: that of leases. timeout_s: of
        a connection to PostgreSQL and of each statement, on SQLite of the wait for another writer, in
        seconds; after it LedgerUnavailableError is raised. None for work that may take long, as an upgrade
        of the schema always may. Raises LedgerError if the schema is newer than this code, the key is not
        the tenant's, or the file is no database; LedgerUnavailableError if it cannot be reached.
        """
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise LedgerError(
                f"timeout_s: {timeout_s!r} is not a positive number of seconds; None is no limit"
            )
        if len(key) < LEAST_KEY_BYTES:
            raise LedgerError(f"key: {len(key)} bytes; a pseudonym key has at least {LEAST_KEY_BYTES}")
        engine = build_engine(parse_url(url), timeout_s)
        try:
            upgrade(engine)
            ledger = cls(engine, tenant, key, now, system_now, timeout_s)
            ledger._ensure_tenant()
        except (OperationalError, InterfaceError) as error:
            engine.dispose()
            reason = str(error.orig).strip().split("\n", 1)[0]
            where = engine.url.render_as_string(hide_password=True)
            raise LedgerUnavailableError(f"ledger.url: {where} cannot be opened ({reason})") from error
        except (DatabaseError, ValueError, LedgerUnavailableError):
            engine.dispose()
            raise
        return ledger

    @classmethod
    def from_settings(cls, settings: Settings, workspace: Path, now: Clock = utc_now) -> Self:
        """The ledger that `settings` names; its file and key lie in `workspace` unless told otherwise."""
        key = load_or_create_key(settings.key_file(workspace))
        return cls.open(settings.ledger_url(workspace), tenant=settings.tenant, key=key, now=now)

    def _ensure_tenant(self) -> None:
        """The tenant's own rows; a read when they are there already, so opening stays cheap."""
        with self.read() as connection:
            if self._compare_key(connection):
                return
        with self.write() as connection:
            self._ensure_versions(connection)
            self._claim_key(connection)
            self._compare_key(connection)
