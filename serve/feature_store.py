"""The service's way to Feast: definitions are resolved once, rows are read past Feast's own client."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from qiance.domain import Purpose
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.online import OnlineReader, ViewSpec
from qiance.features.packed import RowLayout
from qiance.features.rows import RedisRows, Rows, SqliteRows
from qiance.features.session import MAX_EVENTS, Recent
from qiance.ledger import Ledger
from qiance.ledger.schema import to_micros

SESSION_SOURCE = "session_events"
# Longer than any session: what an unbroken visit of a day began with no longer matters.
SESSION_REACH = timedelta(hours=24)
_MICROSECOND = timedelta(microseconds=1)


def open_reader(repository: Path, timeout_s: float) -> OnlineReader:
    """A reader of every view of the staged repository; `timeout_s` bounds each wait for the store.

    Raises ValueError if the repository does not serve `EFFECT_SCHEMA`, or keeps its rows in a store that
    the service cannot read.
    """
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(repository))
    names = [service.name for service in store.list_feature_services()]
    if EFFECT_SCHEMA.service not in names:
        raise ValueError(
            f"{repository}: has no feature service {EFFECT_SCHEMA.service!r} (has "
            f"{', '.join(names) or 'none'}); build the features again with this version"
        )
    return OnlineReader(
        _rows(store.config, repository, timeout_s), [_spec(v) for v in store.list_feature_views()]
    )


def _spec(view: Any) -> ViewSpec:
    layout = RowLayout.of(view.name, [(field.name, str(field.dtype)) for field in view.features])
    ttl = view.ttl // _MICROSECOND if view.ttl else None
    return ViewSpec(layout, tuple(view.join_keys), ttl)


def _rows(config: Any, repository: Path, timeout_s: float) -> Rows:
    online = config.online_store
    kind = str(online.type).rsplit(".", 1)[-1]
    if kind == "PackedSqliteOnlineStore":
        path = Path(online.path)
        return SqliteRows(path if path.is_absolute() else repository / path, config.project, timeout_s)
    if kind == "PackedRedisOnlineStore":
        return RedisRows(online.connection_string, config.project, timeout_s)
    raise ValueError(
        f"online_store.type: {online.type!r} cannot be read here; "
        "use feature_repo.packed_store.PackedSqliteOnlineStore or …PackedRedisOnlineStore"
    )


class SessionPusher:
    """Turns a user's recent events into session features and pushes them through Feast."""

    def __init__(self, ledger: Ledger, repository: Path, unrecorded: frozenset[Purpose]) -> None:
        from feast import FeatureStore

        self._ledger, self._unrecorded = ledger, unrecorded
        self._store = FeatureStore(repo_path=str(repository))

    def publish(self, user_ids: list[str], at: datetime) -> None:
        """Make the events that the ledger has of `user_ids` visible to decisions.

        The row is worked out from the ledger, not added to: late and repeated events come out right, and
        of two replicas the one that saw more wins, since its newest event was received later.
        """
        import pandas as pd

        recent = self._ledger.recent_events(user_ids, at - SESSION_REACH, MAX_EVENTS, self._unrecorded)
        rows = [_session_row(user, found) for user, found in recent.items() if found]
        if rows:
            self._store.push(SESSION_SOURCE, pd.DataFrame(rows))


def _session_row(user_id: str, found: list[Any]) -> dict[str, Any]:
    events = [stored.event for stored in found]
    recent = Recent.of([(to_micros(e.occurred_at), e.type.value, e.item_id) for e in events])
    return {
        "user_id": user_id,
        "event_times": list(recent.times),
        "event_types": list(recent.types),
        "event_items": list(recent.items),
        "event_timestamp": max(e.occurred_at for e in events),
        "created": max(stored.received_at for stored in found),
    }
