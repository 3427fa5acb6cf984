"""What a slot under a frequency cap is worth to a user who may come again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qiance.evaluate.arrays import FloatArray, IndexArray

_SLOTS = 5  # of a frequency cap, that are looked ahead on


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """What n users may be worth at a later visit, and how often they may still be given something.

    value, cost: `[n, J, A]` of J equally likely visits; give an inadmissible action the value −1.
    slots: `[n]` offers that the frequency cap still allows. visits: `[n]` expected further visits.
    """

    value: FloatArray
    cost: FloatArray
    slots: IndexArray
    visits: FloatArray

    def __post_init__(self) -> None:
        shape = np.shape(self.value)
        if len(shape) != 3:
            raise ValueError(f"value: has shape {shape}; must be [n, J, A]")
        for name, wanted in (("cost", shape), ("slots", shape[:1]), ("visits", shape[:1])):
            if np.shape(getattr(self, name)) != wanted:
                raise ValueError(f"{name}: has shape {np.shape(getattr(self, name))}; must be {wanted}")

    def __len__(self) -> int:
        return len(self.value)

    def slot_worth(self, price: float) -> FloatArray:
        """`[n]` what the last of each user's slots is expected to bring later at the price λ.

        With k slots and m visits to come, W_k grows by dW_k ÷ dm = E[(gain − (W_k − W_{k−1}))⁺], and a slot
        is worth W_k − W_{k−1} (Albright, Management Science 21 (1974), 60-67); gains are max_a (value −
        λ·cost). Integrated in steps of at most a quarter of a visit.
        """
        gain = np.maximum((self.value - price * self.cost)[:, :, 1:].max(axis=2), 0.0)
        most = int(np.clip(self.slots.max(initial=0), 1, _SLOTS))
        worth = np.zeros((most + 1, len(gain)))
        steps = max(math.ceil(4 * float(self.visits.max(initial=0.0))), 1)
        length = self.visits / steps
        for _ in range(steps):
            least = worth[1:] - worth[:-1]
            worth[1:] += length * np.maximum(gain[None] - least[:, :, None], 0.0).mean(axis=2)
        held = np.clip(self.slots, 1, most)
        at = np.arange(len(gain))
        # Who has more slots than are followed here has one to spare.
        return np.where(self.slots > most, 0.0, worth[held, at] - worth[held - 1, at])


class ReturnRate:
    """How likely a user who was seen comes again with the next arrival, counted as the day goes.

    per_arrival: what is assumed before anybody has come back, e.g. yesterday's visits per user ÷ arrivals.
    memory: number of arrivals over which it is corrected.
    """

    def __init__(self, per_arrival: float, memory: float = 1_500.0) -> None:
        if not 0 <= per_arrival <= 1 or memory <= 0:
            raise ValueError(
                f"per_arrival: {per_arrival} is outside [0, 1], or memory: {memory} is not positive"
            )
        self._seen: set[int] = set()
        self._memory, self._prior = memory, per_arrival
        self._returns, self._chances, self._weight = 0.0, 0.0, 1.0

    @property
    def per_arrival(self) -> float:
        """Returns ÷ chances to return, of one user and one arrival."""
        # The prior counts as if `memory` arrivals had come to as many users as it says there are.
        prior = self._weight * self._memory
        if self._prior == 0:
            return self._returns / (self._chances + prior)
        return (self._returns + prior) / (self._chances + prior / self._prior)

    def add(self, users: IndexArray) -> None:
        """Arrivals, by the number of their user."""
        come = users.tolist()
        fade = math.exp(-len(come) / self._memory)
        again = sum(user in self._seen for user in come)
        self._returns = self._returns * fade + again
        self._chances = self._chances * fade + len(self._seen) * len(come)
        self._weight *= fade
        self._seen.update(come)
