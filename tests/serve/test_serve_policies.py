"""Policies judged by what the service logged: over HTTP, from the command line, in shadow; and made live."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_cases import BRIEF, DAYS, START, Built, launch, train_model, user_ids, write_plan
from serve_cases import Shop, open_shop
from typer.testing import CliRunner

from qiance.cli.loop.service import app_args
from qiance.cli.main import app
from qiance.decide.rule import policy_probabilities, scores
from qiance.domain import Decision, Outcome, OutcomeType, Purpose
from qiance.launch import Evaluation, GateSetup, Launched, PolicyDesk, derive_plan, read_plan
from qiance.launch.log import LEARNED, NO_CHOICE, OTHER, UNSCORED, LogBuilder, Policy
from qiance.launch.scoring import open_rescorer
from qiance.ledger import GateClosedError, Ledger, Override, Scope
from qiance.settings import Settings
from qiance.workspace import Workspace
from serve.answers import Answer
from serve.args import AppArgs
from serve.assemble_planning import open_policy_desk
from serve.policies import PolicyJudge, PolicyService
from serve.schemas import DecisionRequest
from serve.slates import Call

CALLS, PER_DAY = 1_600, 200
NOW = START + timedelta(days=DAYS, hours=1)
MISERLY = 1_000.0  # a price at which no contact is worth its cost
EVERYBODY = frozenset(Purpose)


def answer_calls(shop: Shop, random: np.random.Generator) -> None:
    """Days of decisions for random users; whoever was contacted often buys."""
    users = list(user_ids())
    for day in range(CALLS // PER_DAY):
        at = NOW + timedelta(days=day - CALLS // PER_DAY)
        calls = [
            Call.of(DecisionRequest(user_id=str(random.choice(users)), surface="home", n=1 + n % 2), at)
            for n in range(PER_DAY)
        ]
        for n in range(0, PER_DAY, 32):
            answers = shop.service.engine.decide(calls[n : n + 32])
            assert all(isinstance(answer, Answer) for answer in answers)


def buy(ledger: Ledger, random: np.random.Generator) -> None:
    rows = ledger.decision_outcomes()
    outcomes = []
    pairs = zip(rows["decision_id"].to_pylist(), rows["action_id"].to_pylist(), strict=True)
    for number, (decision_id, action) in enumerate(pairs):
        if random.random() < (0.1 if action == "control" else 0.5):
            value = int(random.integers(1_500, 4_000))
            outcomes.append(Outcome(f"o{number}", decision_id, OutcomeType.CONVERSION, NOW, value))
    assert ledger.record_outcomes(outcomes).accepted == len(outcomes)


@pytest.fixture(scope="module")
def logged(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger: a miserly policy decided for days, and contacts would have sold more."""
    folder, random = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    with open_shop(built, folder, epsilon=0.4) as shop:
        launch(shop.ledger, miserly(built), MISERLY)
        shop.refresh()
        with pytest.MonkeyPatch.context() as patch:  # or intervals would miss once in a while
            patch.setattr("serve.slates.uniforms", lambda users, positions: random.random((users, positions)))
            answer_calls(shop, random)
        buy(shop.ledger, random)
    return folder


@pytest.fixture(scope="module")
def other(built: Built) -> str:
    """Version of another effect model, made today: after all decisions."""
    return train_model(built.workspace, built.snapshot, seed=5)


def miserly(built: Built) -> str:
    return write_plan(built.workspace, built.model, START + timedelta(days=DAYS), MISERLY)


def generous(built: Built) -> str:
    return write_plan(built.workspace, built.model, START + timedelta(days=DAYS), 0.0)


@pytest.fixture
def ledger(logged: Path, built: Built, tmp_path: Path) -> Iterator[Ledger]:
    """A copy to write to."""
    shutil.copy(logged / "ledger.db", tmp_path / "ledger.db")
    opened = built.open_ledger(tmp_path)
    yield opened
    opened.close()


def setup(**gate: Any) -> GateSetup:
    serve = {"epsilon": 0.4, "outcome_window_hours": 1e-3}
    privacy = {"unrecorded_consent": "granted"}
    return GateSetup.of(Settings.model_validate({"serve": serve, "privacy": privacy, "gate": gate}))


def desk(built: Built, ledger: Ledger, **gate: Any) -> PolicyDesk:
    return PolicyDesk(built.workspace, ledger, setup(**gate), lambda: NOW)


def test_a_better_policy_opens_the_gate_and_a_stricter_margin_closes_it(built: Built, ledger: Ledger) -> None:
    found = desk(built, ledger).evaluate(generous(built))
    assert found.verdict.passed, found.verdict.reason
    (one,) = found.verdict.campaigns
    assert (one.campaign, one.margin, one.decisions) == (BRIEF, 0.0, found.decisions)
    assert found.value - found.live_value == pytest.approx(found.improvement.value)
    # A sale of 2,750 on average earns 0.3 of it, 0.4 more of the contacts buy, and 0.6 more are contacted.
    # Pseudonyms are random, and so is who is held out: four standard errors, or it would miss now and then.
    gain = found.improvement
    assert abs(gain.value - 0.6 * 0.4 * 0.3 * 2_750) < gain.high - gain.low
    assert found.spend > found.live_spend
    assert "pacing will raise its price" in found.notes[-1]
    for gate in ({"margin": 10_000.0}, {"margins": {BRIEF: 10_000.0}}):
        closed = desk(built, ledger, **gate).evaluate(generous(built)).verdict
        assert not closed.passed
        assert closed.campaigns[0].margin == 10_000.0
    assert desk(built, ledger, margins={"another": 10_000.0}).evaluate(generous(built)).verdict.passed


def test_a_worse_policy_is_kept_out(built: Built, ledger: Ledger) -> None:
    launch(ledger, generous(built), 0.0)
    found = desk(built, ledger).evaluate(miserly(built))
    assert not found.verdict.passed
    assert found.improvement.high < 0
    with pytest.raises(ValueError, match="is live already"):
        desk(built, ledger).promote(generous(built), "mei")


def builder(built: Built, ledger: Ledger, policy: Policy, live: Policy) -> LogBuilder:
    campaigns = {s.strategy_id: s.brief_id for s in ledger.strategies()}
    price_of = {miserly(built): MISERLY}.get
    rescorer = open_rescorer(built.workspace, ledger)
    return LogBuilder(rescorer, policy, live, campaigns, price_of, 0.4, 0.3, 10_000)


def pages(ledger: Ledger) -> list[Decision]:
    found = ledger.decided(NOW, EVERYBODY)
    return [row.decision for page in found for row in page]


def test_the_live_policy_in_thought_is_the_one_that_logged(built: Built, ledger: Ledger) -> None:
    live = Policy(miserly(built), built.model, MISERLY)
    made = builder(built, ledger, replace(live, version="f" * 16), live)
    for page in ledger.decided(NOW, EVERYBODY):
        made.add(page)
    log = made.build()
    row = np.arange(len(log.bandit))
    np.testing.assert_array_equal(log.live[row, log.bandit.action], log.bandit.propensity)
    np.testing.assert_array_equal(log.policy, log.live)
    assert (np.diff(log.at) >= 0).all()
    assert made.left_out.keys() <= {NO_CHOICE}


def test_another_price_and_another_model_decide_as_the_rule_would(
    built: Built, ledger: Ledger, other: str
) -> None:
    live = Policy(miserly(built), built.model, MISERLY)
    rescorer = open_rescorer(built.workspace, ledger)
    row = next(
        row for page in ledger.decided(NOW, EVERYBODY) for row in page if len(row.decision.scores) > 20
    )
    for model in (built.model, other):
        made = builder(built, ledger, Policy("f" * 16, model, 0.3), live)
        made.add([row])
        log = made.build()
        found, mask = rescorer.score([row.decision], model), row.decision.mask()[None]
        score = scores(found.value, found.cost, 0.3)
        expected = policy_probabilities(score, np.zeros_like(score), mask, 0.0, 0.4)
        np.testing.assert_allclose(log.policy, expected)
        np.testing.assert_allclose(log.model, np.where(mask, found.margin, 0.0))


def test_what_pacing_did_is_done_to_the_other_policy_too(built: Built, ledger: Ledger) -> None:
    """The price was moved to a half: so would that of the challenger have been."""
    live = Policy(miserly(built), built.model, MISERLY)
    decision = replace(pages(ledger)[0], shadow_price=MISERLY / 2)
    made = builder(built, ledger, live, live)
    assert made._price(live, decision) == MISERLY / 2
    assert made._price(Policy("f" * 16, built.model, 0.8), decision) == pytest.approx(0.4)
    assert made._price(Policy("f" * 16, built.model, 0.8), replace(decision, policy_version="gone")) == 0.8


def test_what_the_model_may_have_learned_from_is_left_out(built: Built, ledger: Ledger, other: str) -> None:
    version = derive_plan(built.workspace, read_plan(built.workspace, miserly(built)), effect_model=other)
    found = desk(built, ledger).evaluate(version)
    assert not found.verdict.passed
    assert "no logged decision can be used" in found.verdict.reason
    assert found.left_out[LEARNED] > 1_000
    assert (found.value, found.improvement, found.decisions) == (None, None, 0)
    with pytest.raises(GateClosedError):
        ledger.launch_policy(version, shadow_price=1.0, verdict=found.verdict)


def test_what_cannot_be_scored_or_is_of_no_live_campaign_is_counted(built: Built, ledger: Ledger) -> None:
    rows = [row for page in ledger.decided(NOW, EVERYBODY) for row in page][:40]
    live = Policy(miserly(built), built.model, MISERLY)
    made = builder(built, ledger, live, live)
    made.add([replace(row, decision=replace(row.decision, user_row=b"")) for row in rows[:10]])
    made.add([replace(row, decision=replace(row.decision, items="0" * 64)) for row in rows[10:20]])
    made.campaign_of = {}
    made.add(rows[20:])
    assert made.left_out[UNSCORED] + made.left_out[NO_CHOICE] + made.left_out[OTHER] == 40
    assert made.left_out[OTHER] >= 15
    assert made.build() is None


def test_shadow_mode_shows_every_day_and_nothing_acts(built: Built, ledger: Ledger) -> None:
    before = ledger.versions(), len(ledger.audit_lines(1_000))
    found, days = desk(built, ledger, largest=2_000.0).shadow(generous(built))
    assert (ledger.versions(), len(ledger.audit_lines(1_000))) == before
    assert found.verdict.passed
    counted = [day.decisions for day in days]
    assert counted == sorted(set(counted))
    assert 5 <= len(days) <= CALLS // PER_DAY + 1
    assert all(day.low <= day.value <= day.high for day in days)
    assert days[-1].high - days[-1].low < days[0].high - days[0].low
    assert all(day.opens == (day.low > 0) for day in days), "one campaign, which all decisions are of"
    assert not any(day.opens for day in desk(built, ledger, margin=10_000.0).shadow(generous(built))[1])


class Local:
    """The judge in this process."""

    def __init__(self, judge: PolicyJudge) -> None:
        self.judge = judge

    async def evaluate(self, version: str) -> Evaluation:
        return await asyncio.to_thread(self.judge.evaluate, version, time.monotonic())

    async def promote(self, version: str, by: str, override: Override | None) -> Launched:
        return await asyncio.to_thread(self.judge.promote, version, by, override, time.monotonic())


@pytest.fixture
def shop(built: Built, logged: Path, tmp_path: Path) -> Iterator[Shop]:
    shutil.copy(logged / "ledger.db", tmp_path / "ledger.db")
    with open_shop(built, tmp_path, epsilon=0.4, outcome_window_hours=1e-3) as opened:
        serve(opened, 60.0)
        yield opened


def serve(shop: Shop, timeout_s: float) -> None:
    judge = PolicyJudge(open_policy_desk(shop.gateway.args, shop.ledger), shop.ledger, timeout_s)
    shop.gateway._policies = PolicyService(Local(judge))


def test_a_policy_is_judged_over_http(shop: Shop) -> None:
    answer = shop.post("/v1/policies/evaluate", {"policy_version": generous(shop.built)})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["opens"] is True
    assert (body["policy_version"], body["live_version"]) == (generous(shop.built), miserly(shop.built))
    assert body["improvement"]["low"] > 0
    assert body["campaigns"][0]["campaign"] == BRIEF
    assert body["diagnostics"]["effective_sample_size"] > 30
    assert body["decisions"] > 1_000
    assert body["since"] < body["until"]
    assert shop.ledger.versions().policy == miserly(shop.built), "nothing acts"


@pytest.mark.parametrize(
    ("version", "status", "message"),
    [
        ("0" * 16, 404, "policy version '0000000000000000' is not in the workspace"),
        ("../../etc/passwd", 422, "policy_version"),
        ("", 422, "policy_version"),
    ],
)
def test_a_policy_that_is_none_is_a_problem(shop: Shop, version: str, status: int, message: str) -> None:
    answer = shop.post("/v1/policies/evaluate", {"policy_version": version})
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert shop.post("/v1/policies/0000000000000000:promote", {}).status_code == 404


def test_an_evaluation_has_a_deadline(shop: Shop) -> None:
    serve(shop, 1e-6)
    answer = shop.post("/v1/policies/evaluate", {"policy_version": generous(shop.built)})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "gave up after" in answer.json()["detail"]


def test_a_policy_that_passes_is_made_live_over_http(shop: Shop) -> None:
    token = shop.ledger.create_key("mei", [Scope.APPROVE])
    headers = {"Authorization": f"Bearer {token}"}
    version = generous(shop.built)
    answer = shop.post(f"/v1/policies/{version}:promote", {}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["policy_version"], answer.json()["overridden"]) == (version, False)
    assert answer.json()["evaluation"]["opens"] is True
    live = shop.ledger.versions()
    assert (live.policy, live.shadow_price, live.model) == (version, 0.0, shop.built.model)
    (line,) = shop.ledger.audit_lines(1)
    assert (line.event, line.by, line.detail["gate"]["passed"]) == ("policy.launched", "mei", True)


def test_only_a_named_person_with_a_reason_overrides_the_gate(shop: Shop) -> None:
    launch(shop.ledger, generous(shop.built), 0.0)
    version = miserly(shop.built)
    path = f"/v1/policies/{version}:promote"
    closed = shop.post(path, {})
    assert closed.status_code == 409
    assert "the gate is closed: campaign brief-one: lower bound" in closed.json()["detail"]
    assert shop.post(path, {"override": True, "reason": "a"}).status_code == 403, "loopback is nobody"
    reader = {"Authorization": f"Bearer {shop.ledger.create_key('web', [Scope.READ, Scope.WRITE])}"}
    assert shop.post(path, {}, headers=reader).status_code == 403
    approver = {"Authorization": f"Bearer {shop.ledger.create_key('mei', [Scope.APPROVE])}"}
    for reason in ("", "  "):
        refused = shop.post(path, {"override": True, "reason": reason}, headers=approver)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "reason"
    assert shop.ledger.versions().policy == generous(shop.built)
    done = shop.post(path, {"override": True, "reason": "the budget is frozen"}, headers=approver)
    assert (done.status_code, done.json()["overridden"]) == (200, True)
    assert shop.ledger.versions().policy == version
    (line,) = shop.ledger.audit_lines(1)
    assert (line.event, line.by, line.detail["reason"]) == (
        "policy.overridden", "mei", "the budget is frozen",
    )  # fmt: skip
    assert line.detail["gate"]["passed"] is False


def test_an_override_does_not_wait_for_the_log(shop: Shop) -> None:
    serve(shop, 1e-6)
    headers = {"Authorization": f"Bearer {shop.ledger.create_key('mei', [Scope.APPROVE])}"}
    path = f"/v1/policies/{generous(shop.built)}:promote"
    assert shop.post(path, {}, headers=headers).status_code == 503
    done = shop.post(path, {"override": True, "reason": "now"}, headers=headers)
    assert (done.status_code, done.json()["evaluation"]) == (200, None)
    assert shop.ledger.audit_lines(1)[0].detail["gate"] is None


def test_a_live_policy_of_another_workspace_is_told(built: Built, ledger: Ledger) -> None:
    launch(ledger, "f" * 16, 1.0)
    with pytest.raises(ValueError, match=f"workspace: has no policy '{'f' * 16}', which is live"):
        desk(built, ledger).evaluate(generous(built))
    done = desk(built, ledger).promote(generous(built), "mei", Override("mei", "the other is lost"))
    assert (done.evaluation, done.overridden) == (None, True)
    assert ledger.versions().policy == generous(built)


def test_the_service_judges_by_the_settings(built: Built, ledger: Ledger) -> None:
    gate = {"margin": 1.5, "margins": {"b": 2.0}, "confidence": 0.9, "days": 7.0, "max_rows": 900}
    given = {"gate": gate, "data": {"cost_fraction": 0.6}, "serve": {"epsilon": 0.2}, "seed": 3}
    settings = Settings.model_validate(given)
    args = AppArgs.model_validate(app_args(built.workspace, settings, "system"))
    assert open_policy_desk(args, ledger)._setup == GateSetup.of(settings)
    assert args.gate.timeout_s == settings.gate.timeout_s


def test_a_policy_of_another_model_is_not_made_live_over_http(shop: Shop, other: str) -> None:
    base = read_plan(shop.built.workspace, miserly(shop.built))
    version = derive_plan(shop.built.workspace, base, effect_model=other)
    answer = shop.post(f"/v1/policies/{version}:promote", {})
    assert answer.status_code == 409
    assert f"qiance policies promote {version}" in answer.json()["detail"]


@pytest.fixture
def root(built: Built, logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose ledger has the decisions; the commands look at them years later."""
    folder = tmp_path / "workspace"
    generous(built), miserly(built)
    for part in ("snapshot", "artifacts", "frames", "secrets"):
        shutil.copytree(built.workspace.root / part, folder / part)
    shutil.copy(logged / "ledger.db", folder / "ledger.db")
    monkeypatch.setenv("QIANCE__SERVE__EPSILON", "0.4")
    monkeypatch.setenv("QIANCE__PRIVACY__UNRECORDED_CONSENT", "granted")
    return folder


def run(root: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["policies", *words, "--workspace", str(root)])
    return done.exit_code, done.output


def test_the_commands_judge_watch_and_launch(root: Path, built: Built) -> None:
    version = generous(built)
    code, told = run(root, "list", "--json")
    listed = json.loads(told)
    assert (code, [one["version"] for one in listed if one["live"]]) == (0, [miserly(built)])
    code, told = run(root, "evaluate", version)
    assert code == 0, told
    assert "the gate is open: campaign brief-one: lower bound" in " ".join(told.split())
    code, told = run(root, "shadow", version, "--json")
    document = json.loads(told[told.index("{") :])
    assert code == 0
    assert len(document["days"]) >= 5
    assert document["verdict"]["passed"] is True
    code, told = run(root, "shadow", version)
    assert code == 0
    assert "would open" in told
    code, told = run(root, "promote", version, "--by", "mei")
    assert code == 0, told
    assert f"{version} is live" in told


def test_the_command_overrides_with_name_and_reason_only(root: Path, built: Built) -> None:
    code, made = run(root, "create", "--shadow-price", "2000")
    assert code == 0, made
    version = made.split()[0]
    code, told = run(root, "promote", version)
    assert code == 1
    assert "--override-by NAME --reason TEXT" in told
    assert run(root, "promote", version, "--override-by", "mei")[0] != 0
    assert run(root, "promote", version, "--override-by", " ", "--reason", "x")[0] != 0
    assert run(root, "promote", version, "--reason", "x")[0] != 0
    code, told = run(root, "promote", version, "--override-by", "mei", "--reason", "stock is short")
    assert code == 0, told
    place = Workspace(root)
    ledger = Ledger.open(place.ledger_url, key=place.key_file.read_bytes())
    assert ledger.versions().policy == version
    (line,) = ledger.audit_lines(1)
    assert (line.event, line.by, line.detail["reason"]) == ("policy.overridden", "mei", "stock is short")
    ledger.close()
    code, told = run(root, "stop", "--by", "mei", "--reason", "enough")
    assert (code, "everybody gets control" in told) == (0, True)
