"""Small networks that learn what regressions of a log's days leave, one per member of an ensemble."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from rllib.model_settings import ModelSettings

Tensor = torch.Tensor
Layers = tuple[tuple[Tensor, Tensor], ...]
Ints = NDArray[np.int64]
_BATCH, _LEARNING_RATE = 512, 2e-3
_EVERY, _PATIENCE = 100, 5  # steps between looks at the held-out episodes; looks without a better one


def fit_networks(
    learn: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    ridge: Tensor,
    drawn: Ints,
    settings: ModelSettings,
    rng: np.random.Generator,
    tell: Callable[[float, str], None],
) -> Layers:
    """A network per member, all at once, on what its regression leaves; of each the best on held-out days."""
    layers = _begin(learn[0].shape[2], learn[1].shape[2], settings, rng)
    optimiser = torch.optim.Adam([part for layer in layers for part in layer], lr=_LEARNING_RATE)
    nothing = _error(layers, held, ridge)
    kept = tuple((weight.detach().clone(), bias.detach().clone()) for weight, bias in layers)
    best, waited = nothing.sum(dim=1), 0
    for step in range(1, settings.steps + 1):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - (step - 1) / settings.steps)
        optimiser.zero_grad()
        _loss(layers, *learn, ridge, drawn, rng).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % _EVERY and step < settings.steps:
            continue
        found = _error(layers, held, ridge).sum(dim=1)
        waited = 0 if _keep(kept, layers, found < best) else waited + 1
        best = torch.minimum(found, best)
        tell(step / settings.steps, f"fitting networks: error {float(best.mean()):.4g}")
        if waited >= _PATIENCE:
            break
    helped = (_error(kept, held, ridge) < nothing)[:, None]
    return (*kept[:-1], (kept[-1][0] * helped, kept[-1][1] * helped))


def _loss(
    layers: Layers, x: Tensor, y: Tensor, ridge: Tensor, drawn: Ints, rng: np.random.Generator
) -> Tensor:
    """Squared error of each member on days at random of its own episodes."""
    members, steps = len(ridge), x.shape[1]
    place = rng.integers(0, drawn.shape[1], (members, _BATCH))
    day = rng.integers(0, steps, (members, _BATCH))
    episode = np.take_along_axis(drawn, place, axis=1)
    rows = x[episode, day]
    error = y[episode, day] - torch.bmm(expanded(rows), ridge) - network(layers, rows)
    error[..., 1:] *= torch.from_numpy(day < steps - 1)[..., None]
    return error.square().mean(dim=(1, 2)).sum()


def _keep(kept: Layers, layers: Layers, better: Tensor) -> bool:
    """Copy members that are `better` `[K]` into `kept`, in place; whether there are any."""
    for mine, now in zip(kept, layers, strict=True):
        for old, new in zip(mine, now, strict=True):
            old[better] = new.detach()[better]
    return bool(better.any())


def _error(layers: Layers, held: tuple[Tensor, Tensor], ridge: Tensor) -> Tensor:
    """`[K, 1 + f]` mean squared error on held-out days, of each target."""
    x, y = (part.flatten(0, 1) for part in held)
    with torch.no_grad():
        error = (y - torch.matmul(expanded(x), ridge) - network(layers, x)).square()
    whole = error.reshape(len(ridge), *held[1].shape)
    whole[:, :, -1, 1:] = 0.0
    return whole.mean(dim=(1, 2))


def _begin(inputs: int, outputs: int, settings: ModelSettings, rng: np.random.Generator) -> Layers:
    """Layers of members that differ; their last weights are 0."""
    sizes, layers = (inputs, *settings.hidden, outputs), []
    for number, (n, m) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        weight = rng.standard_normal((settings.members, n, m)) * (0.0 if last else n**-0.5)
        bias = torch.zeros(settings.members, 1, m)
        layers.append((torch.from_numpy(weight.astype(np.float32)).requires_grad_(), bias.requires_grad_()))
    return tuple(layers)


def network(layers: Layers, x: Tensor) -> Tensor:
    """`[K, n, m]` of inputs `[n, d]`, or `[K, n, d]` by member."""
    found = x.expand(len(layers[0][0]), *x.shape[-2:])
    for number, (weight, bias) in enumerate(layers):
        found = torch.baddbmm(bias, found, weight)
        found = torch.nn.functional.silu(found) if number < len(layers) - 1 else found
    return found


def expanded(x: Tensor) -> Tensor:
    """1, inputs `[…, d]`, their squares and products, as `rllib.quadratic.expanded` has them."""
    left, right = _pairs(x.shape[-1])
    return torch.cat([torch.ones_like(x[..., :1]), x, (x @ left) * (x @ right)], dim=-1)


@lru_cache(maxsize=8)
def _pairs(width: int) -> tuple[Tensor, Tensor]:
    """Matrices that pick both factors of each product; their gradients cost less than those of indices."""
    left, right = torch.triu_indices(width, width)
    every = torch.eye(width)
    return every[:, left], every[:, right]
