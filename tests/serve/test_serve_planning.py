"""Effects, briefs and strategies over HTTP."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import propose_cases
import pytest
from built_cases import BRIEF, DAYS, GUARD, RECENT, START, USERS
from serve_cases import Shop
from typer.testing import CliRunner

from qiance.artifacts.proposer import write_proposer
from qiance.cli.loop.service import app_args, check_briefs
from qiance.cli.main import app
from qiance.ledger.codec import effect_to_dict
from qiance.ledger.schema import to_micros
from qiance.market import CONTACT_COST
from qiance.settings import Settings
from qiance.strategy.audience import audience_mask
from qiance.strategy.demand import DayDemand
from qiance.workspace import Snapshot
from serve import briefs
from serve.args import AppArgs, BriefArgs, LlmArgs
from serve.assemble_planning import open_proposer
from serve.generator.loop import NICENESS, BriefLoop
from serve.generator.worker import BriefWorker
from serve.scoring import ScoreRequest

NOW = START + timedelta(days=DAYS, hours=1)

ASKED = {
    "objective": "margin",
    "budget": {"amount": "250.00", "currency": "USD"},
    "languages": ["en"],
    "channels": ["email", "mailer"],
    "starts": "2025-05-01T00:00:00+02:00",
    "ends": "2025-05-15T00:00:00Z",
    "n": 4,
}


def intervals_hold(effect: dict[str, Any]) -> bool:
    return all(part["low"] <= part["value"] <= part["high"] for part in effect.values())


def test_effects_come_per_user_and_action_users_first(shop: Shop) -> None:
    body = {"user_ids": ["u0", "u1"], "actions": ["s0-email", "s1-display"]}
    answer = shop.post("/v1/effects", body).json()
    assert [(e["user_id"], e["action_id"]) for e in answer["effects"]] == [
        ("u0", "s0-email"), ("u0", "s1-display"), ("u1", "s0-email"), ("u1", "s1-display"),
    ]  # fmt: skip
    assert all(intervals_hold(e["effect"]) for e in answer["effects"])
    assert (answer["model_version"], answer["degraded"]) == (shop.built.model, [])


def test_effects_are_those_that_decisions_are_made_by(shop: Shop) -> None:
    scored = shop.predictor.score([ScoreRequest("u3", 0, NOW, True)])
    body = {"user_ids": ["u3"], "actions": list(shop.gateway.watcher.state.action_ids[1:])}
    found = shop.post("/v1/effects", body).json()["effects"]
    uplift = [e["effect"]["uplift"]["value"] for e in found]
    assert uplift == pytest.approx(scored.value[0, 1:].tolist(), rel=1e-5)
    shown = [
        effect_to_dict(e) for c in range(1, len(found) + 1) if (e := scored.effects([0], [c])[0]) is not None
    ]
    assert [e["effect"] for e in found] == shown


def test_a_batch_scores_each_user_as_alone(shop: Shop) -> None:
    names = [*(f"u{n}" for n in range(8)), "stranger"]
    requests = [ScoreRequest(name, n % 3, NOW, True) for n, name in enumerate(names)]
    together = shop.predictor.score(requests)
    for row, request in enumerate(requests):
        alone = shop.predictor.score([request])
        np.testing.assert_allclose(together.value[row], alone.value[0], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(together.cost[row], alone.cost[0], rtol=1e-4)
        assert (together.admissible[row] == alone.admissible[0]).all()
        assert together.degraded[row] == alone.degraded[0]
    assert together.degraded == ((),) * 8 + (("cold_start",),)


def test_the_online_store_has_what_the_snapshot_has(shop: Shop) -> None:
    """Parity: the model must see online what it was trained on."""
    snapshot = shop.built.snapshot
    ids = snapshot.users.user_ids[:20]
    fetched = shop.built.reader.fetch("user_id", ids, to_micros(NOW))
    for name, values in fetched.block("user_profile").values.items():
        np.testing.assert_array_equal(values, snapshot.users.columns[name][:20])
    for name, values in fetched.matrix("user_category", snapshot.categories).values.items():
        stored = snapshot.user_category[name][:20]
        bought = snapshot.user_category["category_baskets_90d"][:20] > 0
        np.testing.assert_array_equal(values[bought], stored[bought])
        assert np.isnan(values[~bought]).all()


def test_an_unknown_user_has_the_average_effect_and_is_named(shop: Shop) -> None:
    answer = shop.post("/v1/effects", {"user_ids": ["u0", "stranger"], "actions": ["s0-email"]}).json()
    assert answer["degraded"] == ["cold_start:stranger"]
    assert len(answer["effects"]) == 2


def test_what_is_said_of_an_unknown_user_holds_most_known_ones(shop: Shop) -> None:
    known = list(shop.built.snapshot.users.user_ids)
    asked = {"user_ids": ["stranger", *known], "actions": ["s0-email"]}
    stranger, *others = (row["effect"] for row in shop.post("/v1/effects", asked).json()["effects"])
    for name in ("ctr", "sales", "uplift"):
        low, high = stranger[name]["low"], stranger[name]["high"]
        inside = np.mean([low <= other[name]["value"] <= high for other in others])
        width = np.median([other[name]["high"] - other[name]["low"] for other in others])
        assert inside >= 0.8, (
            f"{name}: 90 % of users should be where a user is expected of whom nothing is known"
        )
        assert high - low > width


@pytest.mark.parametrize("segment", ["all", "everybody", "recent-shoppers", RECENT.describe()])
def test_a_segment_has_the_mean_effect_of_its_users(shop: Shop, segment: str) -> None:
    answer = shop.post("/v1/effects", {"segment": segment, "actions": ["s0-email", "s2-email"]}).json()
    assert [(e["user_id"], e["action_id"]) for e in answer["effects"]] == [
        (None, "s0-email"),
        (None, "s2-email"),
    ]
    users = shop.built.snapshot.users
    if segment == RECENT.describe():
        mask = audience_mask(RECENT, users)
        ids = [u for u, inside in zip(users.user_ids, mask, strict=True) if inside]
        assert 0 < len(ids) < USERS
        each = shop.post("/v1/effects", {"user_ids": ids, "actions": ["s0-email"]}).json()["effects"]
        mean = np.mean([e["effect"]["sales"]["value"] for e in each])
        assert answer["effects"][0]["effect"]["sales"]["value"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("method", ["shap", "lime"])
def test_effects_are_explained_in_what_a_marketer_knows(shop: Shop, method: str) -> None:
    body = {"user_ids": ["u0", "u1"], "actions": ["s0-email", "s1-display"]}
    plain = shop.post("/v1/effects", body).json()["effects"]
    found = shop.post(f"/v1/effects?explain={method}", body).json()["effects"]
    assert [e["explanation"] for e in plain] == [None] * 4
    for before, after in zip(plain, found, strict=True):
        assert after["effect"] == before["effect"]
        why = after["explanation"]
        assert (why["method"], why["of"]) == (method, "uplift")
        assert why["prediction"] == pytest.approx(after["effect"]["uplift"]["value"], rel=1e-4, abs=1e-3)
        total = sum(part["effect"] for part in why["contributions"])
        assert why["prediction"] - why["baseline"] - total == pytest.approx(why["additivity_error"], abs=1e-6)
        if method == "shap":
            assert abs(why["additivity_error"]) < 1e-3
        values = {part["feature"]: part["value"] for part in why["contributions"]}
        assert values["action"] == after["action_id"]
        assert {"recency_days", "avg_basket", "category_share", "contacts_7d"} <= values.keys()
        assert isinstance(values["recency_days"], float)
    again = shop.post(f"/v1/effects?explain={method}", body).json()["effects"]
    assert again == found


def test_a_segment_is_explained_by_some_of_its_users(shop: Shop) -> None:
    body = {"segment": RECENT.describe(), "actions": ["s0-email"]}
    (found,) = shop.post("/v1/effects?explain=shap", body).json()["effects"]
    why = found["explanation"]
    total = sum(part["effect"] for part in why["contributions"])
    assert why["prediction"] - why["baseline"] == pytest.approx(total, abs=1e-3)
    assert why["contributions"][0]["effect"] != 0


def test_too_many_explanations_and_unknown_methods_are_refused(shop: Shop) -> None:
    body = {"user_ids": [f"u{n}" for n in range(25)], "actions": ["s0-email"]}
    refused = shop.post("/v1/effects?explain=shap", body)
    assert refused.status_code == 422
    assert "at most 24 are explained at once" in refused.json()["detail"]
    live = list(shop.gateway.watcher.state.action_ids[1:5])
    assert shop.post("/v1/effects?explain=shap", {"segment": "all", "actions": live}).status_code == 422
    assert shop.post("/v1/effects?explain=magic", body).status_code == 422


def test_a_predictor_that_fails_is_a_503(shop: Shop) -> None:
    async def broken(*_: Any) -> Any:
        raise ConnectionError("the replica is gone")

    shop.gateway.effects = broken
    response = shop.post("/v1/effects", {"user_ids": ["u0"], "actions": ["s0-email"]})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["detail"].startswith("predictor:")
    assert "replica" not in response.text


def worker_of(
    shop: Shop, predictor: Any = None, term_s: float = 60.0, folder: Path | None = None, **known: Any
) -> BriefWorker:
    return BriefWorker(
        folder or shop.built.workspace.snapshot,
        shop.ledger,
        predictor or shop.predictor,
        LlmArgs(enabled=False),
        lambda _: pytest.fail("the language model is switched off"),
        CONTACT_COST,
        seed=0,
        guard=GUARD,
        term_s=term_s,
        **known,
    )


def test_a_brief_is_accepted_and_becomes_strategies(shop: Shop) -> None:
    response = shop.post("/v1/briefs", ASKED)
    assert response.status_code == 202
    brief_id = response.json()["brief_id"]
    assert shop.woken == [True]
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert (shown["state"], shown["progress"], shown["strategies"]) == ("queued", 0.0, [])
    record = shop.ledger.brief(brief_id)
    assert record is not None
    assert record.brief.starts.isoformat() == "2025-04-30T22:00:00+00:00"
    assert record.brief.budget.minor == 25_000

    worker_of(shop).work()
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert (shown["state"], shown["progress"]) == ("done", 1.0), shown["message"]
    assert 1 <= len(shown["strategies"]) <= 4
    assert "templates wrote the words" in shown["message"]
    for strategy in shown["strategies"]:
        assert strategy["state"] == "draft"
        assert intervals_hold(strategy["effect"])
        assert strategy["reasons"]
        assert all(
            a["channel"] in ("email", "mailer") and a["creative"]["headline"] for a in strategy["actions"]
        )
    assert shop.ledger.budget(brief_id).cap == 25_000
    listed = shop.ask("GET", "/v1/strategies", params={"brief_id": brief_id}).json()
    assert listed == shown["strategies"]


def test_a_brief_that_cannot_be_met_ends_with_the_reason(shop: Shop) -> None:
    brief_id = shop.post("/v1/briefs", {**ASKED, "audience": "millionaires"}).json()["brief_id"]
    worker_of(shop).work()
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert shown["state"] == "failed"
    assert shown["message"].startswith("brief.audience: 'millionaires'")


def test_a_proposer_that_is_named_proposes_for_briefs(shop: Shop, tmp_path: Path) -> None:
    written = write_proposer(tmp_path, propose_cases.of_a_shop(), {}, {}, "f")
    args = AppArgs(workspace=shop.built.workspace.root, briefs=BriefArgs(proposer=written.path))
    brief_id = shop.post("/v1/briefs", {**ASKED, "n": 8}).json()["brief_id"]
    worker_of(shop, proposer=open_proposer(args)).work()
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert shown["state"] == "done", shown["message"]
    name = f"proposer {written.version}"
    found = [one for one in shown["strategies"] if one["provenance"]["offer"] == name]
    assert len(found) >= 2
    for strategy in found:
        assert strategy["reasons"][0].startswith("Proposed by a model of logged strategies")
        assert all(action["creative"]["headline"] for action in strategy["actions"])
        assert intervals_hold(strategy["effect"])
    brief_id = shop.post("/v1/briefs", {**ASKED, "objective": "clicks"}).json()["brief_id"]
    worker_of(shop, proposer=open_proposer(args)).work()
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert "the proposer was not asked: it has learned for margin, not for clicks" in shown["message"]


def test_a_proposer_that_cannot_be_used_is_refused_at_the_start(shop: Shop, tmp_path: Path) -> None:
    root, proposer = shop.built.workspace.root, propose_cases.of_a_shop()
    effect = shop.built.workspace.artifact("effect-model", shop.built.model)
    foreign = write_proposer(tmp_path, replace(proposer, names=("segment_a", "segment_b")), {}, {}, "f").path
    damaged = write_proposer(tmp_path, proposer, {}, {}, "f").path
    (damaged / "proposer.json").write_text("{}")
    for path, message in (
        (effect, "is of kind 'effect-model'; pass a 'proposer-model'"),
        (foreign, "cannot be asked for a brief: a, b cannot be computed from features of users"),
        (damaged, "file 'proposer.json' was changed"),
        (tmp_path, "has no manifest.json"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            open_proposer(AppArgs(workspace=root, briefs=BriefArgs(proposer=path)))
    done = CliRunner().invoke(app, ["up", "--runs", str(tmp_path), "--proposer", str(damaged)])
    assert "file 'proposer.json' was changed" in str(done.exception)
    done = CliRunner().invoke(app, ["up", "--runs", str(tmp_path), "--proposer", str(tmp_path / "none")])
    assert "holds no trained model" in str(done.exception)


def test_the_service_is_told_which_artifact_the_settings_mean(shop: Shop, tmp_path: Path) -> None:
    written = write_proposer(tmp_path, propose_cases.of_a_shop(), {}, {}, "f")
    (tmp_path / "metrics.json").write_text(json.dumps({"model": written.path.name}))
    for given in (tmp_path, written.path):
        chosen = Settings.model_validate({"briefs": {"proposer": given}})
        check_briefs(chosen)
        args = AppArgs.model_validate(app_args(shop.built.workspace, chosen, "system"))
        assert args.briefs.proposer == written.path.resolve()
    assert AppArgs.model_validate(app_args(shop.built.workspace, Settings(), "system")).briefs == BriefArgs()
    elsewhere = Settings.model_validate({"briefs": {"country": "DE"}})
    assert app_args(shop.built.workspace, elsewhere, "system")["briefs"]["country"] == "DE"
    with pytest.raises(ValueError, match="country: 'Atlantis' has no holiday calendar"):
        check_briefs(Settings.model_validate({"briefs": {"country": "Atlantis"}}))


def test_promotions_of_a_shop_keep_to_its_stock_and_its_days(shop: Shop, tmp_path: Path) -> None:
    """Stock of the snapshot and demand by day of the log, which runs of earlier versions do not have."""
    folder = shutil.copytree(shop.built.workspace.snapshot, tmp_path / "snapshot")
    snapshot = Snapshot.load(folder)
    asked = {**ASKED, "budget": {"amount": "2.50", "currency": "USD"}, "channels": ["mailer"], "n": 4}
    first = shop.post("/v1/briefs", asked).json()["brief_id"]
    worker_of(shop, folder=folder).work()
    days = np.arange(19_000, 19_140)
    units = np.tile(np.where((days + 3) % 7 >= 5, 400.0, 100.0), (len(snapshot.categories), 1))
    DayDemand(snapshot.categories, int(days[0]), units).save(folder)
    replace(snapshot, item=snapshot.item | {"stock": np.full(len(snapshot.catalogue), 1_000.0)}).save(folder)
    second = shop.post("/v1/briefs", asked).json()["brief_id"]
    worker_of(shop, folder=folder).work()
    replace(snapshot, item=snapshot.item | {"stock": np.full(len(snapshot.catalogue), 1e-6)}).save(folder)
    third = shop.post("/v1/briefs", asked).json()["brief_id"]
    worker_of(shop, folder=folder).work()

    def shown(brief_id: str) -> tuple[str, list[dict[str, Any]]]:
        found = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
        assert found["state"] == "done", found["message"]
        return found["message"], [one for one in found["strategies"] if one["kind"] == "promotion"]

    assert {one["provenance"]["timing"] for one in shown(first)[1]} == {
        "length alone: demand by day is not known"
    }
    assert {one["provenance"]["timing"] for one in shown(second)[1]} == {"demand of the category by day"}
    assert {one["provenance"]["stock"] for one in shown(second)[1]} == {"1000 units on hand"}
    message, none = shown(third)
    assert none == []
    assert "left out since more would be sold than is on hand" in message


class Interrupted:
    """A predictor during whose first call something happens."""

    def __init__(self, predictor: Any, happens: Callable[[], object]) -> None:
        self._predictor, self._happens, self.calls = predictor, happens, 0

    def predict(self, *asked: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            self._happens()
        return self._predictor.predict(*asked)


def test_a_brief_that_is_cancelled_while_it_is_worked_on_proposes_nothing(shop: Shop) -> None:
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    answers = list[httpx.Response]()
    path = f"/v1/briefs/{brief_id}"
    worker_of(shop, Interrupted(shop.predictor, lambda: answers.append(shop.ask("DELETE", path)))).work()
    assert answers[0].json().get("state") == "cancelled", answers[0].text
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert (shown["state"], shown["strategies"]) == ("cancelled", [])
    assert shop.ask("DELETE", path).status_code == 200, "asked again, it is as it was"


def test_a_worker_that_paused_for_longer_than_its_term_changes_nothing(shop: Shop) -> None:
    """Another has begun anew: the late one's strategies and its end do not count."""
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    taken = []

    def overtaken() -> None:
        with shop.ledger.write() as connection:
            connection.exec_driver_sql("UPDATE briefs SET held_until = 0")
        taken.append(shop.ledger.take_brief("another", 60.0))

    worker_of(shop, Interrupted(shop.predictor, overtaken)).work()
    assert taken[0] is not None
    assert taken[0].attempts == 2
    shown = shop.ask("GET", f"/v1/briefs/{brief_id}").json()
    assert (shown["state"], shown["strategies"]) == ("running", [])


def test_the_term_is_renewed_during_long_work(shop: Shop) -> None:
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    others = []

    def long_work() -> None:
        time.sleep(1.5)
        others.append(shop.ledger.take_brief("another", 60.0))

    worker_of(shop, Interrupted(shop.predictor, long_work), term_s=1.0).work()
    assert others == [None]
    assert shop.ask("GET", f"/v1/briefs/{brief_id}").json()["state"] == "done"


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of every event of a stream."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    assert blocks[0] == ["retry: 1000"]
    return [(b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks[1:]]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a whole process has one niceness")
def test_briefs_give_way_to_decisions() -> None:
    seen, done = list[int](), threading.Event()

    def work() -> None:
        helper = threading.Thread(target=lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0)))
        helper.start()
        helper.join()
        done.set()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    loop = BriefLoop(work)
    assert done.wait(30.0)
    loop.stop()
    assert seen[0] == min(before + NICENESS, 19), "threads that it starts, as a language model does"
    assert os.getpriority(os.PRIO_PROCESS, 0) == before, "others of the process are as they were"


def test_a_brief_is_followed_by_events(shop: Shop) -> None:
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    loop = BriefLoop(worker_of(shop).work)
    try:
        answer = shop.ask("GET", f"/v1/briefs/{brief_id}/events")
    finally:
        loop.stop()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
    progress = [data["progress"] for _, data in events]
    assert progress == sorted(progress)
    assert (events[-1][1]["state"], events[-1][1]["progress"]) == ("done", 1.0)
    again = events_of(shop.ask("GET", f"/v1/briefs/{brief_id}/events").text)
    assert again == events[-1:], "who comes after the end is told it at once"


def test_who_follows_for_long_is_asked_to_come_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(briefs, "STREAM_S", 0.2)
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    assert [name for name, _ in events_of(shop.ask("GET", f"/v1/briefs/{brief_id}/events").text)] == [
        "progress"
    ]


def test_briefs_that_are_not_there_or_have_ended(shop: Shop) -> None:
    assert shop.ask("GET", "/v1/briefs/b-0/events").status_code == 404
    assert shop.ask("DELETE", "/v1/briefs/b-0").status_code == 404
    brief_id = shop.post("/v1/briefs", ASKED).json()["brief_id"]
    worker_of(shop).work()
    refused = shop.ask("DELETE", f"/v1/briefs/{brief_id}")
    assert refused.status_code == 409
    assert refused.json()["detail"] == f"brief_id: '{brief_id}' is done already"


def test_more_briefs_than_may_wait_are_refused(shop: Shop) -> None:
    for _ in range(50):
        assert shop.post("/v1/briefs", ASKED).status_code == 202
    refused = shop.post("/v1/briefs", ASKED)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert "50 wait to be begun" in refused.json()["detail"]
    assert shop.ledger.waiting_briefs() == 50


def test_strategies_are_listed_by_state_and_brief(shop: Shop) -> None:
    live = shop.ask("GET", "/v1/strategies", params={"state": "live"}).json()
    assert [s["strategy_id"] for s in live] == ["s0", "s1", "s2", "s3"]
    assert live[1]["audience"] == {"name": "recent", "rule": "recency_days <= 10"}
    assert live[1]["actions"][0]["offer"] == {"kind": "percent", "depth": 0.2, "threshold": 0}
    assert len(shop.ask("GET", "/v1/strategies", params={"brief_id": BRIEF}).json()) == 4
    assert shop.ask("GET", "/v1/strategies", params={"state": "draft"}).json() == []


def test_the_interface_describes_itself(shop: Shop) -> None:
    paths = shop.ask("GET", "/openapi.json").json()["paths"]
    assert {
        "/v1/decisions", "/v1/decisions:batch", "/v1/outcomes", "/v1/effects", "/v1/briefs",
        "/v1/briefs/{brief_id}", "/v1/briefs/{brief_id}/events",
        "/v1/strategies", "/v1/events", "/v1/users/{user_id}", "/v1/users/{user_id}/consent",
        "/v1/users/{user_id}/features", "/v1/erasures/{erasure_id}", "/healthz",
        "/v1/policies/evaluate", "/v1/policies/{version}:promote", "/v1/creatives",
        "/v1/creatives/{creative_id}/approve", "/v1/creatives/{creative_id}/retire",
    } == set(paths)  # fmt: skip
    assert "swagger" in shop.ask("GET", "/docs").text.lower()
