"""The network and the memory together: a mixture of two distributions over all items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts.recommend import Neighbours
from training.recommend.network import SequenceNetwork
from training.recommend.sequences import Ints, padded


@dataclass(frozen=True)
class Scorer:
    """weight: share of the neighbours in the mixture, in [0, 1]; 0 is the network alone."""

    network: SequenceNetwork
    neighbours: Neighbours | None = None
    weight: float = 0.0

    def chances(self, rows: Sequence[Ints]) -> NDArray[np.float32]:
        """`[b, V]` of what is bought next; rows: items bought, oldest first, at least one."""
        near = self.weight and self.neighbours is not None
        alone = np.float32(0.0)
        if self.weight < 1.0 or not near:
            items = padded(rows, self.network.config.length)
            alone = torch.softmax(self.network.next_scores(items), dim=1).numpy()
        if not near or self.neighbours is None:
            return np.asarray(alone)
        weight = np.float32(self.weight)
        return np.asarray((1 - weight) * alone + weight * self.neighbours.chances(rows))
