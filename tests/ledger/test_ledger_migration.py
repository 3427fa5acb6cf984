"""A ledger of the schema before: its decisions are read, replayed, counted and erased as before."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from ledger_cases import KEY, NOW, actions, reserve
from sqlalchemy import Engine, create_engine, text

import qiance.ledger
from qiance.decide.rule import decide, replay
from qiance.domain import CONTROL, Brief, Cap, Channel, Money, Objective
from qiance.ledger import Asker, ErasedDecisionError, Ledger
from qiance.ledger.codec import action_to_dict
from qiance.ledger.database import build_engine, parse_url
from qiance.ledger.migrate import VERSION_TABLE
from qiance.ledger.pseudonyms import lookup_of
from qiance.ledger.schema import to_micros

WIDTH, GONE = 6, "an action of a strategy that is no more"
IDS = (*(action.action_id for action in actions(WIDTH)), GONE)
NAME = "ab" * 16


def migrate(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(qiance.ledger.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        move = command.downgrade if current(engine) > revision else command.upgrade
        move(config, revision)


def current(engine: Engine) -> str:
    try:
        with engine.connect() as connection:
            return str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar())
    except Exception:
        return ""


def insert(engine: Engine, table: str, **row: Any) -> None:
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def old_decision(number: int, admissible: np.ndarray, epsilon: float) -> dict[str, Any]:
    """A row as the schema before held it, decided by the rule itself."""
    random = np.random.default_rng(number)
    cost = random.random((1, len(IDS)))
    made = decide(
        random.normal(size=(1, len(IDS))), cost, admissible[None], 0.7, epsilon, uniforms=[random.random()]
    )
    chosen = int(made.choice[0])
    return {
        "tenant_id": "default",
        "decision_id": f"d{number:04d}",
        "request_id": f"r{number}" if number % 2 else None,
        "pseudonym": NAME,
        "surface": "home",
        "decided_at": to_micros(NOW + timedelta(minutes=number)),
        "candidates": json.dumps(IDS),
        "scores": made.score[0].astype("<f4").tobytes(),
        "costs": cost[0].astype("<f8").tobytes(),
        "probabilities": made.probabilities[0].astype("<f8").tobytes(),
        "chosen": chosen,
        "action_id": IDS[chosen],
        "propensity": float(made.propensity[0]),
        "holdout": not admissible[1:].any(),
        "model_version": "m1",
        "policy_version": "p1",
        "degraded": '["predictor"]' if number % 3 else "[]",
        "snapshot": str(number),
        "uniform": float(made.uniforms[0]),
    }


@pytest.fixture
def old(url: str) -> tuple[str, list[dict[str, Any]]]:
    """A database of revision 0002: 40 decisions of a user, an outcome, a reservation and a strategy."""
    engine = build_engine(parse_url(url))
    migrate(engine, "0002")
    random = np.random.default_rng(5)
    rows = []
    for number in range(40):
        mask = random.random(len(IDS)) < 0.6
        mask[0] = True
        mask &= number % 7 > 0 or np.arange(len(IDS)) == 0
        rows.append(old_decision(number, mask, [0.1, 0.25, 1.0, 0.0][number % 4]))
    insert(
        engine, "pseudonyms", tenant_id="default", lookup=lookup_of(KEY, "default", "u"), pseudonym=NAME,
        created_at=0,
    )  # fmt: skip
    strategy = json.dumps({"actions": [action_to_dict(action) for action in actions(WIDTH)[1:]]})
    insert(
        engine, "strategies", tenant_id="default", strategy_id="s", brief_id="b", state="ended",
        payload=strategy, created_at=0, updated_at=0,
    )  # fmt: skip
    insert(engine, "budgets", tenant_id="default", budget_id="b", cap=100, spent=0, reserved=30)
    for row in rows:
        insert(engine, "decisions", **row)
    insert(
        engine, "reservations", tenant_id="default", decision_id="d0001", budget_id="b", amount=30, certain=3,
        settled=0, state="open", expires_at=to_micros(NOW),
    )  # fmt: skip
    insert(
        engine, "outcomes", tenant_id="default", event_id="e", decision_id="d0001", type="click", value=0,
        occurred_at=0, received_at=0,
    )  # fmt: skip
    engine.dispose()
    return url, rows


def test_old_decisions_are_read_and_their_choice_replays(old: tuple[str, list[dict[str, Any]]]) -> None:
    url, rows = old
    ledger = Ledger.open(url, key=KEY)
    for row in rows:
        decision = ledger.decision(row["decision_id"])
        assert decision is not None
        assert (decision.candidates, decision.action_id) == (IDS, row["action_id"])
        assert (decision.decided_at, decision.request_id) == (
            NOW + timedelta(minutes=int(row["snapshot"])),
            row["request_id"],
        )
        assert (decision.serial, decision.items, decision.user_row) == (int(row["snapshot"]), "", b"")
        assert decision.degraded == tuple(json.loads(row["degraded"]))
        probabilities = np.frombuffer(row["probabilities"], dtype="<f8")
        assert np.array_equal(decision.mask(), (probabilities > 0) | (np.arange(len(IDS)) == 0))
        logged = np.frombuffer(row["scores"], dtype="<f4")[decision.mask()]
        assert decision.scores == logged.tobytes()
        admissible = np.ones((1, len(logged)), dtype=bool)
        found = replay(logged[None], admissible, decision.epsilon, [decision.uniform])[0]
        assert np.flatnonzero(decision.mask())[found] == decision.chosen
        assert decision.propensity == row["propensity"]
    known = ledger.candidates(decision.candidate_set)
    assert known[:WIDTH] == actions(WIDTH)
    assert (known[-1].action_id, known[-1].strategy_id) == (GONE, "")
    ledger.close()


def test_old_contacts_still_count_and_old_money_is_still_held(
    old: tuple[str, list[dict[str, Any]]],
) -> None:
    url, rows = old
    ledger = Ledger.open(url, key=KEY)
    (known,) = ledger.identify(
        [Asker("u", "r3", NOW + timedelta(days=1))], [Cap(0, 7.0), Cap(0, 7.0, Channel.EMAIL)]
    )
    contacts = [row["action_id"] for row in rows if row["action_id"] != CONTROL]
    assert known.contacts == (len(contacts), sum(name != GONE for name in contacts))
    assert [decision.decision_id for decision in known.stored] == ["d0003"]
    assert (ledger.budget("b").reserved, ledger.budget("b").leased) == (30, 0)
    assert ledger.settle("d0001", 20) == 20
    assert ledger.decision_outcomes().to_pydict()["click"].count(1) == 1
    assert ledger.erase("u", by="test").removed["decisions"] == 40
    with pytest.raises(ErasedDecisionError):
        ledger.decision("d0001")
    ledger.close()


def test_a_new_decision_can_go_back_and_forth(old: tuple[str, list[dict[str, Any]]], make: Any) -> None:
    url, rows = old
    ledger = Ledger.open(url, key=KEY)
    fresh = make(width=5, request_id="fresh", user_row=b"row", pseudonym=NAME)
    assert reserve(ledger, fresh, "b", 5)
    ledger.close()
    engine = build_engine(parse_url(url))
    migrate(engine, "0002")
    with engine.connect() as connection:
        query = text("SELECT * FROM decisions ORDER BY decision_id")
        back = {row["decision_id"]: dict(row) for row in connection.execute(query).mappings()}
    engine.dispose()
    assert len(back) == 41
    for row in rows:
        same = {name for name, value in row.items() if back[row["decision_id"]][name] == value}
        assert row.keys() - same <= {"scores", "costs", "candidates", "probabilities", "holdout"}, row[
            "decision_id"
        ]
        assert json.loads(back[row["decision_id"]]["candidates"]) == list(IDS)
    ledger = Ledger.open(url, key=KEY)
    again = ledger.decision(fresh.decision_id)
    assert again is not None
    assert (again.scores, again.chosen, again.admissible) == (fresh.scores, fresh.chosen, fresh.admissible)
    assert again.user_row == b"", "what the schema before cannot hold is gone"
    assert ledger.budget("b").reserved == 35
    ledger.close()


def test_a_large_log_is_converted_page_by_page(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    engine = create_engine(url)
    migrate(engine, "0002")
    row = old_decision(1, np.ones(len(IDS), dtype=bool), 0.1)
    many = [row | {"decision_id": secrets.token_hex(8), "request_id": None} for _ in range(1_203)]
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO decisions ({names}) VALUES ({values})"), many)
    engine.dispose()
    ledger = Ledger.open(url, key=KEY)
    with ledger.read() as connection:
        query = "SELECT count(*), count(DISTINCT candidate_set), min(length(admissible)) FROM decisions"
        assert connection.exec_driver_sql(query).one() == (1_203, 1, 1)
    ledger.close()


def test_a_brief_that_was_running_is_taken_up_anew(url: str) -> None:
    """Before, a worker's end was not seen: such a brief ran for ever."""
    brief = Brief("b1", Objective.MARGIN, Money.of("10.00"), NOW, NOW + timedelta(days=1))
    ledger = Ledger.open(url, key=KEY)
    ledger.put_brief(brief)
    assert ledger.take_brief("w1", 60.0) is not None
    migrate(ledger.engine, "0004")
    migrate(ledger.engine, "0005")
    taken = ledger.take_brief("w2", 60.0)
    assert taken is not None
    assert (taken.brief, taken.attempts) == (brief, 1)
    assert ledger.cancel_brief("b1", "") is not None
    migrate(ledger.engine, "0004")
    with ledger.engine.connect() as connection:
        assert connection.execute(text("SELECT state FROM briefs")).scalar() == "failed"
    ledger.close()
