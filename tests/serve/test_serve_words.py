"""Words are read by their vectors where there are some, and what was decided without replays without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from built_cases import CHANNELS, Built, action, catalogue, train_model
from serve_cases import Shop, open_shop

from qiance.artifacts import EffectModel
from qiance.artifacts.word_vectors import Encode, WordVectors
from qiance.cli.replay import replayer
from qiance.features.projection import pack_vector
from qiance.features.words import creative_text
from serve.effects import Planner
from serve.words import WordKeeper

READ: list[str] = []


def vector_of(text: str) -> bytes:
    """Any vector that hangs on the text."""
    return pack_vector(np.random.default_rng(len(text)).normal(size=8))


def load() -> Encode:
    def encode(texts: list[str]) -> list[bytes]:
        READ.extend(texts)
        return [vector_of(text) for text in texts]

    return encode


@pytest.fixture(scope="module")
def reading(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose model was trained on vectors, where no live words have one yet."""
    item = next(iter(catalogue()))
    words = [action(item, channel, depth, "t").creative for channel in CHANNELS for depth in (0.0, 0.2)]
    vectors = {text: vector_of(text) for text in {creative_text(one) for one in words if one}}
    model = train_model(built.workspace, built.snapshot, vectors=vectors)
    folder = tmp_path_factory.mktemp("reading")
    with open_shop(built, folder, epsilon=0.01) as shop:
        shop.ledger.set_versions(model=model)
        shop.refresh()
        yield shop


def test_vectors_that_come_later_change_decisions_to_come_and_no_replay(reading: Shop, built: Built) -> None:
    users = reading.users(held=False)[:6]
    before = [reading.decide(user) for user in users]
    assert all("no_text_vector" in answer["degraded"] for answer in before)
    keeper = WordKeeper(reading.ledger, WordVectors(reading.ledger, load))
    keeper.work()
    assert sorted(READ) == sorted({creative_text(e.subject.creative) for e in reading.ledger.creatives()})
    keeper.work()
    assert len(READ) == len(set(READ)), "nothing is read twice"
    reading.refresh()
    after = [reading.decide(user) for user in users]
    assert not any("no_text_vector" in answer["degraded"] for answer in after)
    logged = [reading.log(answer["decision_id"]).decision for answer in (*before, *after)]
    assert len({decision.candidate_set for decision in logged}) == 2
    first, second = (
        np.concatenate([d.admissible_scores() for d in part]) for part in (logged[:6], logged[6:])
    )
    assert np.abs(first - second).max() > 1e-3, "the words count"
    again = replayer(built.workspace, reading.ledger)
    assert [found.differs for found in map(again.replay, logged)] == [()] * len(logged)


def test_planning_reads_the_same_vectors(reading: Shop) -> None:
    state = reading.predictor.live_state
    model = reading.predictor.model
    assert isinstance(model, EffectModel)
    assert model.encoder.reads_vectors
    wanted = [action.action_id for action in state.actions[1:]]
    user = reading.users(held=False)[-1]  # not contacted so far
    told = Planner(reading.predictor).effects([user], None, wanted).table[0]
    decided = reading.log(reading.decide(user)["decision_id"]).decision
    places = np.flatnonzero(decided.mask())[1:]
    uplift = np.array([told[place - 1].uplift.value for place in places])
    np.testing.assert_allclose(uplift, decided.admissible_scores()[1:], rtol=1e-3, atol=1e-2)


def test_a_model_that_reads_no_vectors_misses_none(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path) as shop:
        assert "no_text_vector" not in shop.decide()["degraded"]
