"""Replay: bit for bit from what is logged, and what was changed is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_action_grid import CATALOGUE, CATEGORIES, ITEMS, Linear, action, users

from qiance.decide.predictor import ActionGrid
from qiance.decide.replay import Replayer, choice_of
from qiance.decide.rescore import Rescorer
from qiance.decide.rule import decide
from qiance.domain import CONTROL_ACTION, Decision
from qiance.features.user_row import UserRows, pack_all

ACTIONS = tuple(action(n, depth=0.1 * (n % 4)) for n in range(12))
SET = (CONTROL_ACTION, *ACTIONS)
GRID = ActionGrid(Linear(), CATALOGUE, ACTIONS, ITEMS, CATEGORIES)


def log(
    value: np.ndarray, cost: np.ndarray, mask: np.ndarray, price: float, epsilon: float, seed: int
) -> list[Decision]:
    """The decisions `[U]` as the engine logs them."""
    drawn = np.random.default_rng(seed).random(len(value))
    made = decide(value, cost, mask, price, epsilon, uniforms=drawn)
    return [
        Decision(
            decision_id=f"d{u}", tenant_id="t", request_id=None, pseudonym="p", surface="s",
            decided_at=datetime(2017, 1, 1, tzinfo=UTC),
            candidates=tuple(f"a{n}" for n in range(value.shape[1])), candidate_set="set",
            admissible=np.packbits(mask[u], bitorder="little").tobytes(),
            scores=made.score[u][mask[u]].tobytes(),
            chosen=int(made.choice[u]), propensity=float(made.propensity[u]),
            uniform=float(made.uniforms[u]), epsilon=epsilon, shadow_price=price,
            channel="email" if made.choice[u] else "none", holdout=False,
            model_version="m", policy_version="p",
        )
        for u in range(len(value))
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 40),
    epsilon=st.sampled_from([0.0, 0.05, 0.1, 1 / 3, 1.0]),
    ties=st.booleans(),
)
def test_choice_and_propensity_replay_bit_for_bit(seed: int, width: int, epsilon: float, ties: bool) -> None:
    random = np.random.default_rng(seed)
    value = random.normal(size=(20, width)) * 100
    value = np.round(value / 100) if ties else value
    mask = random.random((20, width)) < 0.5
    mask[:, 0] = True
    for made in log(value, random.random((20, width)), mask, 0.7, epsilon, seed):
        assert choice_of(made) == (made.chosen, made.propensity)


def scored(count: int, seed: int, rows: UserRows | None = None) -> list[Decision]:
    given_users = rows or users(count, seed)
    found = GRID.score(given_users)
    value, cost = (np.zeros((count, len(SET)), dtype=np.float32) for _ in range(2))
    value[:, 1:], cost[:, 1:] = found.value, found.cost
    mask = np.random.default_rng(seed).random(value.shape) < 0.7
    mask[:, 0] = True
    return [
        replace(made, items="frame", user_row=row)
        for made, row in zip(log(value, cost, mask, 0.3, 0.1, seed), pack_all(given_users), strict=True)
    ]


def replayer(model: Linear | None = None, items: dict | None = None, actions: Sequence = SET) -> Replayer:  # type: ignore[type-arg]
    return Replayer(
        Rescorer(
            lambda _: actions, lambda _: model or Linear(), lambda _: items or ITEMS, CATALOGUE, CATEGORIES
        )
    )


def test_scores_are_made_again() -> None:
    again = replayer()
    for made in scored(200, 3):
        found = again.replay(made)
        assert found.differs == ()
        assert found.unscored == ""
        assert found.relative <= 1e-5
        expected = found.value - 0.3 * found.cost
        assert expected == pytest.approx(float(made.score_row()[made.chosen]), rel=1e-5, abs=1e-4)


def test_what_was_changed_is_told() -> None:
    made = next(d for d in scored(50, 4) if d.chosen)
    other_user = scored(1, 99)[0].user_row
    assert replayer().replay(replace(made, user_row=other_user)).differs == ("scores",)
    moved = {name: values + 9.0 for name, values in ITEMS.items()}
    assert replayer(items=moved).replay(made).differs == ("scores",)
    model = Linear()
    model.weights = model.weights * 1.01
    assert replayer(model).replay(made).differs == ("scores",)
    assert "choice" in replayer().replay(replace(made, chosen=0)).differs
    assert replayer().replay(replace(made, propensity=np.nextafter(made.propensity, 1))).differs == (
        "propensity",
    )
    assert replayer().replay(replace(made, shadow_price=0.31)).differs == ("scores",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"user_row": b""}, "no user row is logged"), ({"items": ""}, "item values .* not kept")],
)
def test_what_cannot_be_scored_says_why_and_replays_its_choice(
    changes: dict[str, object], reason: str
) -> None:
    made = replace(scored(1, 5)[0], **changes)  # type: ignore[arg-type]
    found = replayer().replay(made)
    assert found.differs == ()
    assert (found.action_id, found.propensity) == (made.action_id, made.propensity)
    assert re.search(reason, found.unscored)


def test_a_snapshot_of_other_categories_is_refused() -> None:
    again = Replayer(Rescorer(lambda _: SET, lambda _: Linear(), lambda _: ITEMS, CATALOGUE, ("one",)))
    with pytest.raises(ValueError, match="user_row: has 2 categories, the snapshot 1; replay it with"):
        again.replay(scored(1, 6)[0])


def test_control_alone_needs_no_action() -> None:
    found = users(1)
    (made,) = log(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), dtype=bool), 0.5, 0.1, 1)
    made = replace(made, items="frame", user_row=pack_all(found)[0])
    assert replayer(actions=SET[:1]).replay(made).differs == ()
