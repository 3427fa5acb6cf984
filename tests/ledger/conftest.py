"""The same ledger tests on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ledger_cases import KEY, NOW, MakeDecision, actions
from sqlalchemy import event

from qiance.domain import Decision
from qiance.ledger import Ledger
from qiance.ledger.candidates import content_of


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres")())


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An open ledger; every statement it sends must name the tenant."""
    opened = Ledger.open(url, key=KEY)
    unscoped: list[str] = []

    def watch(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN") and "tenant_id" not in statement:
            unscoped.append(statement)

    event.listen(opened.engine, "before_cursor_execute", watch)
    yield opened
    opened.close()
    assert unscoped == []


@pytest.fixture
def make() -> MakeDecision:
    """Builds decisions among the actions of `ledger_cases`; keyword arguments replace single fields."""
    random = np.random.default_rng(7)

    def decision(width: int = 4, **changes: object) -> Decision:
        chosen = changes.get("chosen", 1 if width > 1 else 0)
        fields: dict[str, object] = {
            "decision_id": secrets.token_hex(8),
            "tenant_id": "default",
            "request_id": None,
            "pseudonym": "0f" * 16,
            "surface": "home",
            "decided_at": NOW,
            "candidates": tuple(action.action_id for action in actions(width)),
            "candidate_set": content_of(actions(width))[0],
            "admissible": np.packbits(np.ones(width, dtype=bool), bitorder="little").tobytes(),
            "scores": random.normal(size=width).astype("<f4").tobytes(),
            "chosen": chosen,
            "propensity": 1.0 / width,
            "uniform": float(random.random()),
            "epsilon": 0.1,
            "shadow_price": 0.5,
            "channel": "email" if chosen else "none",
            "holdout": False,
            "model_version": "model-1",
            "policy_version": "policy-1",
            "degraded": (),
            "serial": 3,
            "items": "",
            "user_row": b"",
        }
        return Decision(**(fields | changes))  # type: ignore[arg-type]

    return decision
