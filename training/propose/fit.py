"""Fitting a conditional VAE: seeded, with early stopping; and the proposer's records made from a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from qiance.artifacts.proposer import Decoder
from qiance.domain import Objective
from qiance.proposer.outcome import Expected, OutcomeModel
from qiance.proposer.proposer import Conditions, Learned
from qiance.proposer.vector import CHANNELS, FORMS, NUMBERS, Encoded, Floats, Ints, Space
from training.effect.loop import torch_left_alone
from training.propose.log import StrategyLog
from training.propose.network import ConditionalVae, Records, VaeConfig
from training.propose.outcome import fit_outcomes

Tell = Callable[[float, str], None]
BUDGETS = 8
HELD_OUT = 0.15
MEASURE_EVERY = 5


@dataclass(frozen=True, slots=True)
class VaeSettings:
    """epochs: at most; patience: epochs without a better ELBO on records held out. batch: records a step."""

    latent: int = 4
    hidden: int = 64
    epochs: int = 300
    patience: int = 40
    batch: int = 256
    learning_rate: float = 2e-3
    decay: float = 1e-3
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ProposerSettings:
    """How outcomes steer the generator.

    level: the outcome that a trial is ranked by within its segment, as `observed`, or as the outcome model
    has `predicted` it. steer: the rank is a part of the condition (`condition`), or trials weigh exp((rank −
    1) ÷ temperature) (`weight`). asked: least rank that proposals ask for. draws: goals and budgets that each
    trial is shown with per epoch.
    """

    vae: VaeSettings = VaeSettings()
    level: Literal["observed", "predicted"] = "predicted"
    steer: Literal["condition", "weight"] = "condition"
    temperature: float = 0.1
    asked: float = 0.9
    draws: int = 4


@dataclass(frozen=True)
class FittedVae:
    """The network of the best epoch; history: epoch, loss learned from and loss held out, nats."""

    network: ConditionalVae
    history: list[dict[str, float]] = field(repr=False)
    seconds: float

    @property
    def best(self) -> dict[str, float]:
        return min(self.history, key=lambda epoch: epoch["valid_loss"])


def fit_vae(
    config: VaeConfig,
    records: Callable[[np.random.Generator], Records],
    valid: Records,
    settings: VaeSettings,
    tell: Tell | None = None,
) -> FittedVae:
    """Maximise the ELBO of `records(rng)`, drawn anew each epoch, until that of `valid` gets no better.

    Deterministic for equal records, settings and machine.
    """
    told, started = tell or (lambda _share, _text: None), time.monotonic()
    with torch_left_alone():
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(settings.seed)
        network, rng = ConditionalVae(config), np.random.default_rng(settings.seed)
        history = _epochs(network, records, valid, settings, rng, told)
    return FittedVae(network.eval(), history, time.monotonic() - started)


def _epochs(
    network: ConditionalVae,
    records: Callable[[np.random.Generator], Records],
    valid: Records,
    settings: VaeSettings,
    rng: np.random.Generator,
    told: Tell,
) -> list[dict[str, float]]:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.decay
    )
    noise = torch.randn(len(valid.weight), settings.latent)
    history: list[dict[str, float]] = []
    best, lowest, stale = _state(network), np.inf, 0
    while len(history) < settings.epochs and stale < settings.patience:
        loss = _epoch(network, records(rng), optimiser, settings, rng)
        with torch.no_grad():
            held_out = float(network.loss(valid, noise))
        history.append({"epoch": float(len(history) + 1), "loss": loss, "valid_loss": held_out})
        stale += 1
        if held_out < lowest:
            best, lowest, stale = _state(network), held_out, 0
        if len(history) % MEASURE_EVERY == 0:
            told(
                len(history) / settings.epochs,
                f"epoch {len(history)}: −ELBO {loss:.3f}, held out {held_out:.3f}",
            )
    if not np.isfinite(lowest):
        raise RuntimeError("training ended without a model: no epoch had a finite loss; lower learning_rate")
    network.load_state_dict(best)
    return history


def _state(network: ConditionalVae) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _epoch(
    network: ConditionalVae,
    records: Records,
    optimiser: torch.optim.Optimizer,
    settings: VaeSettings,
    rng: np.random.Generator,
) -> float:
    order, losses = torch.from_numpy(rng.permutation(len(records.weight))), []
    for rows in order.split(settings.batch):
        part = records.take(rows)
        loss = network.loss(part, torch.randn(len(rows), settings.latent))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@dataclass(frozen=True)
class FittedProposer(Learned):
    """With the network as it was trained; `network` is the part of it that draws."""

    vae: FittedVae


def fit_proposer(
    log: StrategyLog, settings: ProposerSettings | None = None, tell: Tell | None = None
) -> FittedProposer:
    """Fit the outcome model, rank the trials of each segment by goal and budget, and fit the network."""
    chosen = settings or ProposerSettings()
    outcomes, space = fit_outcomes(log), Space.of(log.vectors)
    conditions = _conditions(log)
    levels = ranks(log, conditions, outcomes if chosen.level == "predicted" else None)
    encoded = space.encode(log.vectors)
    rng = np.random.default_rng([chosen.vae.seed, 1])
    order = rng.permutation(len(log))
    held = max(1, round(HELD_OUT * len(log)))

    def records(rows: Ints, draw: np.random.Generator) -> Records:
        return _records(log, encoded, levels, conditions, chosen, np.tile(rows, chosen.draws), draw)

    config = VaeConfig(
        conditions.width, len(NUMBERS), FORMS, len(CHANNELS), chosen.vae.latent, chosen.vae.hidden
    )
    valid = records(order[:held], np.random.default_rng([chosen.vae.seed, 2]))
    vae = fit_vae(config, lambda draw: records(order[held:], draw), valid, chosen.vae, tell)
    weights = {name: value.numpy() for name, value in vae.network.state_dict().items()}
    return FittedProposer(Decoder(weights), outcomes, conditions, space, vae)


def _conditions(log: StrategyLog) -> Conditions:
    spread, cost = log.features.std(axis=0), log.cost / log.users
    low, high = np.quantile(cost[cost > 0], [0.1, 0.9]) if (cost > 0).any() else (1.0, 1.0)
    scale = np.where(spread > 0, spread, 1.0)
    return Conditions(
        tuple(log.outcomes),
        log.features.mean(axis=0),
        scale,
        np.geomspace(low, max(high, low * 1.01), BUDGETS),
    )


def ranks(log: StrategyLog, conditions: Conditions, outcomes: OutcomeModel | None) -> Floats:
    """`[n, goals, budgets]` in (0, 1): the rank of a trial's gain among those of its segment.

    The gain is as observed, or with `outcomes` as that expects it.
    """
    levels = np.empty((len(log), len(conditions.goals), len(conditions.budgets)))
    groups = [np.flatnonzero(log.segment == name) for name in np.unique(log.segment)]
    for g, goal in enumerate(conditions.goals):
        own = _observed(log, goal) if outcomes is None else outcomes.expect(log.features, log.vectors, goal)
        for b, budget in enumerate(conditions.budgets):
            gain = own.gain(budget)
            for rows in groups:
                levels[rows, g, b] = (stats.rankdata(gain[rows]) - 0.5) / len(rows)
    return levels


def _observed(log: StrategyLog, goal: Objective) -> Expected:
    value, cost = log.outcomes[goal] / log.users, log.cost / log.users
    return Expected(value, np.zeros_like(value), np.maximum(cost, 1e-3))


def _records(
    log: StrategyLog,
    encoded: Encoded,
    levels: Floats,
    conditions: Conditions,
    settings: ProposerSettings,
    rows: Ints,
    draw: np.random.Generator,
) -> Records:
    """Trials `rows` with goals and budgets at random."""
    goal = draw.integers(len(conditions.goals), size=len(rows))
    budget = draw.integers(len(conditions.budgets), size=len(rows))
    level = levels[rows, goal, budget]
    shown = level if settings.steer == "condition" else np.ones_like(level)
    weight = np.exp((level - 1) / settings.temperature)
    condition = conditions.rows(log.features[rows], goal, conditions.budgets[budget], shown)
    return Records(
        torch.from_numpy(condition),
        _float(encoded.numbers[rows]),
        _float(encoded.used[rows]),
        torch.from_numpy(encoded.form[rows].astype(np.int64)),
        _float(encoded.shares[rows]),
        _float(np.ones_like(weight) if settings.steer == "condition" else weight),
    )


def _float(values: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
