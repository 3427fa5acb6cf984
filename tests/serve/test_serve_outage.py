"""Several replicas hand over what each answered in an outage, in any order: nothing of it is lost."""

from __future__ import annotations

import json
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.domain import Outcome, OutcomeType
from serve.outage import WAIT, Outage
from serve.slates import Call
from serve.spool import Spool
from tests.serve.built_cases import Built
from tests.serve.serve_cases import Shop, open_shop

MAX_BYTES = 1_000_000
AT = datetime(2025, 5, 1, 10, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def outage_shop(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(built, tmp_path_factory.mktemp("outage")) as opened:
        yield opened


def open_outage(shop: Shop, folder: Path) -> Outage:
    """One that hands over when it is told to."""
    outage = Outage(shop.gateway.args, shop.ledger, Spool(folder, MAX_BYTES))
    outage._stop.set()
    outage._thread.join()
    return outage


def decide(shop: Shop, outage: Outage, user: str, request_id: str | None = None) -> str:
    (answer,) = outage.decide([Call(user, "home", AT, request_id, 1, None)], shop.gateway.watcher.state)
    return answer.decision_id


def sale(decision_id: str, number: int = 0) -> Outcome:
    return Outcome(f"{decision_id} {number}", decision_id, OutcomeType.CONVERSION, AT, 100)


def is_stored(shop: Shop, outcomes: Sequence[Outcome]) -> bool:
    receipt = shop.ledger.record_outcomes(outcomes)
    return receipt.duplicates == len(outcomes)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Replicas:
    """Replicas that share a folder, or have one each, and all that they answered."""

    shop: Shop
    folders: Sequence[Path]
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    decisions: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outages = [open_outage(self.shop, folder) for folder in self.folders]

    def decide(self, replica: int, request: int | None) -> None:
        """By the same user, so that a request is answered twice at the most of different replicas."""
        request_id = None if request is None else f"{self.name} {request}"
        self.decisions.append(decide(self.shop, self.outages[replica], f"user {self.name}", request_id))

    def keep(self, replica: int, which: int) -> None:
        """The client tells any replica."""
        if self.decisions:
            outcome = sale(self.decisions[which % len(self.decisions)], len(self.outcomes))
            self.outages[replica].keep([outcome])
            self.outcomes.append(outcome)

    def hand_over(self, replica: int, _: int | None) -> None:
        self.outages[replica].hand_over()

    def retry(self, replica: int, _: int | None) -> None:
        self.outages[replica].retry()

    def end(self, replica: int, _: int | None) -> None:
        """It leaves its file to another in its place."""
        self.outages[replica].close()
        self.outages[replica] = open_outage(self.shop, self.folders[replica])


REPLICAS = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["decide", "decide", "keep", "keep", "hand_over", "retry", "end"]),
        st.integers(0, REPLICAS - 1),
        st.integers(0, 3),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, shared=st.booleans(), order=st.permutations(range(REPLICAS)))
def test_in_whatever_order_replicas_hand_over_nothing_accepted_is_lost(
    outage_shop: Shop, steps: Sequence[tuple[str, int, int]], shared: bool, order: Sequence[int]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / ("all" if shared else str(n)) for n in range(REPLICAS)]
        replicas = Replicas(outage_shop, folders)
        for what, replica, number in steps:
            getattr(replicas, what)(replica, number)
        for replica in order:
            replicas.outages[replica].hand_over()
        for replica in order:
            replicas.outages[replica].retry()
        rows = [outage_shop.ledger.decision(decision_id) for decision_id in replicas.decisions]
        assert all(row is not None and row.action_id == "control" for row in rows)
        assert is_stored(outage_shop, replicas.outcomes)
        assert files(Path(root)) == []


@pytest.mark.parametrize("first", [0, 1], ids=["the decision first", "the outcome first"])
def test_an_outcome_waits_for_the_replica_that_has_its_decision(
    outage_shop: Shop, tmp_path: Path, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    decider, other = outages = [open_outage(outage_shop, tmp_path / name) for name in "ab"]
    decision_id = decide(outage_shop, decider, "u0")
    other.keep([sale(decision_id)])
    outages[first].hand_over()
    assert is_stored(outage_shop, [sale(decision_id)]) is False
    outages[1 - first].hand_over()
    assert other.retry() == first
    assert ("1 outcomes wait for decisions" in caplog.text) == bool(first)
    assert is_stored(outage_shop, [sale(decision_id)])
    assert "left out" not in caplog.text
    assert files(tmp_path) == []


def test_a_request_that_two_replicas_answered_is_logged_twice(
    outage_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client was told both ids, and may tell of either; the request keeps the name of one."""
    one, two = (open_outage(outage_shop, tmp_path / name) for name in "ab")
    ids = [decide(outage_shop, outage, "u0", "asked of two") for outage in (one, two)]
    two.keep([sale(ids[1])])
    caplog.set_level(logging.WARNING)
    one.hand_over()
    assert "without their request_id" not in caplog.text
    assert two.hand_over() == 2
    assert "1 decisions are logged without their request_id" in caplog.text
    rows = [outage_shop.log(decision_id).decision for decision_id in ids]
    assert [row.request_id for row in rows] == ["asked of two", None]
    assert rows[0].pseudonym == rows[1].pseudonym
    assert is_stored(outage_shop, [sale(ids[1])])
    assert outage_shop.decide("u0", request_id="asked of two")["decision_id"] == ids[0]


def test_a_request_that_the_ledger_had_before_is_logged_again(outage_shop: Shop, tmp_path: Path) -> None:
    """The ledger stopped after it had stored an answer, or the client asks again in the outage."""
    before = outage_shop.decide("u1", request_id="asked before")["decision_id"]
    outage = open_outage(outage_shop, tmp_path)
    told = decide(outage_shop, outage, "u1", "asked before")
    outage.keep([sale(told)])
    outage.hand_over()
    assert outage_shop.log(told).decision.request_id is None
    assert is_stored(outage_shop, [sale(told)])
    assert outage_shop.decide("u1", request_id="asked before")["decision_id"] == before


def test_what_was_handed_over_before_is_not_logged_again(
    outage_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that ends before its file is gone leaves what the ledger has."""
    outage = open_outage(outage_shop, tmp_path)
    ids = [decide(outage_shop, outage, "u2", request_id) for request_id in ("handed over twice", None)]
    outage.keep([sale(ids[0])])
    (path,) = files(tmp_path)
    content = path.read_bytes()
    outage.hand_over()
    path.write_bytes(content)
    assert outage.hand_over() == 3
    assert outage_shop.log(ids[0]).decision.request_id == "handed over twice"
    assert "without their request_id" not in caplog.text


def test_an_outcome_waits_for_a_day_and_then_the_log_says_so(
    outage_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage = open_outage(outage_shop, tmp_path)
    outage.keep([sale("made up", n) for n in range(3)])
    assert outage.hand_over() == 0
    (path,) = files(tmp_path)
    for age, left in ((WAIT - timedelta(minutes=5), 3), (WAIT, 0)):
        waiting = [json.loads(line) for line in path.read_text().splitlines()]
        tried = (datetime.now(UTC) - age).isoformat()
        path.write_text("".join(json.dumps({**entry, "tried_at": tried}) + "\n" for entry in waiting))
        assert outage.retry() == 3 - left
    assert "left out: {'unknown_decision': 3}" in caplog.text
    assert files(tmp_path) == []


def test_what_the_ledger_never_takes_is_counted_and_does_not_wait(
    outage_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage = open_outage(outage_shop, tmp_path)
    known = outage_shop.decide("u3")["decision_id"]
    bad = Outcome("bad", known, OutcomeType.CLICK, AT, 5)
    outage.keep([bad, sale(known)])
    assert outage.hand_over() == 2
    assert "left out: {'invalid': 1}" in caplog.text
    assert is_stored(outage_shop, [sale(known)])
    assert files(tmp_path) == []


def test_nothing_of_who_was_erased_waits(outage_shop: Shop, tmp_path: Path) -> None:
    outage = open_outage(outage_shop, tmp_path)
    decision_id = decide(outage_shop, outage, "u4")
    outage.keep([sale(decision_id)])
    outage_shop.ledger.begin_erasure("u4", "test", "asked for it")
    outage.hand_over()
    assert outage_shop.ledger.decision(decision_id) is None
    assert files(tmp_path) == []


def test_what_waits_is_tried_again_unasked(outage_shop: Shop, tmp_path: Path) -> None:
    decider = open_outage(outage_shop, tmp_path / "a")
    decision_id = decide(outage_shop, decider, "u0")
    spool = Spool(tmp_path / "b", MAX_BYTES)
    other = Outage(outage_shop.gateway.args, outage_shop.ledger, spool)
    try:
        other.keep([sale(decision_id)])
        assert within(30.0, lambda: spool.is_empty and spool.has_waiting)
        decider.hand_over()
        assert within(30.0, lambda: not spool.has_waiting)
    finally:
        other.close()
    assert is_stored(outage_shop, [sale(decision_id)])
