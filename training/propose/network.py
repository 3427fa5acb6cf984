"""A conditional variational autoencoder of mixed records: a category, shares, and numbers.

ELBO(x | c) = E_q(z | x, c)[log p(x | z, c)] − KL(q(z | x, c) ‖ N(0, I)), with q a Gaussian by the
reparametrisation z = μ + σ·ε. Sources: Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014; Sohn,
Lee & Yan, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Dirichlet
from torch.nn import functional

from qiance.artifacts.proposer import LEAST_CONCENTRATION, LEAST_LOG_DEVIATION

# Keeps shares of 0 inside the simplex, where a Dirichlet has a density.
INSIDE = 0.01


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """condition C, numbers D, categories K (0: none), shares S (0: none); latent, hidden: widths."""

    condition: int
    numbers: int
    categories: int = 0
    shares: int = 0
    latent: int = 4
    hidden: int = 64


class Records(NamedTuple):
    """condition `[n, C]`; numbers, used `[n, D]`; category `[n]` codes; shares `[n, S]`; weight `[n]`."""

    condition: Tensor
    numbers: Tensor
    used: Tensor
    category: Tensor
    shares: Tensor
    weight: Tensor

    def take(self, rows: Tensor) -> Records:
        return Records(*(part[rows] for part in self))


class Drawn(NamedTuple):
    """Records without their conditions."""

    numbers: Tensor
    category: Tensor
    shares: Tensor


class ConditionalVae(nn.Module):
    """Encoder q(z | x, c) and decoder p(x | z, c), two hidden layers each.

    The decoder's numbers are Gaussian, with a deviation per number that does not depend on z or c; the
    category is categorical; shares are Dirichlet.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.numbers * 2 + c.categories + c.shares
        self.encoder = _layers(width + c.condition, c.hidden, 2 * c.latent)
        self.decoder = _layers(c.latent + c.condition, c.hidden, c.numbers + c.categories + c.shares)
        self.log_deviation = nn.Parameter(torch.full((c.numbers,), -1.0))

    def encode(self, records: Records) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, `[n, latent]` each."""
        c = self.config
        parts = [records.numbers * records.used, records.used, records.shares, records.condition]
        if c.categories:
            parts.append(functional.one_hot(records.category, c.categories).to(records.numbers.dtype))
        mean, log_variance = self.encoder(torch.cat(parts, dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8.0, 4.0)

    def decode(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the numbers `[n, D]`, logits of the category `[n, K]`, concentrations of the
        shares `[n, S]`."""
        c = self.config
        out = self.decoder(torch.cat([z, condition], dim=1))
        numbers, category, shares = out.split([c.numbers, c.categories, c.shares], dim=1)
        return numbers, category, functional.softplus(shares) + LEAST_CONCENTRATION

    def loss(self, records: Records, noise: Tensor) -> Tensor:
        """−ELBO, the weighted mean over records, nats. noise: `[n, latent]` ε; zeros: at the mean."""
        mean, log_variance = self.encode(records)
        numbers, category, shares = self.decode(mean + noise * (0.5 * log_variance).exp(), records.condition)
        log_deviation = self.log_deviation.clamp(min=LEAST_LOG_DEVIATION)
        away = (records.numbers - numbers) * (-log_deviation).exp()
        loss = ((0.5 * away**2 + log_deviation + 0.5 * math.log(2 * math.pi)) * records.used).sum(dim=1)
        if self.config.categories:
            loss = loss + functional.cross_entropy(category, records.category, reduction="none")
        if self.config.shares:
            inside = (records.shares + INSIDE) / (1.0 + INSIDE * self.config.shares)
            loss = loss - Dirichlet(shares, validate_args=False).log_prob(inside)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
        return ((loss + divergence) * records.weight).sum() / records.weight.sum()

    @torch.no_grad()
    def sample(self, condition: Tensor) -> Drawn:
        """One record per row of `condition`, by torch's own random numbers."""
        z = torch.randn(len(condition), self.config.latent)
        numbers, category, shares = self.decode(z, condition)
        deviation = self.log_deviation.clamp(min=LEAST_LOG_DEVIATION).exp()
        return Drawn(
            numbers + deviation * torch.randn_like(numbers),
            Categorical(logits=category).sample() if self.config.categories else category,
            Dirichlet(shares).sample() if self.config.shares else shares,
        )


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )
