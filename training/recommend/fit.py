"""Gradient steps over purchase sequences until the items bought next are found no better."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from qiance.artifacts.recommend import SequenceScorer, padded
from training.effect.loop import torch_left_alone
from training.recommend.judge import quality, ranks
from training.recommend.neighbours import count_near, fit_neighbours, item_vectors
from training.recommend.network import NetworkConfig, NextItem, SequenceNetwork
from training.recommend.sequences import Ints, Known, Purchases, batches, leave_out

Tell = Callable[[float, str], None]
_MEASURE = "ndcg10"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class RecommendSettings:
    """width, blocks, heads, length, dropout: see `NetworkConfig`. epochs: at most; patience: epochs without a
    better NDCG@10 on the purchases before the last of `valid_users`. batch: users per step. negatives: items
    that stand for all others in a step; 0, or more than there are, for all of them. decay: AdamW's weight
    decay."""

    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 50
    dropout: float = 0.5
    epochs: int = 60
    patience: int = 6
    batch: int = 256
    negatives: int = 2048
    valid_users: int = 6000
    learning_rate: float = 1e-3
    decay: float = 0.01
    threads: int = 1
    seed: int = 0

    def network(self, items: int) -> NetworkConfig:
        return NetworkConfig(items, self.width, self.blocks, self.heads, self.length, self.dropout)


@dataclass(frozen=True)
class Fitted:
    """network: of the best epoch; scorer: the same with its neighbours. mixed: NDCG@10 on the purchases
    before the last, by the share of the neighbours. history: what each epoch's network gave there. seconds:
    all of it."""

    network: SequenceNetwork = field(repr=False)
    scorer: SequenceScorer
    mixed: dict[float, float]
    history: list[dict[str, float]] = field(repr=False)
    seconds: float

    def parts(self) -> dict[str, SequenceScorer]:
        """Each half of the mixture alone."""
        return {"network": replace(self.scorer, weight=0.0), "neighbours": replace(self.scorer, weight=1.0)}

    @property
    def best(self) -> dict[str, float]:
        return max(self.history, key=lambda epoch: epoch[_MEASURE])


def fit_recommender(purchases: Purchases, settings: RecommendSettings, tell: Tell | None = None) -> Fitted:
    """Learn from all purchases but the last two of each user; the one before the last says when to stop.

    Deterministic for equal purchases, settings and machine.
    """
    told, started = tell or (lambda _share, _text: None), time.monotonic()
    with torch_left_alone():
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(settings.seed)
        network = SequenceNetwork(settings.network(len(purchases.items)))
        counts = count_near([row[:-2] for row in purchases.rows], len(purchases.items))
        network.start_from(torch.from_numpy(item_vectors(counts, settings.width, settings.seed)))
        valid = _valid(purchases, settings)
        history = _epochs(network, purchases, valid, settings, told)
        scorer, mixed = _mixed(replace(_alone(network), neighbours=fit_neighbours(counts)), valid)
    return Fitted(network, scorer, mixed, history, time.monotonic() - started)


def _alone(network: SequenceNetwork) -> SequenceScorer:
    """The network without neighbours, as it is now."""
    return SequenceScorer(NextItem(network).eval(), network.config.length)


def _valid(purchases: Purchases, settings: RecommendSettings) -> Known:
    """What came before the last purchase, of at most `valid_users`, at random."""
    users = np.random.default_rng(settings.seed).permutation(len(purchases))[: settings.valid_users]
    return leave_out(purchases, 2).take(users)


def _mixed(scorer: SequenceScorer, valid: Known) -> tuple[SequenceScorer, dict[float, float]]:
    """With the share of neighbours that finds best what is bought next, and what each share gave."""
    tried = {weight: replace(scorer, weight=weight) for weight in SHARES}
    found = {weight: quality(ranks(one, valid))[_MEASURE] for weight, one in tried.items()}
    return tried[max(found, key=lambda weight: found[weight])], found


def _epochs(
    network: SequenceNetwork, purchases: Purchases, valid: Known, settings: RecommendSettings, told: Tell
) -> list[dict[str, float]]:
    rows = [row[:-2] for row in purchases.rows]
    rng = np.random.default_rng(settings.seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.decay
    )
    history: list[dict[str, float]] = []
    best = {name: value.clone() for name, value in network.state_dict().items()}
    stale = 0
    while len(history) < settings.epochs and stale < settings.patience:
        loss = _epoch(network, rows, optimiser, settings, rng)
        figures = {"epoch": float(len(history)), "train_loss": loss} | quality(ranks(_alone(network), valid))
        better = not history or figures[_MEASURE] > max(one[_MEASURE] for one in history)
        history.append(figures)
        stale = 0 if better else stale + 1
        if better:
            best = {name: value.clone() for name, value in network.state_dict().items()}
        text = f"epoch {len(history)}: loss {loss:.3f}, NDCG@10 {figures[_MEASURE]:.4f}"
        told(len(history) / settings.epochs, text)
    network.load_state_dict(best)
    return history


def _others(items: int, negatives: int, rng: np.random.Generator) -> torch.Tensor | None:
    """`[m]` items that stand for all; None for all themselves."""
    if not 0 < negatives < items:
        return None
    return torch.from_numpy(rng.integers(1, items + 1, negatives))


def _epoch(
    network: SequenceNetwork,
    rows: list[Ints],
    optimiser: torch.optim.Optimizer,
    settings: RecommendSettings,
    rng: np.random.Generator,
) -> float:
    """One pass over all users; the mean loss of a target."""
    network.train()
    total, count = 0.0, 0
    for users in batches(rows, settings.batch, rng):
        some = [rows[user] for user in users if len(rows[user]) > 1]
        if not some:
            continue
        items = torch.from_numpy(padded(some, settings.length + 1))
        source, target = items[:, :-1], items[:, 1:]
        loss = network.loss(source, target, _others(network.config.items, settings.negatives, rng))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        targets = int((target > 0).sum())
        total, count = total + loss.item() * targets, count + targets
    return total / count
