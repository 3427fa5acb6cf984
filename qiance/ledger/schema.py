"""Tables of the ledger, portable between SQLite and PostgreSQL; every one carries `tenant_id`.

Time is stored as integer microseconds since the Unix epoch (UTC): both databases sort and round-trip it
exactly, and neither's idea of a time zone can creep in. Amounts of money are integer minor units.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
TENANT_LENGTH = 64
ID_LENGTH = 200
ENCODER_LENGTH = 64
# SQLite numbers rows by itself only for the exact type INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")


def to_micros(value: datetime) -> int:
    """Microseconds since the epoch; a datetime without a time zone is refused."""
    if value.tzinfo is None:
        raise ValueError(f"time: {value.isoformat()} has no time zone; pass one in UTC")
    return (value - EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """The UTC instant `value` microseconds after the epoch."""
    return EPOCH + timedelta(microseconds=value)


class Instant(TypeDecorator[datetime]):
    """An aware datetime kept as integer microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:
        return None if value is None else from_micros(value)


def _tenant() -> Column[str]:
    return Column("tenant_id", String(TENANT_LENGTH), primary_key=True)


def _id(name: str, *, key: bool = False, null: bool = False) -> Column[str]:
    return Column(name, String(ID_LENGTH), primary_key=key, nullable=null)


def _pseudonym(*, key: bool = False) -> Column[str]:
    return Column("pseudonym", String(32), primary_key=key, nullable=False)


def _of_known_user() -> ForeignKeyConstraint:
    """What names a pseudonym that was erased meanwhile cannot be written."""
    return ForeignKeyConstraint(["tenant_id", "pseudonym"], ["pseudonyms.tenant_id", "pseudonyms.pseudonym"])


def _when(name: str, *, null: bool = False) -> Column[datetime]:
    return Column(name, Instant(), nullable=null)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row per tenant: proves that the pseudonym key is the one its rows were made with.
key_checks = Table("key_checks", metadata, _tenant(), Column("fingerprint", String(64), nullable=False))

# HMAC of the user id → random pseudonym; deleting a row forgets who the pseudonym was.
pseudonyms = Table(
    "pseudonyms",
    metadata,
    _tenant(),
    Column("lookup", String(64), primary_key=True),
    Column("pseudonym", String(32), nullable=False),
    _when("created_at"),
    Index("ux_pseudonyms_pseudonym", "tenant_id", "pseudonym", unique=True),
)

# Actions as compressed JSON, by the hash of their content: decisions name a set instead of repeating it.
candidate_sets = Table(
    "candidate_sets",
    metadata,
    _tenant(),
    Column("set_id", String(32), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    _when("created_at"),
)

# admissible: a bit per candidate; scores: '<f4' of the admissible ones, in order; user_row: packed.
# action_id and channel repeat the chosen entry so that joins and caps need not unpack.
decisions = Table(
    "decisions",
    metadata,
    _tenant(),
    _id("decision_id", key=True),
    _id("request_id", null=True),
    _id("pseudonym"),
    _id("surface"),
    _when("decided_at"),
    Column("candidate_set", String(32), nullable=False),
    Column("admissible", LargeBinary, nullable=False),
    Column("scores", LargeBinary, nullable=False),
    Column("chosen", Integer, nullable=False),
    _id("action_id"),
    Column("channel", String(16), nullable=False),
    Column("propensity", Double, nullable=False),
    Column("uniform", Double, nullable=False),
    Column("epsilon", Double, nullable=False),
    Column("shadow_price", Double, nullable=False),
    Column("holdout", Boolean, nullable=False),
    _id("model_version"),
    _id("policy_version"),
    Column("degraded", Text, nullable=False),
    Column("serial", BigInteger, nullable=False),
    _id("items"),
    Column("user_row", LargeBinary, nullable=False),
    Index("ux_decisions_request", "tenant_id", "request_id", unique=True),
    Index("ix_decisions_contacts", "tenant_id", "pseudonym", "decided_at", "channel"),
    Index("ix_decisions_decided_at", "tenant_id", "decided_at"),
)

outcomes = Table(
    "outcomes",
    metadata,
    _tenant(),
    _id("event_id", key=True),
    _id("decision_id"),
    Column("type", String(16), nullable=False),
    Column("value", BigInteger, nullable=False),
    _when("occurred_at"),
    _when("received_at"),
    ForeignKeyConstraint(["tenant_id", "decision_id"], ["decisions.tenant_id", "decisions.decision_id"]),
    Index("ix_outcomes_decision", "tenant_id", "decision_id"),
)

# The last check is what no code path can pass: a budget never holds more than its cap.
budgets = Table(
    "budgets",
    metadata,
    _tenant(),
    _id("budget_id", key=True),
    Column("cap", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    CheckConstraint("spent >= 0 AND reserved >= 0", name="not_negative"),
    CheckConstraint("spent + reserved <= cap", name="within_cap"),
)

reservations = Table(
    "reservations",
    metadata,
    _tenant(),
    _id("decision_id", key=True),
    _id("budget_id"),
    Column("amount", BigInteger, nullable=False),
    Column("certain", BigInteger, nullable=False),
    Column("settled", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    _when("expires_at"),
    ForeignKeyConstraint(["tenant_id", "decision_id"], ["decisions.tenant_id", "decisions.decision_id"]),
    ForeignKeyConstraint(["tenant_id", "budget_id"], ["budgets.tenant_id", "budgets.budget_id"]),
    Index("ix_reservations_due", "tenant_id", "state", "expires_at"),
)

# Slices of a budget that a replica may hand out by itself; what is not used of them is in budgets.reserved.
leases = Table(
    "leases",
    metadata,
    _tenant(),
    Column("lease_id", String(32), primary_key=True),
    _id("budget_id"),
    _id("holder"),
    Column("amount", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    _when("expires_at"),
    CheckConstraint("used >= 0 AND used <= amount", name="within_amount"),
    ForeignKeyConstraint(["tenant_id", "budget_id"], ["budgets.tenant_id", "budgets.budget_id"]),
)

# holder: the worker that has it until held_until; attempts: how often one began.
briefs = Table(
    "briefs",
    metadata,
    _tenant(),
    _id("brief_id", key=True),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", Double, nullable=False),
    Column("message", Text, nullable=False),
    _when("created_at"),
    _when("updated_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("holder", String(200), nullable=False, server_default=text("''")),
    _when("held_until", null=True),
    Index("ix_briefs_state", "tenant_id", "state", "created_at"),
)

strategies = Table(
    "strategies",
    metadata,
    _tenant(),
    _id("strategy_id", key=True),
    _id("brief_id"),
    Column("state", String(16), nullable=False),
    Column("payload", Text, nullable=False),
    _when("created_at"),
    _when("updated_at"),
    Index("ix_strategies_state", "tenant_id", "state"),
    Index("ix_strategies_brief", "tenant_id", "brief_id"),
)

# The bank of words. creative_id follows from the content, so a row's words never change; version counts
# within segment, channel, language and item. rules: version of the rule set that linted it last; checked:
# digest of everything which that result hangs on.
creatives = Table(
    "creatives",
    metadata,
    _tenant(),
    _id("creative_id", key=True),
    Column("version", Integer, nullable=False),
    _id("segment"),
    Column("channel", String(16), nullable=False),
    Column("language", String(16), nullable=False),
    _id("item_id", null=True),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("findings", Text, nullable=False),
    Column("rules", String(16), nullable=False),
    Column("checked", String(16), nullable=False),
    _id("by"),
    _when("created_at"),
    _when("changed_at"),
    Index("ix_creatives_state", "tenant_id", "state"),
    Index("ix_creatives_place", "tenant_id", "segment", "channel", "language"),
)

# What an encoder made of the words of creatives. digest: SHA-256 of the text, since equal words of two
# entries are one text; vector: float32, little-endian. Another encoder has rows of its own: nothing is mixed.
text_vectors = Table(
    "text_vectors",
    metadata,
    _tenant(),
    Column("encoder", String(ENCODER_LENGTH), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
    _when("created_at"),
)

# One row per tenant, polled by every replica.
versions = Table(
    "versions",
    metadata,
    _tenant(),
    Column("serial", BigInteger, nullable=False),
    _id("model"),
    _id("policy"),
    Column("shadow_price", Double, nullable=False),
    Column("strategies_serial", BigInteger, nullable=False),
    Column("killed", Boolean, nullable=False),
    _when("updated_at"),
)

# One row per tenant: the latest simulated instant.
clocks = Table("clocks", metadata, _tenant(), _when("now"))

api_keys = Table(
    "api_keys",
    metadata,
    _tenant(),
    Column("key_hash", String(64), primary_key=True),
    _id("name"),
    Column("scopes", Text, nullable=False),
    _when("created_at"),
    _when("revoked_at", null=True),
    Index(
        "ux_api_keys_active_name",
        "tenant_id",
        "name",
        unique=True,
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
)

audit_lines = Table(
    "audit_lines",
    metadata,
    Column("line", _Serial, primary_key=True, autoincrement=True),
    Column("tenant_id", String(TENANT_LENGTH), nullable=False),
    _when("at"),
    _id("event"),
    _id("subject"),
    _id("by"),
    Column("detail", Text, nullable=False),
    Index("ix_audit_lines_tenant", "tenant_id", "line"),
)

# What a user agreed to, as it is now; no row: never asked.
consents = Table(
    "consents",
    metadata,
    _tenant(),
    _pseudonym(key=True),
    Column("purpose", String(32), primary_key=True),
    Column("granted", Boolean, nullable=False),
    _when("changed_at"),
    _of_known_user(),
)

consent_changes = Table(
    "consent_changes",
    metadata,
    Column("change", _Serial, primary_key=True, autoincrement=True),
    Column("tenant_id", String(TENANT_LENGTH), nullable=False),
    _pseudonym(),
    Column("purpose", String(32), nullable=False),
    Column("granted", Boolean, nullable=False),
    _when("at"),
    _id("by"),
    _of_known_user(),
    Index("ix_consent_changes_user", "tenant_id", "pseudonym", "change"),
)

# wrapped: the user's random key, encrypted under one that is derived from the tenant's secret.
user_keys = Table(
    "user_keys",
    metadata,
    _tenant(),
    _pseudonym(key=True),
    Column("wrapped", LargeBinary, nullable=False),
    _when("created_at"),
    _of_known_user(),
)

# event_key: HMAC of the event id, which a shop may build from the user's; the id itself, item, words and
# value are in `payload`, encrypted under the user's key.
shop_events = Table(
    "shop_events",
    metadata,
    _tenant(),
    Column("event_key", String(64), primary_key=True),
    _pseudonym(),
    Column("type", String(16), nullable=False),
    _when("occurred_at"),
    _when("received_at"),
    Column("payload", LargeBinary, nullable=False),
    _of_known_user(),
    Index("ix_shop_events_user", "tenant_id", "pseudonym", "occurred_at"),
    Index("ix_shop_events_received", "tenant_id", "received_at"),
)

# Who was erased: a keyed hash of the user id, never the id. subject: the id, encrypted, while work is left.
erasures = Table(
    "erasures",
    metadata,
    _tenant(),
    Column("erasure_id", String(32), primary_key=True),
    Column("lookup", String(64), nullable=False),
    _when("erased_at"),
    _id("by"),
    Column("reason", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("subject", LargeBinary, nullable=True),
    Column("detail", Text, nullable=False),
    Index("ix_erasures_lookup", "tenant_id", "lookup", "erased_at"),
)

# Keyed hashes of pseudonyms and decision ids that are no more. Sorted by hash on disk, as is the table
# below: the order of insertion would tell which rows went together.
erased_marks = Table(
    "erased_marks",
    metadata,
    _tenant(),
    Column("mark", String(64), primary_key=True),
    sqlite_with_rowid=False,
)

# What the decisions of erased users add up to; nothing tells which of them were one user's.
erased_totals = Table(
    "erased_totals",
    metadata,
    _tenant(),
    Column("day", Instant(), primary_key=True),
    _id("action_id", key=True),
    _id("surface", key=True),
    Column("holdout", Boolean, primary_key=True),
    _id("model_version", key=True),
    _id("policy_version", key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("decisions", "clicks", "conversions", "sales", "events")
    ),
    sqlite_with_rowid=False,
)
