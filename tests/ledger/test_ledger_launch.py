"""A policy goes live by the gate or by a named person, and the audit log has it; decisions with outcomes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import LATER, NOW, MakeDecision, record_all

from qiance.domain import Outcome, OutcomeType, Purpose
from qiance.evaluate.gate import CampaignVerdict, Verdict
from qiance.ledger import NO_VERSION, GateClosedError, Ledger, Override
from qiance.ledger.decided import PAGE


def verdict(passed: bool, policy: str = "new", live: str = NO_VERSION) -> Verdict:
    one = CampaignVerdict("b1", 900, 1.0, passed, "because")
    return Verdict(policy, live, passed, "because", None, (one,))


def test_a_policy_that_passed_goes_live_with_its_verdict(ledger: Ledger) -> None:
    live = ledger.launch_policy("new", shadow_price=0.5, model="m2", by="mei", verdict=verdict(True))
    assert (live.policy, live.shadow_price, live.model) == ("new", 0.5, "m2")
    (line,) = ledger.audit_lines(1)
    assert (line.event, line.subject, line.by) == ("policy.launched", "new", "mei")
    assert line.detail["gate"] == verdict(True).told()
    assert (line.detail["instead_of"], line.detail["shadow_price"]) == (NO_VERSION, 0.5)


@pytest.mark.parametrize(
    ("policy", "judged", "message"),
    [
        ("new", None, "'new': was not judged; evaluate it first, or override the gate"),
        ("new", verdict(False), "the gate is closed: because"),
        ("new", verdict(True, "other"), "the verdict is of 'other' against 'none', and 'none' is live"),
        ("new", verdict(True, live="old"), "the verdict is of 'new' against 'old', and 'none' is live"),
        (NO_VERSION, verdict(True, NO_VERSION), "'none' is no policy; take the live one off"),
    ],
)
def test_without_the_gate_nothing_changes(
    ledger: Ledger, policy: str, judged: Verdict | None, message: str
) -> None:
    before = ledger.versions()
    with pytest.raises(GateClosedError, match=message):
        ledger.launch_policy(policy, shadow_price=0.5, verdict=judged)
    assert ledger.versions() == before
    assert ledger.audit_lines() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passed=st.booleans(), policy=st.sampled_from(["p1", "p2"]), judged=st.sampled_from(["p1", "p2"]))
def test_what_is_live_passed_or_was_overridden(
    ledger: Ledger, passed: bool, policy: str, judged: str
) -> None:
    before = ledger.versions()
    told = verdict(passed, judged, before.policy)
    try:
        after = ledger.launch_policy(policy, shadow_price=0.1, verdict=told)
    except GateClosedError:
        assert not (passed and judged == policy)
        assert ledger.versions() == before
    else:
        assert passed
        assert judged == policy == after.policy


def test_an_override_is_written_with_who_why_and_what_the_gate_said(ledger: Ledger) -> None:
    override = Override("mei", "the log is a week old, and the season begins")
    ledger.launch_policy("new", shadow_price=0.5, by="tool", verdict=verdict(False), override=override)
    assert ledger.versions().policy == "new"
    (line,) = ledger.audit_lines(1)
    assert (line.event, line.by, line.detail["reason"]) == ("policy.overridden", "mei", override.reason)
    assert line.detail["gate"]["passed"] is False
    ledger.launch_policy("older", shadow_price=0.5, override=override)
    assert ledger.audit_lines(1)[0].detail["gate"] is None


@given(by=st.text(" \t\n", max_size=3), reason=st.text(" \t\n", max_size=3))
def test_an_override_without_a_name_or_a_reason_is_refused(by: str, reason: str) -> None:
    for pair in ((by, "a reason"), ("mei", reason), (by, reason)):
        with pytest.raises(ValueError, match=r"override\.(by|reason): is empty; .* a named person"):
            Override(*pair)


def test_a_policy_is_taken_off_without_a_gate(ledger: Ledger) -> None:
    ledger.launch_policy("new", shadow_price=0.5, verdict=verdict(True))
    assert ledger.stop_policy("mei", "returns rose").policy == NO_VERSION
    (line,) = ledger.audit_lines(1)
    assert (line.event, line.subject, line.by) == ("policy.stopped", "new", "mei")


def test_decisions_come_with_their_sales_newest_first(ledger: Ledger, make: MakeDecision) -> None:
    user = ledger.pseudonyms(["u"])[0]
    made = [
        make(pseudonym=user, decided_at=NOW - timedelta(minutes=n // 3), decision_id=f"d{n:04}")
        for n in range(PAGE + 50)
    ]
    held = make(pseudonym=user, decision_id="held", holdout=True, chosen=0)
    record_all(ledger, [*made, held])
    ledger.record_outcomes(
        [
            Outcome("e1", "d0003", OutcomeType.CONVERSION, LATER, 900),
            Outcome("e2", "d0003", OutcomeType.REFUND, LATER, 200),
            Outcome("e3", "d0004", OutcomeType.CLICK, LATER),
        ]
    )
    everybody = frozenset(Purpose)
    pages = list(ledger.decided(NOW + timedelta(seconds=1), everybody))
    assert [len(page) for page in pages] == [PAGE, 50]
    found = [row for page in pages for row in page]
    expected = sorted(made, key=lambda d: (d.decided_at, d.decision_id), reverse=True)
    assert [row.decision.decision_id for row in found] == [d.decision_id for d in expected]
    assert {row.decision.decision_id: row.sales for row in found if row.sales} == {"d0003": 700}
    (early,) = ledger.decided(NOW - timedelta(minutes=340), everybody)
    assert {row.decision.decided_at for row in early} == {
        NOW - timedelta(minutes=minutes) for minutes in range(341, 350)
    }
    assert list(ledger.decided(LATER)) == [], "who was never asked did not agree"
