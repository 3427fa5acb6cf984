"""Negative down-sampling: of many rows without a response some are enough, if predictions are corrected.

With a share w of the rows without a response kept, a model learns p of the sample; of the population it is
q = p / (p + (1 − p) / w), which in log odds is a shift by ln w. Source: He et al. (2014), Practical lessons
from predicting clicks on ads at Facebook, section 6.3. Conversions given a click and money given a conversion
are learned from rows that are all kept, and need no correction. Where conversions come without a click, a row
that is kept for one of them alone is hidden from the other, which thus has its own sample, with the same w.
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


@dataclass(frozen=True)
class Sampling:
    """share: w, of the rows without a response that are kept; tasks: whose log odds it shifts.

    drawn: `[n]` rows that would be kept without a response.
    """

    share: float
    tasks: tuple[str, ...]
    drawn: Mask

    def keep(self, mask: Mask, labels: Labels) -> Mask:
        """`[n]` the rows of `mask` that are kept: those with a response, and those drawn."""
        return np.asarray(mask & (self.drawn | _any(labels, self.tasks)))

    def hide(self, labels: Labels) -> dict[str, NDArray[np.float64]]:
        """The labels, NaN where a task does not have the row in its sample."""
        return {
            task: np.where((values > 0) | self.drawn, values, np.nan) if task in self.tasks else values
            for task, values in labels.items()
        }

    def correct(self, network: EffectNetwork) -> None:
        """Put the shift into the biases of the tasks."""
        with torch.no_grad():
            for task in self.tasks:
                network.bias[:, network.config.tasks.index(task)] += math.log(self.share)


def choose_sampling(labels: Labels, train: Mask, ratio: float | None, seed: int) -> Sampling | None:
    """The sample that leaves `ratio` training rows without a response to each with one; None keeps all."""
    known = tuple(task for task in ("click", "conversion") if task in labels)
    if ratio is None or not known:
        return None
    tasks = known[:1] if is_entire_space(labels) else known
    events = float(_any(labels, tasks)[train].sum())
    share = ratio * events / max(float(train.sum()) - events, 1.0)
    if not 0 < share < 1:
        return None
    return Sampling(share, tasks, np.random.default_rng(seed).random(train.size) < share)


def _any(labels: Labels, tasks: tuple[str, ...]) -> Mask:
    return np.any([labels[task] > 0 for task in tasks], axis=0)
