"""How likely a user buys at each depth of an offer, learned from a randomised log.

Two kinds of models are averaged: small networks whose log-odds rise with the depth (a free step for being
contacted at all, which may be negative), and boosted trees that take the depth as a feature. They err
differently: networks find smooth responses, trees hard borders. Members are fitted to the whole log and
predict. Heads are fitted to bootstrap samples and tell what members cannot know of themselves: how much
either kind counts, by the log loss on the rows that a head has not seen, and how sure the lifts are, by the
spread of the heads. Lifts are shrunken by it (`qiance.allocate.risk`), so that the winner's curse does not
spend the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.risk import Prior
from qiance.evaluate.arrays import finite_matrix, finite_vector, index_vector, refuse_where

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Error of the members' mean as a share of one head's: averaging, and the whole log, about halve it. With 1,
# the planted responses of benchmarks/allocating were shrunken too far (seeds from 1,000 on).
_MEAN_ERROR = 0.5
_PRIOR_ROWS = 5_000
_HEAD_SEED = 500_000


@dataclass(frozen=True, slots=True)
class DoseSettings:
    """members: networks and as many boosted ensembles, on the whole log; heads: as many of each again, on
    resampled logs. Without heads both kinds count half, and nothing is shrunken.

    hidden: width of the two layers; epochs, batch, rate, decay: of the networks. trees, leaves, shrinkage,
    least_rows: of the boosted ensembles.
    """

    members: int = 4
    heads: int = 4
    hidden: int = 32
    epochs: int = 8
    batch: int = 256
    rate: float = 3e-3
    decay: float = 1e-3
    trees: int = 100
    leaves: int = 8
    shrinkage: float = 0.06
    least_rows: int = 100

    def __post_init__(self) -> None:
        for name in ("members", "hidden", "epochs", "batch", "trees", "least_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        if self.heads < 0:
            raise ValueError(f"heads: {self.heads} is less than 0")


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Networks and boosters, as many of each, over standardised features `[n, F]` and all depths."""

    depths: Floats
    networks: tuple[tuple[Floats, ...], ...]
    boosters: tuple[Any, ...]

    def responses(self, z: Floats) -> tuple[Floats, Floats]:
        """Purchase probabilities `[M, n, D]` of the networks and of the boosters."""
        grid = _with_depth(np.repeat(z, len(self.depths), axis=0), np.tile(self.depths, len(z)))
        shape = (len(z), len(self.depths))
        hard = [booster.predict(grid, num_threads=1).reshape(shape) for booster in self.boosters]
        return np.stack([_forward(network, z) for network in self.networks]), np.stack(hard)

    def spread(self, z: Floats, share: float) -> Floats:
        """`[n, D]` standard deviation of the lift over depth 0, networks counting `share`."""
        smooth, hard = (part - part[:, :, :1] for part in self.responses(z))
        middle = share * smooth.mean(axis=0) + (1 - share) * hard.mean(axis=0)
        squares = [((part - middle) ** 2).mean(axis=0) for part in (smooth, hard)]
        return np.asarray(np.sqrt(share * squares[0] + (1 - share) * squares[1]))


@dataclass(frozen=True, slots=True, eq=False)
class DoseModel:
    """A fitted model.

    share: what the networks count, the boosters counting the rest. prior: of the lifts, over the users that
    it was fitted on; error: `[D]` their typical standard error. Both are None where there were no heads.
    """

    middle: Floats
    scale: Floats
    members: Ensemble
    share: float
    prior: Prior | None = None
    error: Floats | None = None

    def predict(self, x: Floats, shrunken: bool = True) -> Floats:
        """`[n, D]` purchase probability at each depth of users `[n, F]`: by posterior means of the lifts, or
        the plain mean over the members."""
        smooth, hard = self.members.responses((x - self.middle) / self.scale)
        found: Floats = self.share * smooth.mean(axis=0) + (1 - self.share) * hard.mean(axis=0)
        if not shrunken or self.prior is None or self.error is None:
            return found
        # One error for all users of a level: where the response is high its spread is too, and users that
        # respond most would be shrunken most.
        lift = found - found[:, :1]
        lift = self.prior.posterior(lift, np.broadcast_to(self.error, lift.shape))
        return np.clip(found[:, :1] + lift, 1e-6, 1 - 1e-6)


def fit_dose(
    x: Floats,
    level: Ints,
    bought: Ints,
    depths: Sequence[float],
    propensity: Floats,
    seed: int = 0,
    settings: DoseSettings | None = None,
) -> DoseModel:
    """Fit to a randomised log.

    x: `[n, F]`; level: `[n]` index into `depths`, which rises from 0; bought: `[n]` in {0, 1}; propensity:
    `[n]` of the level given, in (0, 1]: rows weigh 1 ÷ propensity, so that every level is learned for all.
    ValueError names what is wrong.
    """
    chosen = settings or DoseSettings()
    features = finite_matrix("x", x).astype(np.float64)
    grid = finite_vector("depths", depths)
    if grid[0] != 0 or (np.diff(grid) <= 0).any():
        raise ValueError(f"depths: {grid.tolist()} must rise from 0, doing nothing")
    levels = index_vector("level", level, len(features))
    refuse_where("level", levels, levels >= grid.size, f"there are {grid.size} depths")
    labels = index_vector("bought", bought, len(features))
    refuse_where("bought", labels, labels > 1, "must be 0 or 1")
    chance = finite_vector("propensity", propensity, len(features))
    refuse_where("propensity", chance, (chance <= 0) | (chance > 1), "must be in (0, 1]")
    middle, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = _Rows((features - middle) / scale, levels, labels, 1.0 / chance, grid)
    members = rows.fit([np.ones(len(features))] * chosen.members, chosen, seed)
    if not chosen.heads:
        return DoseModel(middle, scale, members, 0.5)
    random = np.random.default_rng(seed)
    times = [random.poisson(1.0, len(features)).astype(np.float64) for _ in range(chosen.heads)]
    heads = rows.fit(times, chosen, seed + _HEAD_SEED)
    share = rows.share(heads, np.array(times) == 0)
    plain = DoseModel(middle, scale, members, share)
    found = plain.predict(features[:_PRIOR_ROWS])
    spread = heads.spread(rows.z[:_PRIOR_ROWS], share)
    error = _MEAN_ERROR * np.sqrt((spread**2).mean(axis=0))
    lift = found - found[:, :1]
    return replace(plain, prior=Prior.of(lift, np.broadcast_to(error, lift.shape)), error=error)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A log: z `[n, F]` standardised; level, bought, weight `[n]`; grid: depths."""

    z: Floats
    level: Ints
    bought: Ints
    weight: Floats
    grid: Floats

    def fit(self, times: Sequence[Floats], settings: DoseSettings, seed: int) -> Ensemble:
        """A network and boosted trees for each `[n]` of how often a row counts."""
        networks, boosters = [], []
        for number, counted in enumerate(times):
            drawn, own = self.weight * counted, seed * 1_000 + number
            networks.append(_network(self, drawn, settings, own))
            boosters.append(_booster(self, drawn, settings, own))
        return Ensemble(self.grid, tuple(networks), tuple(boosters))

    def share(self, heads: Ensemble, unseen: NDArray[np.bool_]) -> float:
        """What networks should count: least log loss of the mixture on rows that heads `[M, n]` have not
        seen."""
        times = unseen.sum(axis=0)
        rows = np.flatnonzero(times)
        if not rows.size:
            return 0.5
        depth, at = self.grid[self.level[rows]], np.arange(rows.size)
        z, smooth, hard = self.z[rows], np.zeros(rows.size), np.zeros(rows.size)
        for network, booster, mine in zip(heads.networks, heads.boosters, unseen[:, rows], strict=True):
            smooth += mine * _forward(network, z)[at, self.level[rows]]
            hard += mine * booster.predict(_with_depth(z, depth), num_threads=1)
        smooth, hard = smooth / times[rows], hard / times[rows]
        shares = np.linspace(0.0, 1.0, 11)
        mixed = [share * smooth + (1 - share) * hard for share in shares]
        return float(shares[int(np.argmin([_log_loss(self.bought[rows], chance) for chance in mixed]))])


def _log_loss(bought: Ints, chance: Floats) -> float:
    kept = np.clip(chance, 1e-9, 1 - 1e-9)
    return float(-np.where(bought == 1, np.log(kept), np.log1p(-kept)).mean())


def _with_depth(z: Floats, depth: Floats) -> Floats:
    return np.column_stack([z, depth, depth > 0])


def _booster(rows: _Rows, weight: Floats, settings: DoseSettings, seed: int) -> Any:
    import lightgbm

    kept = weight > 0
    inputs = _with_depth(rows.z, rows.grid[rows.level])[kept]
    data = lightgbm.Dataset(inputs, rows.bought[kept], weight=weight[kept] / weight.mean())
    options = {
        "objective": "binary",
        "learning_rate": settings.shrinkage,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.least_rows,
        "monotone_constraints": [0] * rows.z.shape[1] + [1, 0],
        "feature_fraction": 0.8,
        "lambda_l2": 5.0,
        "num_threads": 1,
        "deterministic": True,
        "seed": seed % 2**31,  # LightGBM's are of 32 bits
        "verbose": -1,
    }
    return lightgbm.train(options, data, settings.trees)


def _network(rows: _Rows, weight: Floats, settings: DoseSettings, seed: int) -> tuple[Floats, ...]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    hidden = settings.hidden
    net = nn.Sequential(
        nn.Linear(rows.z.shape[1], hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, len(rows.grid) + 1),
    )
    inputs, given = torch.tensor(rows.z, dtype=torch.float32), torch.tensor(rows.level)
    target = torch.tensor(rows.bought, dtype=torch.float32)
    counts = torch.tensor(weight / weight.mean(), dtype=torch.float32)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
    batches = -(-len(rows.z) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2 * settings.rate, settings.epochs * batches)
    for _ in range(settings.epochs):
        for drawn in torch.randperm(len(rows.z)).split(settings.batch):
            logits = _levels(net(inputs[drawn]), torch).gather(1, given[drawn][:, None])[:, 0]
            losses = nn.functional.binary_cross_entropy_with_logits(logits, target[drawn], reduction="none")
            optimiser.zero_grad()
            (losses * counts[drawn]).mean().backward()
            optimiser.step()
            schedule.step()
    return tuple(part.detach().numpy().astype(np.float64) for part in net.parameters())


def _levels(out: Any, torch: Any) -> Any:
    """Log-odds `[n, D]`: a base, a step for being contacted, and rises between depths."""
    base, contact, rise = out[:, :1], out[:, 1:2] * 0.5, torch.nn.functional.softplus(out[:, 2:] - 2.0)
    return torch.cat([base, base + contact + torch.cumsum(rise, 1)], 1)


def _forward(network: tuple[Floats, ...], z: Floats) -> Floats:
    """The same in numpy, for few rows at a time: purchase probabilities `[n, D]`."""
    a1, b1, a2, b2, a3, b3 = network
    out = _silu(_silu(z @ a1.T + b1) @ a2.T + b2) @ a3.T + b3
    base = out[:, :1]
    logits = base + 0.5 * out[:, 1:2] + np.cumsum(np.logaddexp(0.0, out[:, 2:] - 2.0), axis=1)
    return 1.0 / (1.0 + np.exp(-np.hstack([base, logits])))


def _silu(x: Floats) -> Floats:
    return x / (1.0 + np.exp(-x))
