"""Settings of a writer's tuning, and what it needs of the rest of the product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.strategy.content_ports import TextEngine

Floats = NDArray[np.float64]
Tell = Callable[[float, str], None]
# Of headlines `[n]`, the logarithm of the click rate; only differences mean something.
Scorer = Callable[[Sequence[str]], Floats]


class Engine(TextEngine, Protocol):
    """A `TextEngine` whose weights can be tuned. weights: their name; location: folder or hub id."""

    weights: str
    location: str


# The engine with an adapter of peft in a folder, or as it is.
MakeEngine = Callable[[Path | None], Engine]


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """samples: answers per product and round. rounds: of preference tuning, each on what the writer so far
    answers. watched: share of the products that only watch.

    rank: of the low-rank adapter (Hu et al. 2022). imitation_rate, preference_rate: learning rates;
    imitation_epochs, preference_epochs: passes over answers, and over the pairs of a round. batch: of
    answers, or of pairs. beta: of direct preference optimisation (Rafailov et al. 2023), the strength of what
    holds the writer near to the imitation.
    penalty: what a check that fails takes from the reward, in logarithms of the click rate.
    most_kl: nats per answer that the writer may be away from the imitation; a round beyond is not kept.
    cpus: of the Ray Train worker.
    """

    samples: int = 6
    rounds: int = 2
    watched: float = 0.2
    rank: int = 16
    imitation_rate: float = 4e-4
    preference_rate: float = 1e-4
    imitation_epochs: int = 3
    preference_epochs: int = 1
    batch: int = 8
    beta: float = 0.1
    penalty: float = 1.0
    most_kl: float = 15.0
    cpus: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("samples", 2),
            ("rounds", 1),
            ("rank", 1),
            ("imitation_epochs", 1),
            ("preference_epochs", 1),
            ("batch", 1),
            ("cpus", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}")
        for name in ("imitation_rate", "preference_rate", "beta", "penalty", "most_kl"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        if not 0 < self.watched < 1:
            raise ValueError(f"watched: {self.watched} is outside (0, 1)")
