"""Briefs and who works on them, on both databases."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from ledger_cases import BRIEF

from qiance.domain import BriefState
from qiance.ledger import BriefRecord, Ledger


def stored(ledger: Ledger, brief_id: str) -> BriefRecord:
    found = ledger.brief(brief_id)
    assert found is not None, f"{brief_id} is not there"
    return found


def taken_by(ledger: Ledger, holder: str, term_s: float = 60.0) -> BriefRecord:
    found = ledger.take_brief(holder, term_s)
    assert found is not None, "there was a brief to take"
    return found


def test_a_brief_is_followed_to_its_end(ledger: Ledger) -> None:
    ledger.put_brief(BRIEF)
    ledger.put_brief(replace(BRIEF, brief_id="b2"))
    record = stored(ledger, "b1")
    assert (record.brief, record.state, record.progress, record.message) == (
        BRIEF,
        BriefState.QUEUED,
        0.0,
        "",
    )
    assert ledger.waiting_briefs() == 2
    taken = taken_by(ledger, "w1", 60.0)
    assert (taken.brief, taken.state, taken.attempts) == (BRIEF, BriefState.RUNNING, 1)
    assert ledger.waiting_briefs() == 1
    assert ledger.keep_brief("b1", "w1", 0.5, "scoring 400 of 800", 60.0)
    record = stored(ledger, "b1")
    assert (record.state, record.progress, record.message) == (BriefState.RUNNING, 0.5, "scoring 400 of 800")
    assert [entry.brief.brief_id for entry in ledger.briefs(BriefState.QUEUED)] == ["b2"]
    assert len(ledger.briefs()) == 2
    assert ledger.brief("nobody") is None
    assert ledger.brief("nul\x00") is None


def test_brief_mistakes_are_named(ledger: Ledger) -> None:
    ledger.put_brief(BRIEF)
    with pytest.raises(ValueError, match="brief_id: 'b1' is taken"):
        ledger.put_brief(BRIEF)
    with pytest.raises(ValueError, match="brief_id: 'b9' is not known"):
        ledger.end_brief("b9", "w1", BriefState.DONE, "")
    with pytest.raises(ValueError, match="state: 'running' is no end; use done, failed or cancelled"):
        ledger.end_brief("b1", "w1", BriefState.RUNNING, "")
    for progress in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"progress: .* is not a fraction"):
            ledger.keep_brief("b1", "w1", progress, "", 60.0)
    with pytest.raises(ValueError, match=r"term_s: 0.0 is outside \(0, 86400\] seconds"):
        ledger.take_brief("w1", 0.0)


def test_a_brief_of_a_worker_that_ended_is_taken_up_by_another(ledger: Ledger) -> None:
    ledger.put_brief(BRIEF)
    assert taken_by(ledger, "w1", 0.05).brief.brief_id == "b1"
    time.sleep(0.1)
    again = taken_by(ledger, "w2", 60.0)
    assert (again.brief.brief_id, again.attempts) == ("b1", 2)
    assert again.message == "begun anew: its worker ended (attempt 2 of 3)"
    assert not ledger.keep_brief("b1", "w1", 0.9, "late", 60.0)
    assert not ledger.end_brief("b1", "w1", BriefState.FAILED, "late")
    assert ledger.keep_brief("b1", "w2", 0.1, "going", 60.0)
    assert ledger.end_brief("b1", "w2", BriefState.DONE, "2 strategies")
    record = stored(ledger, "b1")
    assert (record.state, record.progress, record.message) == (BriefState.DONE, 1.0, "2 strategies")
    assert ledger.take_brief("w3", 60.0) is None


def test_a_renewed_term_keeps_others_away(ledger: Ledger) -> None:
    ledger.put_brief(BRIEF)
    assert taken_by(ledger, "w1", 0.05).brief.brief_id == "b1"
    assert ledger.keep_brief("b1", "w1", 0.1, "going", 60.0)
    time.sleep(0.1)
    assert ledger.take_brief("w2", 60.0) is None


def test_a_brief_that_ends_its_workers_fails_and_the_next_is_taken(ledger: Ledger) -> None:
    ledger.put_brief(BRIEF)
    ledger.put_brief(replace(BRIEF, brief_id="b2"))
    for attempt in range(1, 4):
        taken = taken_by(ledger, "w", 0.05)
        assert (taken.brief.brief_id, taken.attempts) == ("b1", attempt)
        time.sleep(0.1)
    other = taken_by(ledger, "w", 60.0)
    assert other.brief.brief_id == "b2"
    record = stored(ledger, "b1")
    assert record.state is BriefState.FAILED
    assert record.message.startswith("its worker ended 3 times")


def test_a_cancelled_brief_is_nobodys(ledger: Ledger) -> None:
    for name in ("b1", "b2", "b3"):
        ledger.put_brief(replace(BRIEF, brief_id=name))
    assert taken_by(ledger, "w1", 60.0).brief.brief_id == "b1"
    for name in ("b1", "b2"):
        record = ledger.cancel_brief(name, "by hand")
        assert record == (found := stored(ledger, name))
        assert (found.state, found.message) == (BriefState.CANCELLED, "by hand")
    assert not ledger.keep_brief("b1", "w1", 0.5, "going", 60.0)
    taken = taken_by(ledger, "w1", 60.0)
    assert taken.brief.brief_id == "b3"
    assert ledger.end_brief("b3", "w1", BriefState.DONE, "")
    ledger.cancel_brief("b3", "too late")
    assert stored(ledger, "b3").state is BriefState.DONE
    assert ledger.cancel_brief("nobody", "") is None


def test_no_brief_is_taken_by_two(ledger: Ledger) -> None:
    for number in range(12):
        ledger.put_brief(replace(BRIEF, brief_id=f"b{number}"))

    def worker(name: str) -> list[str]:
        found = []
        while (taken := ledger.take_brief(name, 60.0)) is not None:
            found.append(taken.brief.brief_id)
        return found

    with ThreadPoolExecutor(4) as pool:
        taken = [brief for found in pool.map(worker, "abcd") for brief in found]
    assert sorted(taken) == sorted(f"b{number}" for number in range(12))
