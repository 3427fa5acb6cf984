"""How likely a user buys at each depth of an offer, learned from a randomised log.

Two kinds of members are averaged, each fitted to a bootstrap sample: small networks whose log-odds rise with
the depth (a free step for being contacted at all, which may be negative), and boosted trees that take the
depth as a feature. They err differently: networks find smooth responses, trees hard borders. How much either
counts is chosen by the log loss on the rows that a member has not seen. The spread of the members says how
sure the lifts are; empirical Bayes can shrink them by it (`qiance.allocate.risk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.risk import Prior
from qiance.evaluate.arrays import finite_matrix, finite_vector, index_vector, refuse_where

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Error of the members' mean as a share of one member's: averaging bootstrap fits about halves it. With 1, the
# planted responses of benchmarks/allocating were shrunken too far (seeds from 1,000 on).
_MEAN_ERROR = 0.5


@dataclass(frozen=True, slots=True)
class DoseSettings:
    """members: networks and as many boosted ensembles; bootstrap: each on a resampled log.

    hidden: width of the two layers; epochs, batch, rate, decay: of the networks. trees, leaves, shrinkage,
    least_rows: of the boosted ensembles.
    """

    members: int = 4
    bootstrap: bool = True
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


@dataclass(frozen=True, slots=True, eq=False)
class Dose:
    """response: `[n, D]` purchase probability at each depth; spread: `[n, D]` standard deviation over the
    members of its lift over depth 0."""

    response: Floats
    spread: Floats


@dataclass(frozen=True, slots=True, eq=False)
class DoseModel:
    """A fitted model.

    share: what the networks count, the boosters counting the rest. prior: of the lifts, over the users that
    it was fitted on; error: `[D]` their typical standard error.
    """

    depths: Floats
    middle: Floats
    scale: Floats
    networks: tuple[tuple[Floats, ...], ...]
    boosters: tuple[Any, ...]
    share: float
    prior: Prior
    error: Floats

    def predict(self, x: Floats, shrunken: bool = False) -> Dose:
        """For users of features `[n, F]`: the mean over the members, or posterior means of the lifts."""
        found = _dose(self._members(x), len(self.networks), self.share)
        if not shrunken:
            return found
        # One error for all users of a level: where the response is high its spread is too, and users that
        # respond most would be shrunken most.
        lift = found.response - found.response[:, :1]
        lift = self.prior.posterior(lift, np.broadcast_to(self.error, lift.shape))
        return Dose(np.clip(found.response[:, :1] + lift, 1e-6, 1 - 1e-6), found.spread)

    def _members(self, x: Floats) -> Floats:
        z = (x - self.middle) / self.scale
        parts = [_forward(network, z) for network in self.networks]
        grid = _with_depth(np.repeat(z, len(self.depths), axis=0), np.tile(self.depths, len(z)))
        shape = (len(z), len(self.depths))
        parts += [booster.predict(grid, num_threads=1).reshape(shape) for booster in self.boosters]
        return np.stack(parts)


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
    z, weight = (features - middle) / scale, 1.0 / chance
    networks, boosters, unseen = [], [], []
    for member in range(chosen.members):
        rng = np.random.default_rng([seed, member])
        drawn = weight * (rng.poisson(1.0, len(z)) if chosen.bootstrap else 1.0)
        networks.append(_network(z, levels, labels, drawn, grid.size, chosen, seed * 1_000 + member))
        boosters.append(_booster(z, grid[levels], labels, drawn, chosen, member))
        unseen.append(drawn == 0)
    share = _share(networks, boosters, np.array(unseen), z, levels, labels, grid)
    parts = (grid, middle, scale, tuple(networks), tuple(boosters), share)
    plain = DoseModel(*parts, Prior(np.zeros(1), np.zeros(1)), np.zeros(1))
    found = plain.predict(features[:5_000], shrunken=False)
    lift = found.response - found.response[:, :1]
    error = _MEAN_ERROR * np.sqrt((found.spread**2).mean(axis=0))
    return DoseModel(*parts, Prior.of(lift, np.broadcast_to(error, lift.shape)), error)


def _share(
    networks: Sequence[tuple[Floats, ...]],
    boosters: Sequence[Any],
    unseen: NDArray[np.bool_],
    z: Floats,
    level: Ints,
    bought: Ints,
    grid: Floats,
) -> float:
    """What the networks should count: least log loss of the mixture on rows that members have not seen."""
    times = unseen.sum(axis=0)
    rows = np.flatnonzero(times)
    if not rows.size:
        return 0.5
    depth, at = grid[level[rows]], np.arange(rows.size)
    smooth, hard = np.zeros(rows.size), np.zeros(rows.size)
    for network, booster, mine in zip(networks, boosters, unseen[:, rows], strict=True):
        smooth += mine * _forward(network, z[rows])[at, level[rows]]
        hard += mine * booster.predict(_with_depth(z[rows], depth), num_threads=1)
    smooth, hard = smooth / times[rows], hard / times[rows]
    shares = np.linspace(0.0, 1.0, 11)
    losses = [_log_loss(bought[rows], share * smooth + (1 - share) * hard) for share in shares]
    return float(shares[int(np.argmin(losses))])


def _log_loss(bought: Ints, chance: Floats) -> float:
    kept = np.clip(chance, 1e-9, 1 - 1e-9)
    return float(-np.where(bought == 1, np.log(kept), np.log1p(-kept)).mean())


def _dose(members: Floats, networks: int, share: float) -> Dose:
    """The weighted mean, and the weighted spread of the lifts."""
    others = len(members) - networks
    weight = np.concatenate([np.full(networks, share / networks), np.full(others, (1 - share) / others)])
    lifts = members - members[:, :, :1]
    middle = np.tensordot(weight, lifts, axes=1)
    spread = np.sqrt(np.tensordot(weight, (lifts - middle) ** 2, axes=1))
    return Dose(np.tensordot(weight, members, axes=1), spread)


def _with_depth(z: Floats, depth: Floats) -> Floats:
    return np.column_stack([z, depth, depth > 0])


def _booster(
    z: Floats, depth: Floats, bought: Ints, weight: Floats, settings: DoseSettings, seed: int
) -> Any:
    import lightgbm

    kept = weight > 0
    data = lightgbm.Dataset(_with_depth(z, depth)[kept], bought[kept], weight=weight[kept] / weight.mean())
    options = {
        "objective": "binary",
        "learning_rate": settings.shrinkage,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.least_rows,
        "monotone_constraints": [0] * z.shape[1] + [1, 0],
        "feature_fraction": 0.8,
        "lambda_l2": 5.0,
        "num_threads": 1,
        "deterministic": True,
        "seed": seed,
        "verbose": -1,
    }
    return lightgbm.train(options, data, settings.trees)


def _network(
    z: Floats, level: Ints, bought: Ints, weight: Floats, depths: int, settings: DoseSettings, seed: int
) -> tuple[Floats, ...]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    hidden = settings.hidden
    net = nn.Sequential(
        nn.Linear(z.shape[1], hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, depths + 1),
    )
    inputs, given = torch.tensor(z, dtype=torch.float32), torch.tensor(level)
    target, size = (
        torch.tensor(bought, dtype=torch.float32),
        torch.tensor(weight / weight.mean(), dtype=torch.float32),
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
    batches = -(-len(z) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2 * settings.rate, settings.epochs * batches)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(z)).split(settings.batch):
            logits = _levels(net(inputs[rows]), torch).gather(1, given[rows][:, None])[:, 0]
            losses = nn.functional.binary_cross_entropy_with_logits(logits, target[rows], reduction="none")
            optimiser.zero_grad()
            (losses * size[rows]).mean().backward()
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
