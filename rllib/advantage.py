"""What a day brought more than was to be expected, from a log alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllib.lockstep import Floats, Floats32
from rllib.quadratic import Quadratic


def shaped(
    reward: Floats, features: Floats32, inside: NDArray[np.bool_], discount: float, trace: float
) -> tuple[Floats, Floats]:
    """Rewards r_t + γ Φ(s_t+1) − Φ(s_t), and their sums to the end, discounted by γλ; `[n, T]` each.

    Φ is a regression of the return to the end on the features, 0 after it. No policy becomes better or worse
    than another by it, and what networks have to learn begins near 0 (Ng, Harada & Russell, "Policy
    invariance under reward transformations", 1999). The sums are generalised advantages: with λ = 1 they are
    what came more than Φ, with less λ what later days have by luck counts less (Schulman et al.,
    "High-dimensional continuous control using generalized advantage estimation", 2016).
    """
    returns, potential = _sums(reward, discount), np.zeros_like(reward)
    potential[inside] = Quadratic().fit(features[inside], returns[inside]).predict(features[inside])
    following = np.concatenate([potential[:, 1:], np.zeros((len(reward), 1))], axis=1)
    found = reward + discount * following - potential
    return found, _sums(found, discount * trace)


def _sums(reward: Floats, discount: float) -> Floats:
    found, total = np.zeros_like(reward), np.zeros(len(reward))
    for step in reversed(range(reward.shape[1])):
        total = reward[:, step] + discount * total
        found[:, step] = total
    return found
