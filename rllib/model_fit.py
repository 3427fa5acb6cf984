"""What follows a day's dials, fitted to a log: an ensemble of regressions that disagree where it has nothing.

Features are what the task's networks see; here they are the state, as a log has nothing else of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from rllib.lockstep import Floats
from rllib.model_settings import ModelSettings

Tensor = torch.Tensor
Ints = NDArray[np.int64]
LEAST_EPISODES = 30
_HELD_OUT = 0.15  # of the episodes to learn from: they stop the fit, and lend their residuals
_RIDGE, _FAR = 1.0, 5.0
_CHUNK = 20_000  # rows that are expanded at a time
_BATCH, _LEARNING_RATE = 512, 2e-3
_EVERY, _PATIENCE = 100, 5  # steps between looks at the held-out episodes; looks without a better one


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
    layers: tuple[tuple[Tensor, Tensor], ...]
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
        found = torch.matmul(_expanded(x), self.ridge) + _network(self.layers, x)
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
    days: Days, settings: ModelSettings, seed: int, tell: Callable[[float, str], None] | None = None
) -> Ensemble:
    """Fit the members, each to episodes drawn with replacement, and look at how good they are.

    A member is a ridge regression on squares and products plus a network on what that leaves, which starts
    at 0 and is kept as it was when the held-out episodes liked it best: so it never is worse there than the
    regression. Bootstrapped ensembles as of Chua et al., "Deep Reinforcement Learning in a Handful of Trials
    using Probabilistic Dynamics Models" (2018).
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
    ridge = torch.stack([_ridge(z[rows], wanted[rows]) for rows in drawn])
    layers = _fit_networks((z, wanted), (z_held, wanted_held), ridge, drawn, settings, rng, tell)
    with torch.no_grad():
        means = torch.matmul(_expanded(z_held.flatten(0, 1)), ridge) + _network(layers, z_held.flatten(0, 1))
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


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights `[q, 1 + f]` of inputs `[e, T, d]`; changes of features have no last day."""
    width = _expanded(x[:1, 0]).shape[1]
    square, cross = torch.zeros(2, width, width, dtype=torch.float64), []
    for part, (own, targets) in enumerate(((x[:, -1:], y[:, -1:]), (x[:, :-1], y[:, :-1]))):
        rows, wanted = own.flatten(0, 1), targets.flatten(0, 1)
        total = torch.zeros(width, y.shape[2], dtype=torch.float64)
        for at in range(0, len(rows), _CHUNK):
            wide = _expanded(rows[at : at + _CHUNK])
            square[part] += (wide.T @ wide).double()
            total += (wide.T @ wanted[at : at + _CHUNK]).double()
        cross.append(total)
    penalty = _RIDGE * torch.eye(width, dtype=torch.float64)
    penalty[0, 0] = 1e-6
    reward = torch.linalg.solve(square.sum(dim=0) + penalty, (cross[0] + cross[1])[:, :1])
    return torch.cat([reward, torch.linalg.solve(square[1] + penalty, cross[1][:, 1:])], dim=1).float()


def _fit_networks(
    learn: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    ridge: Tensor,
    drawn: Ints,
    settings: ModelSettings,
    rng: np.random.Generator,
    tell: Callable[[float, str], None] | None,
) -> tuple[tuple[Tensor, Tensor], ...]:
    """A network per member, all at once, on what its regression leaves; of each the best on held-out days."""
    (x, y), steps = learn, learn[0].shape[1]
    layers = _begin(x.shape[2], y.shape[2], settings, rng)
    optimiser = torch.optim.Adam([part for layer in layers for part in layer], lr=_LEARNING_RATE)
    member = torch.arange(settings.members)
    best, kept = _error(layers, held, ridge), [(w.detach().clone(), b.detach().clone()) for w, b in layers]
    waited = 0
    for step in range(settings.steps):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - step / settings.steps)
        place = rng.integers(0, drawn.shape[1], (settings.members, _BATCH))
        day = rng.integers(0, steps, (settings.members, _BATCH))
        episode = np.take_along_axis(drawn, place, axis=1)
        rows, wanted = x[episode, day], y[episode, day]
        error = wanted - torch.bmm(_expanded(rows), ridge) - _network(layers, rows)
        error[..., 1:] *= torch.from_numpy(day < steps - 1)[..., None]
        optimiser.zero_grad()
        error.square().mean(dim=(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % _EVERY and step + 1 < settings.steps:
            continue
        found = _error(layers, held, ridge)
        better, waited = found < best, waited + 1
        for mine, now in zip(kept, layers, strict=True):
            for old, new in zip(mine, now, strict=True):
                old[member[better]] = new.detach()[member[better]]
        best, waited = torch.minimum(found, best), 0 if better.any() else waited
        if tell is not None:
            tell((step + 1) / settings.steps, f"fitting the model: error {float(best.mean()):.4g}")
        if waited >= _PATIENCE:
            break
    return tuple(kept)


def _error(layers: tuple[tuple[Tensor, Tensor], ...], held: tuple[Tensor, Tensor], ridge: Tensor) -> Tensor:
    """`[K]` mean squared error on held-out days."""
    x, y = (part.flatten(0, 1) for part in held)
    with torch.no_grad():
        error = (y - torch.matmul(_expanded(x), ridge) - _network(layers, x)).square()
    whole = error.reshape(len(ridge), *held[1].shape)
    return (whole[..., 0].sum(dim=(1, 2)) + whole[:, :, :-1, 1:].sum(dim=(1, 2, 3))) / y.numel()


def _begin(
    inputs: int, outputs: int, settings: ModelSettings, rng: np.random.Generator
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Layers of members that differ; their last weights are 0."""
    sizes, layers = (inputs, *settings.hidden, outputs), []
    for number, (n, m) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        weight = rng.standard_normal((settings.members, n, m)) * (0.0 if last else n**-0.5)
        bias = torch.zeros(settings.members, 1, m)
        layers.append((_tensor(weight).requires_grad_(), bias.requires_grad_()))
    return tuple(layers)


def _network(layers: tuple[tuple[Tensor, Tensor], ...], x: Tensor) -> Tensor:
    """`[K, n, m]` of inputs `[n, d]`, or `[K, n, d]` by member."""
    found = x.expand(len(layers[0][0]), *x.shape[-2:])
    for number, (weight, bias) in enumerate(layers):
        found = torch.baddbmm(bias, found, weight)
        found = torch.nn.functional.silu(found) if number < len(layers) - 1 else found
    return found


def _expanded(x: Tensor) -> Tensor:
    """1, inputs `[…, d]`, their squares and products, as `rllib.quadratic.expanded` has them."""
    left, right = _pairs(x.shape[-1])
    return torch.cat([torch.ones_like(x[..., :1]), x, (x @ left) * (x @ right)], dim=-1)


@lru_cache(maxsize=8)
def _pairs(width: int) -> tuple[Tensor, Tensor]:
    """Matrices that pick both factors of each product; their gradients cost less than those of indices."""
    left, right = torch.triu_indices(width, width)
    every = torch.eye(width)
    return every[:, left], every[:, right]


def _standard(x: Tensor, center: Tensor, spread: Tensor) -> Tensor:
    return torch.clamp((x - center) / spread, -_FAR, _FAR)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.flatten(0, 1).double()
    return flat.mean(dim=0).float(), torch.clamp(flat.std(dim=0, correction=0), min=1e-6).float()


def _tensor(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
