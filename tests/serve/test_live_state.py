"""What hangs on the live state alone is worked out once for it, however many batches ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from built_cases import BRIEF, GUARD, Built, catalogue, go_live, strategy
from serve_cases import Logged, Shop, open_predictor, open_shop

from qiance.domain import Audience, Cap, Channel, StrategyState
from serve.args import AppArgs
from serve.live import read_state
from serve.means import Means
from serve.scoring import ScoreRequest
from serve.slates import Call
from tests.artifacts.recorded_cases import record_here


def test_an_action_reaches_its_channel_and_control_nobody(shared_shop: Shop) -> None:
    state = shared_shop.gateway.watcher.state
    caps = [Cap(1, 7.0, channel) for channel in Channel if channel is not Channel.NONE]
    for cap in (Cap(1, 7.0), *caps):
        expected = [not a.is_control and cap.channel in (None, a.channel) for a in state.actions]
        assert state.reach(cap.channel).tolist() == expected
        assert state.reach(cap.channel) is state.reach(cap.channel)
    assert state.reach(None).sum() == len(state.actions) - 1
    assert state.reach("email").sum() == 4


def test_means_follow_the_state(built: Built, tmp_path: Path) -> None:
    ledger, means = built.open_ledger(tmp_path), Means(catalogue(), 0.05)
    before = read_state(ledger, catalogue(), GUARD)
    assert means.score(before, 2).value[1].tolist() == [0.0, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0, 8.0, 8.0]
    ledger.set_strategy_state("s1", StrategyState.ENDED, "test", "test")
    after = read_state(ledger, catalogue(), GUARD)
    found = means.score(after, 3)
    assert found.value.tolist() == [[0.0, 5.0, 5.0, 7.0, 7.0, 8.0, 8.0]] * 3
    assert found.admissible.tolist() == [[True] * 5 + [False] * 2] * 3, "s3 is not for everybody"
    assert found.cost.tolist() == [after.liability.tolist()] * 3
    found.value[0] = 9.0
    assert means.score(after, 1).value[0, 1] == 5.0, "what is handed out is the caller's"
    ledger.close()


def test_columns_are_found_once_while_the_predictor_is_behind(built: Built, tmp_path: Path) -> None:
    """One that was closed stays at what was live before s8 came and s0 went."""
    ledger = built.open_ledger(tmp_path)
    behind = open_predictor(built, ledger, AppArgs(workspace=built.workspace.root))
    behind.close()
    with open_shop(built, tmp_path, behind, holdout=0.0) as shop:
        go_live(shop.ledger, [strategy(8, BRIEF, audience=Audience("everybody"))])
        shop.ledger.set_strategy_state("s0", StrategyState.ENDED, "test", "test")
        shop.refresh()
        engine, state, at = shop.service.engine, shop.gateway.watcher.state, shop.gateway.args.now()
        scored = behind.score([ScoreRequest("u0", 0, at, True)])
        assert scored.candidate_set != state.candidate_set
        columns = engine._columns(state, scored)
        ids = [action.action_id for action in shop.ledger.candidates(scored.candidate_set)]
        named = [ids[column] if column >= 0 else None for column in columns.tolist()]
        new = {"s8-email", "s8-display"}
        assert named == [None if name in new else name for name in state.action_ids]
        assert new < set(state.action_ids)
        assert engine._columns(state, scored) is columns
        (answer,) = engine.decide([Call("u0", "home", at, None, 1, None)])
        row = shop.log(getattr(answer, "decision_id", "")).decision
        assert not new & Logged(row).possible
        assert "s2-email" in Logged(row).possible
        assert np.isfinite(row.score_row()[row.mask()]).all()
    ledger.close()


def test_every_size_of_a_batch_is_recorded_before_the_first_request(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again for candidates of another number, before they are decided among."""
    sizes, graphs = (1, 2, 4, 8), {"predictor": {"cuda_graphs": True}, "batching": {"max_batch": 6}}
    with open_shop(built, tmp_path) as plain:
        recorded = record_here(monkeypatch)
        with open_shop(built, tmp_path, **graphs) as shop:
            assert {(users, 9) for users in sizes} <= set(recorded)
            before, users = len(recorded), shop.users(held=False)
            requests = [ScoreRequest(user, 0, shop.gateway.args.now(), True) for user in users[:6]]
            for count in (1, 3, 5, 6):
                found, exact = (s.predictor.score(requests[:count]) for s in (shop, plain))
                assert found.value == pytest.approx(exact.value, rel=1e-4, abs=1e-3)
            assert len(recorded) == before
            go_live(shop.ledger, [strategy(8)])
            shop.refresh()
            assert {(users, 11) for users in sizes} <= set(recorded[before:])
            before = len(recorded)
            shop.decide(users[0])
            assert len(recorded) == before
