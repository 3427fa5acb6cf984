"""The sequence model: what it reads, that it sees no future, how a rank is counted, that it learns."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qiance.artifacts.manifest import ArtifactError
from qiance.artifacts.recommend import Recommender, SequenceScorer, load_recommender, padded
from qiance.cli.main import app
from qiance.data.errors import DataError
from training.recommend.fit import RecommendSettings, fit_recommender
from training.recommend.judge import by_popularity, places, quality, ranks
from training.recommend.model import write_recommender
from training.recommend.neighbours import count_near, fit_neighbours, item_vectors
from training.recommend.network import NetworkConfig, NextItem, SequenceNetwork
from training.recommend.sequences import Purchases, leave_out, purchases_of, read_sequences

RUNNER = CliRunner()
SMALL = RecommendSettings(
    width=16, blocks=1, heads=2, length=8, dropout=0.0, epochs=30, patience=30, batch=32, learning_rate=1e-2
)


def circles(users: int, items: int = 12, seed: int = 0) -> Purchases:
    """Everybody buys one item after the other, from a start of his own: the next one is certain."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, items, users), rng.integers(4, 9, users)
    lines = [
        (f"u{n}", [f"i{(start + k) % items:02}" for k in range(length)])
        for n, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    return purchases_of(lines, "circles")


def test_a_file_is_read_with_its_own_ids(tmp_path: Path) -> None:
    path = tmp_path / "log.txt.gz"
    path.write_bytes(gzip.compress(b"anna b a c d\nben d c b a d\n"))
    found = read_sequences(path)
    assert found.users == ("anna", "ben")
    assert [[found.items[k - 1] for k in row] for row in found.rows] == [list("bacd"), list("dcbad")]
    assert len(found.some(1).items) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anna a b c d\nben a b c\n", "line 2 has 3 purchases; keep users with at least 4"),
        (b"", "is empty"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_cannot_be_learned_from_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sequences(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: does not exist"):
        read_sequences(tmp_path / "none.txt")


def test_the_last_purchase_is_never_among_what_is_known() -> None:
    purchases = circles(20)
    for last in (1, 2):
        known = leave_out(purchases, last)
        for row, before, target in zip(purchases.rows, known.rows, known.target, strict=True):
            assert list(row[: len(before) + 1]) == [*before, target]
            assert len(row) - len(before) == last


def test_what_comes_later_changes_no_earlier_state() -> None:
    torch.manual_seed(0)
    network = SequenceNetwork(NetworkConfig(9, width=8, blocks=2, length=6)).eval()
    with torch.no_grad():
        long, short = network(torch.tensor([[3, 5, 7, 2, 8]])), network(torch.tensor([[3, 5, 7, 0, 0]]))
    assert torch.allclose(long[:, :3], short[:, :3], atol=1e-6)
    assert not torch.allclose(long[:, 3], short[:, 3], atol=1e-3)


def test_only_the_last_items_are_looked_at_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = SequenceNetwork(NetworkConfig(9, width=8, blocks=1, length=3)).eval()
    rows = [np.array([1, 2, 3, 4, 5]), np.array([6])]
    scores = NextItem(network)
    together = scores(torch.from_numpy(padded(rows, 3)))
    assert torch.allclose(together[:1], scores(torch.tensor([[3, 4, 5]])), atol=1e-6)
    assert torch.allclose(together[1:], scores(torch.tensor([[6]])), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_rank_counts_every_item_that_was_not_bought_and_is_not_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = int(rng.integers(3, 12))
    scores = rng.integers(0, 4, (1, items)).astype(np.float32)
    bought = rng.integers(1, items + 1, int(rng.integers(1, items)))
    target = int(rng.integers(1, items + 1))
    rivals = [k for k in range(1, items + 1) if k != target and k not in bought]
    expected = 1 + sum(scores[0, k - 1] >= scores[0, target - 1] for k in rivals)
    assert places(scores, [bought], np.array([target]))[0] == expected


def test_figures_are_those_of_one_relevant_item() -> None:
    found = quality(np.array([1, 3, 6, 11]))
    assert found["hr5"] == pytest.approx(0.5)
    assert found["hr10"] == pytest.approx(0.75)
    assert found["ndcg5"] == pytest.approx((1 + 0.5) / 4)
    assert found["ndcg10"] == pytest.approx((1 + 0.5 + 1 / np.log2(7)) / 4)


def test_what_is_certain_is_learned_and_beats_popularity() -> None:
    purchases = circles(80)
    fitted = fit_recommender(purchases, SMALL)
    judged = leave_out(purchases, 1)
    rank = ranks(fitted.scorer, judged)
    assert (rank == 1).mean() > 0.95
    assert (by_popularity(judged, len(purchases.items)) == 1).mean() < 0.6


def test_the_same_seed_gives_the_same_network() -> None:
    few = RecommendSettings(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"epochs": 2})
    before = torch.are_deterministic_algorithms_enabled()
    first, second = (fit_recommender(circles(40), few).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.are_deterministic_algorithms_enabled() is before


def test_training_stops_when_nothing_gets_better_and_keeps_the_best() -> None:
    impatient = RecommendSettings(
        **{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"patience": 2, "learning_rate": 0.0}
    )
    fitted = fit_recommender(circles(40), impatient)
    assert len(fitted.history) == 3
    assert fitted.best["epoch"] == 0


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads: 3 do not divide the width 8"):
        NetworkConfig(5, width=8, heads=3)


def test_a_step_over_some_items_stands_for_one_over_all() -> None:
    torch.manual_seed(0)
    network = SequenceNetwork(NetworkConfig(50, width=8, blocks=1, length=4, dropout=0.0))
    source, target = torch.tensor([[3, 5, 7]]), torch.tensor([[5, 7, 2]])
    full = network.loss(source, target).item()
    rng = np.random.default_rng(0)
    drawn = [
        network.loss(source, target, torch.from_numpy(rng.integers(1, 51, 400))).item() for _ in range(50)
    ]
    assert np.mean(drawn) == pytest.approx(full, abs=0.01)


def test_a_user_trains_and_is_recommended_to(tmp_path: Path) -> None:
    purchases = circles(60)
    lines = [
        " ".join([user, *(purchases.items[k - 1] for k in row)])
        for user, row in zip(purchases.users, purchases.rows, strict=True)
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    versions = []
    for name in ("one", "two"):
        command = ["train", "recommend", "--data", str(tmp_path / "log.txt"), "--out", str(tmp_path / name)]
        done = RUNNER.invoke(app, [*command, "--epochs", "2"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        versions.append(json.loads((tmp_path / name / "metrics.json").read_text())["model"])
    assert versions[0] == versions[1], "equal data and seed give an equal model"
    command = ["recommend", "--model", str(tmp_path / "one"), "-n", "3"]
    known = json.loads(RUNNER.invoke(app, [*command, "i02", "unheard-of", "i03"]).output)
    items = [row["item_id"] for row in known["items"]]
    assert len(items) == 3
    assert not {"i02", "i03"} & set(items)
    assert not known["cold"]
    cold = json.loads(RUNNER.invoke(app, [*command, "unheard-of"]).output)
    counts = np.bincount(np.concatenate([row[:-1] for row in purchases.rows]))[1:]
    assert cold["cold"]
    assert counts[purchases.items.index(cold["items"][0]["item_id"])] == counts.max()


def test_all_items_may_be_asked_for_and_the_artifact_is_checked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SequenceNetwork(NetworkConfig(5, width=8, blocks=1, length=4)).eval()
    near = fit_neighbours(count_near([np.array([1, 2, 3]), np.array([2, 4])], 5))
    recommender = Recommender(SequenceScorer(NextItem(network), 4, near, 0.3), list("abcde"), np.arange(1, 6))
    artifact = write_recommender(tmp_path, recommender, {"hr10": 0.1}, {}, "0")
    again = load_recommender(artifact.path)
    found = again.recommend(["a", "b", "a"], 9)
    assert set(found.items) == set("cde")
    assert sum(found.chance) == pytest.approx(1.0)
    assert found == recommender.recommend(["a", "b", "a"], 9)
    assert found.items[0] == "c"
    with pytest.raises(ValueError, match="count: 0 items are none"):
        again.recommend(["a"], 0)
    (artifact.path / "items.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"'items\.json' was changed"):
        load_recommender(artifact.path)


def test_what_is_bought_near_each_other_is_similar() -> None:
    rows = [np.array([1, 2, 3]), np.array([1, 2]), np.array([4, 5])]
    counts = count_near(rows, 6).toarray()
    assert np.array_equal(counts, counts.T)
    assert counts[0, 1] == 2
    assert counts[0, 2] == 0.5
    assert not counts[5].any()
    near = fit_neighbours(count_near(rows, 6))
    found = near.chances([np.array([1]), np.array([6])])
    assert found[0].argmax() == 1
    assert found[0].sum() == pytest.approx(1.0)
    assert not found[1].any()
    latest = near.chances([np.array([4, 1]), np.array([1, 4])])
    assert latest[0, 1] > latest[1, 1]


def test_items_of_one_company_start_close_together() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(1, 9) + 8 * (n % 2))[:5] for n in range(60)]
    vectors = item_vectors(count_near(rows, 17), 4, 0)
    assert np.allclose(np.linalg.norm(vectors[:16], axis=1), 1.0, atol=1e-5)
    assert not vectors[16].any()
    within, between = vectors[:8] @ vectors[:8].T, vectors[:8] @ vectors[8:16].T
    assert within.mean() > between.mean() + 0.3


@given(st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_mixture_is_a_distribution_between_its_halves(weight: float) -> None:
    torch.manual_seed(0)
    network = SequenceNetwork(NetworkConfig(5, width=8, blocks=1, length=4)).eval()
    near = fit_neighbours(count_near([np.array([1, 2, 3, 4, 5])], 5))
    rows = [np.array([1, 2]), np.array([3])]
    mixed = SequenceScorer(NextItem(network), 4, near)
    low, own, high = (replace(mixed, weight=share).chances(rows) for share in (0.0, weight, 1.0))
    assert np.allclose(own.sum(axis=1), 1.0, atol=1e-5)
    assert np.allclose(own, (1 - weight) * low + weight * high, atol=1e-6)
