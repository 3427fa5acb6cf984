"""What follows a day's dials, fitted to a log: an ensemble of regressions that disagree where it has nothing.

Features are what the task's networks see; here they are the state, as a log has nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rllib.lockstep import Floats
from rllib.model_network import Ints, Layers, Tensor, expanded, fit_networks, network
from rllib.model_settings import ModelSettings

LEAST_EPISODES = 30
_HELD_OUT = 0.15  # of the episodes to learn from: they stop the fit, and lend their residuals
_RIDGES, _FAR = (1e-4, 1e-3, 1e-2, 1e-1), 5.0  # per row; standard deviations that inputs may be away
_CHUNK = 20_000  # rows that are expanded at a time


@dataclass(frozen=True, slots=True, eq=False)
class Days:
    """What members learn from: features `[n, T, f]`, dials `[n, T, k]` as drawn, rewards `[n, T]`."""

    features: NDArray[np.floating]
    dials: NDArray[np.floating]
    reward: Floats

    def __post_init__(self) -> None:
        if len(self.reward) < LEAST_EPISODES:
            raise ValueError(
                f"log: {len(self.reward)} episodes are too few to fit a model to; log {LEAST_EPISODES} or "
                "more to learn from, or take marwil"
            )

    def rows(self, episodes: Ints) -> tuple[Tensor, Tensor]:
        """Inputs `[e, T, f + k + 1]` and targets `[e, T, 1 + f]`; the last day has no change of features."""
        seen, dials = self.features[episodes], np.clip(self.dials[episodes], -1.0, 1.0)
        steps = self.reward.shape[1]
        day = np.broadcast_to((np.arange(steps) / steps)[:, None], (*seen.shape[:2], 1))
        change = np.zeros_like(seen)
        change[:, :-1] = seen[:, 1:] - seen[:, :-1]
        x = np.concatenate([seen, dials, day], axis=2)
        y = np.concatenate([self.reward[episodes][..., None], change], axis=2)
        return _tensor(x), _tensor(y)


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """K models of a day: (features, dials, day) → reward and change of features, in their own units.

    center, spread: of inputs, `[f + k + 1]`. offset, scale: of targets, `[1 + f]`. ridge: `[K, q, 1 + f]`
    weights of 1, inputs, squares and products. layers: of each member's network, which adds to that.
    residual: `[K, T, m, 1 + f]` what held-out days had beyond the means. low, high: of logged features;
    first: those of first days `[n, f]`. r2: `[K, 1 + f]` share of variance explained on held-out episodes, of
    the reward and of each of the next day's features; 1 where nothing varies. unit: standard deviation of
    logged daily rewards.
    """

    center: Tensor
    spread: Tensor
    offset: Tensor
    scale: Tensor
    ridge: Tensor
    layers: Layers
    residual: Tensor
    low: Tensor
    high: Tensor
    first: Tensor
    unit: float
    r2: Floats = field(repr=False)

    @property
    def members(self) -> int:
        """How many."""
        return len(self.ridge)

    @property
    def horizon(self) -> int:
        """Days of an episode."""
        return int(self.residual.shape[1])

    def means(self, features: Tensor, dials: Tensor, day: int) -> Tensor:
        """`[K, n, 1 + f]` expected reward and change, by member, of features `[n, f]` and dials `[n, k]`."""
        when = torch.full((len(features), 1), day / self.horizon)
        x = _standard(torch.cat([features, dials, when], dim=1), self.center, self.spread)
        found = torch.matmul(expanded(x), self.ridge) + network(self.layers, x)
        return self.offset + self.scale * found

    def live(
        self, features: Tensor, dials: Tensor, day: int, member: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next features `[n, f]`, rewards `[n]` and disagreement `[n]`; differentiable.

        member, draw: `[n]` whose mean it is, and which held-out day lends its residual, of reward and
        features together, so that what goes together in the log does here too. Next features stay within
        those of the log. Disagreement is the standard deviation of the members' means, of each target in
        standard deviations of the log's, root mean square over targets.
        """
        means = self.means(features, dials, day)
        found = means[member, torch.arange(len(features))] + self.residual[member, day, draw]
        apart = torch.var(means / self.scale, dim=0, correction=0).mean(dim=1)
        following = torch.clamp(features + found[:, 1:], self.low, self.high)
        return following, found[:, 0], torch.sqrt(apart + 1e-12)


def fit_ensemble(
    days: Days, settings: ModelSettings, seed: int, tell: Callable[[float, str], None] = lambda s, t: None
) -> Ensemble:
    """Fit the members, each to episodes drawn with replacement, and look at how good they are.

    A member is a ridge regression on squares and products, as strong as held-out episodes like it best, plus
    a network on what that leaves. The network starts at 0, is kept as it was when they liked it best, and
    only for targets that it helps. Bootstrapped ensembles as of Chua et al., "Deep Reinforcement Learning in
    a Handful of Trials using Probabilistic Dynamics Models" (2018).
    """
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(len(days.reward))
    held = max(round(_HELD_OUT * len(order)), 2)
    (x, y), (x_held, y_held) = days.rows(order[held:]), days.rows(order[:held])
    drawn = rng.integers(0, len(x), (settings.members, len(x)))
    center, spread = _moments(x)
    offset, scale = _moments(y)
    scale[1:] = torch.clamp(_moments(y[:, :-1])[1][1:], min=1e-6)
    z, z_held = _standard(x, center, spread), _standard(x_held, center, spread)
    wanted, wanted_held = (y - offset) / scale, (y_held - offset) / scale
    fits = []
    for number, rows in enumerate(drawn):
        tell(0.5 * number / len(drawn), f"fitting regression {number + 1} of {len(drawn)}")
        fits.append(_ridge((z, wanted), (z_held, wanted_held), rows))
    ridge = torch.stack(fits)
    layers = fit_networks(
        (z, wanted), (z_held, wanted_held), ridge, drawn, settings, rng, lambda s, t: tell(0.5 + 0.5 * s, t)
    )
    with torch.no_grad():
        means = torch.matmul(expanded(z_held.flatten(0, 1)), ridge) + network(layers, z_held.flatten(0, 1))
        means = (offset + scale * means).reshape(settings.members, *y_held.shape)
    residual = y_held - means
    residual[:, :, -1, 1:] = 0.0
    seen = _tensor(days.features)
    return Ensemble(
        center,
        spread,
        offset,
        scale,
        ridge,
        layers,
        residual.transpose(1, 2).contiguous(),
        seen.amin(dim=(0, 1)),
        seen.amax(dim=(0, 1)),
        seen[:, 0].contiguous(),
        float(days.reward.std()),
        _explained(residual, x_held, y_held),
    )


def _explained(residual: Tensor, x: Tensor, y: Tensor) -> Floats:
    """R² `[K, 1 + f]` of rewards and of next features (their level, not the change)."""
    features = y.shape[2] - 1
    level = torch.cat([y[..., :1], x[..., :features] + y[..., 1:]], dim=2)
    found = np.ones((len(residual), features + 1))
    for target in range(features + 1):
        days = slice(None) if target == 0 else slice(None, -1)
        varied = float(level[:, days, target].var(correction=0))
        if varied > 1e-10:
            left = residual[:, :, days, target].square().mean(dim=(1, 2))
            found[:, target] = 1.0 - left.numpy() / varied
    return found


def _ridge(learn: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], drawn: Ints) -> Tensor:
    """Weights `[q, 1 + f]`, of each target those of the strength that held-out episodes like best."""
    square, cross = _products(*(part[drawn] for part in learn))
    x, y = held
    wide, best = expanded(x.flatten(0, 1)), torch.full((y.shape[2],), np.inf)
    found = torch.zeros(wide.shape[1], y.shape[2])
    for strength in _RIDGES:
        penalty = strength * square.sum(dim=0)[0, 0] * torch.eye(len(square[0]), dtype=torch.float64)
        penalty[0, 0] *= 1e-6
        reward = torch.linalg.solve(square.sum(dim=0) + penalty, cross.sum(dim=0)[:, :1])
        weights = torch.cat([reward, torch.linalg.solve(square[0] + penalty, cross[0][:, 1:])], dim=1).float()
        error = (y - (wide @ weights).reshape(y.shape)).square()
        error[:, -1, 1:] = 0.0
        total = error.sum(dim=(0, 1))
        found = torch.where(total < best, weights, found)
        best = torch.minimum(total, best)
    return found


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """XᵀX `[2, q, q]` and Xᵀy `[2, q, 1 + f]`: of all days but the last, and of that."""
    square, cross = [], []
    for own, targets in ((x[:, :-1], y[:, :-1]), (x[:, -1:], y[:, -1:])):
        rows, wanted, parts = own.flatten(0, 1), targets.flatten(0, 1), []
        for at in range(0, len(rows), _CHUNK):
            wide = expanded(rows[at : at + _CHUNK])
            parts.append(((wide.T @ wide).double(), (wide.T @ wanted[at : at + _CHUNK]).double()))
        square.append(torch.stack([part[0] for part in parts]).sum(dim=0))
        cross.append(torch.stack([part[1] for part in parts]).sum(dim=0))
    return torch.stack(square), torch.stack(cross)


def _standard(x: Tensor, center: Tensor, spread: Tensor) -> Tensor:
    return torch.clamp((x - center) / spread, -_FAR, _FAR)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.flatten(0, 1).double()
    return flat.mean(dim=0).float(), torch.clamp(flat.std(dim=0, correction=0), min=1e-6).float()


def _tensor(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
