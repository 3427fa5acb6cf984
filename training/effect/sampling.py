"""Negative down-sampling: of many rows without a response some are enough, if predictions are corrected.

With a share w of the rows without a response kept, a model learns p of the sample; of the population it is
q = p / (p + (1 − p) / w), which in log odds is a shift by ln w. Source: He et al. (2014), Practical lessons
from predicting clicks on ads at Facebook, section 6.3. Conversions given a click and money given a conversion
are learned from rows that are all kept, and need no correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.effect.labels import is_entire_space
from training.effect.network import EffectNetwork
from training.effect.split import Mask

Labels = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """task: the response that decides. share: w, of the rows without one that were kept."""

    task: str
    share: float

    def correct(self, network: EffectNetwork) -> None:
        """Put the shift into the biases of the task."""
        with torch.no_grad():
            network.bias[:, network.config.tasks.index(self.task)] += math.log(self.share)


def choose_sampling(labels: Labels, train: Mask, ratio: float | None) -> Sampling | None:
    """The share that leaves `ratio` training rows without a response to each with one; None keeps all.

    Raises ValueError where clicks and conversions come without each other: no row is then without either for
    both.
    """
    if ratio is None:
        return None
    known = [task for task in ("click", "conversion") if task in labels]
    if len(known) == 2 and not is_entire_space(labels):
        raise ValueError(
            f"settings.negative_ratio: {ratio} cannot be had where conversions come without a click; "
            "leave it out"
        )
    if not known:
        return None
    events = float(labels[known[0]][train].sum())
    share = ratio * events / max(float(train.sum()) - events, 1.0)
    return Sampling(known[0], share) if 0 < share < 1 else None


def keep(mask: Mask, labels: Labels, sampling: Sampling | None, seed: int) -> Mask:
    """`[n]` the rows of `mask` that are kept: those with a response, and others by chance."""
    if sampling is None:
        return mask
    chance = np.random.default_rng(seed).random(mask.size)
    return np.asarray(mask & ((labels[sampling.task] > 0) | (chance < sampling.share)))
