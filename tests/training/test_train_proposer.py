"""Proposals: vectors survive encoding, all are admissible, the planted best is found, seeds decide."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import propose_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qiance.artifacts import proposer as artifact
from qiance.artifacts.manifest import MANIFEST, ArtifactError
from qiance.cli.main import app
from qiance.data.errors import DataError
from qiance.decide.floors import margin_floor_mask
from qiance.domain import Audience, Channel, Item, Objective, OfferKind
from qiance.ledger.codec import strategy_from_dict
from qiance.proposer.proposer import Proposer
from qiance.proposer.vector import CHANNELS, FORMS, Space, Vectors, constrained, rounded_shares, strategy_of
from training.propose.fit import FittedProposer, ranks
from training.propose.log import StrategyLog, from_frame, read_log, to_frame
from training.propose.train import train_proposer

RUNNER = CliRunner()
# A decoder that fits the columns of strategies, and no condition.
WEIGHTS = {
    "decoder.0.weight": np.zeros((11, 3), dtype=np.float32),
    "decoder.0.bias": np.zeros(11, dtype=np.float32),
    "log_deviation": np.zeros(4, dtype=np.float32),
}


@pytest.fixture(scope="module")
def log() -> StrategyLog:
    return cases.planted()


@pytest.fixture(scope="module")
def proposer(log: StrategyLog) -> Proposer:
    return cases.fitted(log)


def equal(one: Vectors, other: Vectors) -> bool:
    fields = one.__dataclass_fields__
    return all(np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12) for name in fields)


SPACES = st.builds(
    Space, st.floats(0.01, 0.95).map(lambda x: round(x, 2)), st.integers(1, 20_000), st.integers(1, 60)
)
UNIT = st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Space, Vectors]:
    space, size = draw(SPACES), draw(st.integers(1, 5))
    form = np.array(draw(st.lists(st.integers(0, FORMS - 1), min_size=size, max_size=size)))
    numbers = np.array([draw(UNIT) for _ in range(size)])
    shares = np.array([draw(st.lists(st.floats(0.001, 1), min_size=4, max_size=4)) for _ in range(size)])
    return space, space.decode(form, numbers, shares)


@given(drawn())
def test_what_is_decoded_encodes_to_the_same(case: tuple[Space, Vectors]) -> None:
    space, vectors = case
    found = space.encode(vectors)
    again = space.decode(found.form, found.numbers, found.shares)
    assert equal(again, vectors)
    assert ((found.numbers >= 0) & (found.numbers <= 1)).all()
    assert (vectors.start + vectors.days <= space.period).all()
    assert (vectors.depth <= space.deepest + 0.005).all()


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda x: sum(x) > 1e-3))
def test_rounded_shares_are_steps_that_sum_to_one(shares: list[float]) -> None:
    found = rounded_shares(np.array([shares]))[0]
    assert found.sum() == pytest.approx(1.0)
    assert np.allclose(found * 20, np.rint(found * 20))
    assert np.abs(found - np.array(shares) / sum(shares)).max() < 0.05 + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    drawn(),
    st.integers(1, 5_000),
    st.floats(0, 1.2),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.sets(st.sampled_from(CHANNELS), min_size=1),
    st.integers(1, 30),
)
def test_admitted_strategies_keep_floor_depth_channels_and_period(
    case: tuple[Space, Vectors],
    price: int,
    cost: float,
    max_depth: float,
    min_margin: float,
    channels: set[Channel],
    days: int,
) -> None:
    item = Item("i", "Item", "c", "d", "b", price, round(price * cost))
    brief = replace(
        cases.request("email-0").brief,
        max_depth=max_depth,
        min_margin=min_margin,
        channels=tuple(channels),
        ends=cases.START + timedelta(days=days),
    )
    vectors = constrained(case[1], item, brief)
    for row in range(len(vectors)):
        if vectors.depth[row] == 0 and not margin_floor_mask(price, item.unit_cost, 0.0, min_margin):
            with pytest.raises(ValueError, match="leaves less than"):
                strategy_of(vectors, row, item, brief, Audience("a"), "s")
            continue
        strategy = strategy_of(vectors, row, item, brief, Audience("a"), "s")
        offer = strategy.actions[0].offer
        assert offer.depth <= max_depth
        assert margin_floor_mask(price, item.unit_cost, offer.depth, min_margin)
        assert (offer.kind is OfferKind.NONE) == (offer.depth == 0)
        assert offer.kind is OfferKind.PERCENT or offer.threshold == 0
        assert {action.channel for action in strategy.actions} <= channels
        assert brief.starts <= strategy.starts < strategy.ends <= brief.ends
        assert vectors.shares[row].sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offer_kind", "bogof", "offer_kind: bogof in row 1 is not one of none, percent"),
        ("depth", 1.0, "depth: 1.0 of strategy 1 is outside"),
        ("depth", 0.0, "depth: 0.0 of strategy 1 does not fit offer_kind"),
        ("threshold", -1, "threshold: -1 of strategy 1"),
        ("share_email", 0.9, "must be ≥ 0 and sum to 1"),
        ("days", 0, "days: 0 of strategy 1 is below 1"),
        ("start_day", -1, "start_day: -1 of strategy 1 is negative"),
        ("users", 0, "users: 0.0 in row 1 is below 1"),
        ("cost", "much", "cost: much in row 1 is no number"),
        ("margin", np.nan, "margin: nan in row 1 is no number"),
    ],
)
def test_a_bad_log_is_refused_by_column_and_row(
    log: StrategyLog, column: str, value: object, message: str
) -> None:
    frame = to_frame(log)
    frame = frame[frame["depth"] > 0].reset_index(drop=True).astype({column: object})
    frame.loc[0, ["share_email", "share_push", "share_display", "share_mailer"]] = [1.0, 0.0, 0.0, 0.0]
    frame.loc[0, column] = value
    with pytest.raises(DataError, match=message):
        from_frame(frame, "log.csv")


def test_a_log_survives_a_file(log: StrategyLog, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    to_frame(log).to_csv(path, index=False)
    found = read_log(path)
    assert equal(found.vectors, log.vectors)
    assert found.names == log.names
    np.testing.assert_allclose(found.outcomes[Objective.MARGIN], log.outcomes[Objective.MARGIN])


def test_a_log_without_outcome_or_feature_is_refused(log: StrategyLog) -> None:
    frame = to_frame(log)
    with pytest.raises(DataError, match="no column of an outcome"):
        from_frame(frame.drop(columns=["margin", "clicks"]), "log.csv")
    with pytest.raises(DataError, match="no column of a feature"):
        from_frame(frame.drop(columns=list(cases.NAMES)), "log.csv")
    with pytest.raises(DataError, match="has 10 trials"):
        from_frame(frame.head(10), "log.csv")


def test_ranks_are_within_the_segment_and_follow_the_budget(log: StrategyLog, proposer: Proposer) -> None:
    levels = ranks(log, proposer.fitted.conditions, None)
    rows = log.segment == "email-1"
    assert sorted(levels[rows, 0, 0]) == pytest.approx((np.arange(60) + 0.5) / 60)
    tight, ample = levels[rows, 0, 0], levels[rows, 0, -1]
    days = log.vectors.days[rows]
    # Who has little money gets nothing from a long run; who has much does.
    assert np.corrcoef(ample, days)[0, 1] > np.corrcoef(tight, days)[0, 1] + 0.1


def test_proposals_fit_the_segment_and_beat_random_and_best_of_log(
    log: StrategyLog, proposer: Proposer
) -> None:
    gains: dict[str, list[float]] = {"random": [], "log": [], "vae": []}

    for segment, (channel, _) in cases.SEGMENTS.items():
        best = proposer.propose(cases.request(segment, n=1)).vectors
        assert best.shares[0].argmax() == channel
        own = np.flatnonzero(log.segment == segment)
        seen = log.outcomes[Objective.MARGIN][own] / log.users[own]
        seen = seen * np.minimum(1, cases.BUDGET * log.users[own] / log.cost[own])
        gains["vae"].append(cases.gain(segment, best)[0])
        gains["log"].append(cases.gain(segment, log.vectors.take(own[[seen.argmax()]]))[0])
        gains["random"].append(cases.gain(segment, cases.random_vectors(200, 9)).mean())
    assert np.mean(gains["vae"]) > np.mean(gains["log"]) > np.mean(gains["random"])


def test_the_network_alone_leans_to_what_worked(proposer: Proposer) -> None:
    for segment in cases.SEGMENTS:
        request = cases.request(segment)
        drawn, guesses = proposer.draw(request), cases.random_vectors(512, 9)
        assert cases.gain(segment, drawn).mean() > 1.2 * cases.gain(segment, guesses).mean()


def test_proposals_are_admissible_different_and_best_first(proposer: Proposer) -> None:
    request = cases.request("push-1", n=8, max_depth=0.15, channels=(Channel.PUSH, Channel.EMAIL))
    found = proposer.propose(request)
    assert len(found.vectors) == 8
    assert (found.vectors.depth <= 0.15).all()
    assert (found.vectors.shares[:, 2:] == 0).all()
    assert (np.diff(found.gain) <= 0).all()
    rows = {
        tuple(np.concatenate([v.features[0], [v.kind[0]]]))
        for v in map(found.vectors.take, np.eye(8, dtype=bool))
    }
    assert len(rows) == 8


def test_equal_seeds_give_equal_models_and_a_model_survives_its_folder(
    log: StrategyLog, proposer: Proposer, tmp_path: Path
) -> None:
    again = cases.fitted(log)
    trained = train_proposer(log, tmp_path, cases.QUICK)
    loaded = artifact.load_proposer(trained.artifact.path)
    request = cases.request("email-1")
    wanted = proposer.propose(request, seed=3)
    for other in (again, loaded):
        found = other.propose(request, seed=3)
        assert equal(found.vectors, wanted.vectors)
        np.testing.assert_array_equal(found.gain, wanted.gain)
    assert not equal(proposer.propose(request, seed=4).vectors, wanted.vectors)
    assert trained.metrics["r2_clicks"] > 0.9


def test_what_draws_draws_what_was_trained(proposer: Proposer) -> None:
    fitted = proposer.fitted
    assert isinstance(fitted, FittedProposer)
    condition = np.random.default_rng(0).normal(size=(64, fitted.conditions.width)).astype(np.float32)
    found = fitted.network.sample(condition, 5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        wanted = fitted.vae.network.sample(torch.from_numpy(condition))
    np.testing.assert_array_equal(found.form, wanted.category.numpy())
    np.testing.assert_allclose(found.numbers, wanted.numbers.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.shares, wanted.shares.numpy(), rtol=1e-6)


def test_another_schema_kind_or_a_changed_file_is_refused(
    log: StrategyLog, proposer: Proposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = artifact.write_proposer(tmp_path, proposer, {}, {}, "f")
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "COLUMNS", (*artifact.COLUMNS, "colour"))
        with pytest.raises(ArtifactError, match="other columns \\(colour\\)"):
            artifact.load_proposer(written.path)
        patch.setattr(artifact, "KIND", "another")
        with pytest.raises(ArtifactError, match="is of kind 'proposer-model'"):
            artifact.load_proposer(written.path)
    less = replace(proposer, fitted=replace(proposer.fitted, network=artifact.Decoder({**WEIGHTS})))
    with pytest.raises(ArtifactError, match=r"cannot be read as a proposer \(decoder: takes 3 numbers"):
        artifact.load_proposer(artifact.write_proposer(tmp_path, less, {}, {}, "f").path)
    (written.path / artifact.CARD).write_text("{}x")
    with pytest.raises(ArtifactError, match="was changed"):
        artifact.load_proposer(written.path)
    assert (written.path / MANIFEST).exists()


def test_a_goal_or_feature_that_is_not_there_is_named(proposer: Proposer) -> None:
    with pytest.raises(ValueError, match="goal: 'sales' was not in the log; use one of margin, clicks"):
        proposer.propose(cases.request("email-0", objective=Objective.SALES))
    with pytest.raises(ValueError, match="the model knows segment_best_channel, segment_deal_seeker"):
        proposer.propose(replace(cases.request("email-0"), features=np.zeros(3)))
    with pytest.raises(ValueError, match="budget: 0 per member"):
        replace(cases.request("email-0"), budget=0.0)
    with pytest.raises(ValueError, match=r"brief.channels: none of them"):
        proposer.propose(cases.request("email-0", channels=()))


def test_from_a_log_to_strategies_by_the_command_line(log: StrategyLog, tmp_path: Path) -> None:
    data, out = tmp_path / "log.parquet", tmp_path / "model"
    pd.DataFrame(to_frame(log)).to_parquet(data)
    trained = RUNNER.invoke(
        app, ["train", "proposer", "--data", str(data), "--out", str(out), "--epochs", "5"]
    )
    assert trained.exit_code == 0, trained.output
    assert "margin" in trained.output
    asked = ["propose", "push-1", "--model", str(out), "--price", "1000", "--unit-cost", "700"]
    asked += ["--budget", "4", "-n", "3", "--starts", "2025-03-03", "--channel", "push"]
    found = RUNNER.invoke(app, asked)
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert [row["rank"] for row in document["proposals"]] == [1, 2, 3]
    for row in document["proposals"]:
        strategy = strategy_from_dict(row["strategy"])
        assert strategy.provenance["proposer"] == document["model"]
        assert {action.channel for action in strategy.actions} == {Channel.PUSH}
        assert all(margin_floor_mask(1_000, 700, action.offer.depth, 0.05) for action in strategy.actions)
    assert json.loads(RUNNER.invoke(app, asked).stdout) == document

    features = tmp_path / "new.json"
    features.write_text(json.dumps({"segment_best_channel": 1, "segment_deal_seeker": 1}))
    asked[1] = "unheard-of"
    refused = RUNNER.invoke(app, asked)
    assert "'unheard-of' is not in the log; use one of email-0" in str(refused.exception)
    new = json.loads(RUNNER.invoke(app, [*asked, "--features", str(features)]).stdout)
    assert len(new["proposals"]) == 3
    features.write_text("{}")
    missing = RUNNER.invoke(app, [*asked, "--features", str(features)])
    assert "numbers wanted: segment_best_channel" in str(missing.exception)
