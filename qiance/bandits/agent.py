"""A contextual bandit: decides for a batch, remembers what is pending, learns from rewards as they come.

bandit = Bandit(features, arms, BanditSettings(rule=Rule.THOMPSON), cost=contact_cost)
chosen = bandit.choose(context, admissible, rng=rng)
bandit.decided(ids, context, chosen.choice, at=day)      # before the answer goes out
bandit.outcomes(ids_with_purchase, margin)               # whenever they come, repeated or not
bandit.close(day)                                        # those whose window is over had none
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from qiance.bandits.choice import Chosen, Rule, choose, rule_probabilities
from qiance.bandits.network import Network
from qiance.bandits.pending import Learn, Pending, Settled
from qiance.bandits.posterior import LinearPosterior, Prior, rows_of
from qiance.evaluate.arrays import (
    FloatArray,
    IndexArray,
    finite_vector,
    fraction,
    refuse_where,
)

# (standardised context [n, d], action [n], reward [n]) → network
Fit = Callable[[FloatArray, IndexArray, FloatArray], Network]


@dataclass(frozen=True, slots=True)
class BanditSettings:
    """rule, width, epsilon: see `rule_probabilities`. prior: see `Prior`.

    warm_up: rewards to be known before the rule decides; until then any admissible action, since an index
    without knowledge gives everybody of a batch the same. window: days after which a decision without an
    outcome had none. learn: see `Learn`. keep: the settled decisions are kept, which refitting a network
    needs.
    """

    rule: Rule = Rule.THOMPSON
    width: float = 1.0
    epsilon: float = 0.02
    prior: Prior = field(default_factory=Prior)
    warm_up: int = 100
    window: float = 7.0
    learn: Learn = Learn.CLOSE
    keep: bool = False

    def __post_init__(self) -> None:
        fraction("epsilon", self.epsilon)
        fraction("width", self.width, high=np.inf)


class Bandit:
    """A bandit over `arms` (the first is control) that sees the numeric `features` of a user.

    A model per arm is linear in the standardised features with an intercept, or in the last layer of a
    network (neural-linear: Riquelme et al., ICLR 2018). cost: `[A]` known cost of each arm, in units of the
    reward, taken off its mean. centre, scale: `[d]` with which a context is standardised. Not for several
    threads.
    """

    def __init__(
        self,
        features: Sequence[str],
        arms: Sequence[str],
        settings: BanditSettings | None = None,
        *,
        cost: ArrayLike | None = None,
        centre: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        network: Network | None = None,
    ) -> None:
        self.features, self.arms = _distinct("features", features, 1), _distinct("arms", arms, 2)
        self.settings = settings or BanditSettings()
        size, number = len(self.features), len(self.arms)
        self.cost = finite_vector("cost", np.zeros(number) if cost is None else cost, number)
        self.centre = finite_vector("centre", np.zeros(size) if centre is None else centre, size)
        self.scale = finite_vector("scale", np.ones(size) if scale is None else scale, size)
        refuse_where(
            "scale", self.scale, self.scale <= 0, "must be > 0: leave out a feature that never varies"
        )
        self.pending = Pending(size, self.settings.window, self.settings.learn)
        self._settled = [Settled.none(size)]
        self._see_through(network)

    @property
    def log(self) -> Settled:
        """The settled decisions that were kept, in the order of their ids."""
        self._settled = [Settled.join(self._settled)]
        return self._settled[0]

    @log.setter
    def log(self, rows: Settled) -> None:
        self._settled = [rows]

    def choose(
        self,
        context: ArrayLike,
        admissible: ArrayLike | None = None,
        *,
        rng: np.random.Generator | None = None,
        uniforms: ArrayLike | None = None,
    ) -> Chosen:
        """Decide for n users: context `[n, d]`, admissible `[n, A]` bool (None: everything), and exactly one
        of a generator and uniforms `[n]` in [0, 1). ValueError names the array, row and value."""
        return choose(self.probabilities(context, admissible), rng=rng, uniforms=uniforms)

    def probabilities(self, context: ArrayLike, admissible: ArrayLike | None = None) -> FloatArray:
        """`[n, A]` with which `choose` would draw."""
        mean, deviation = self.posterior.predict(self._inputs(context))
        mask = np.ones(mean.shape, np.bool_) if admissible is None else admissible
        told = self.settings
        known = self.posterior.weight.sum() >= told.warm_up
        rule = told.rule if known else Rule.UNIFORM
        return rule_probabilities(rule, mean - self.cost, deviation, mask, told.width, told.epsilon)

    def decided(self, ids: ArrayLike, context: ArrayLike, action: ArrayLike, at: ArrayLike) -> int:
        """Remember n decisions until their outcome comes; see `Pending.add`. at: day, one or `[n]`."""
        chosen = np.asarray(action)
        refuse_where("action", chosen, chosen >= len(self.arms), f"must be under {len(self.arms)}, the arms")
        return self.pending.add(ids, context, action, np.broadcast_to(np.asarray(at), np.shape(ids)))

    def outcomes(self, ids: ArrayLike, reward: ArrayLike) -> int:
        """Note rewards `[n]`, before costs, of decisions; returns how many were learned from at once."""
        return self._learn(self.pending.outcome(ids, reward))

    def close(self, now: float) -> int:
        """Close the windows that are over on day `now`; returns how many decisions were learned from."""
        return self._learn(self.pending.close(now))

    def refit(self, fit: Fit) -> None:
        """Replace the network by `fit` of all settled decisions, in the order of their ids, and learn them
        anew.

        ValueError where none is settled or they are not kept.
        """
        rows = self.log
        if not len(rows):
            raise ValueError("refit: no settled decisions to fit on; set keep=True and learn from some first")
        self._see_through(fit(self._standardised(rows.context), rows.action, rows.reward))
        self.posterior.update(self._inputs(rows.context), rows.action, rows.reward, rows.at)

    def _see_through(self, network: Network | None) -> None:
        """Begin a posterior on the features of `network`."""
        if network is not None and network.weights[0].shape[0] != len(self.features):
            wide = network.weights[0].shape[0]
            raise ValueError(f"network: takes {wide} features; the bandit has {len(self.features)}")
        self.network = network
        size = 1 + (len(self.features) if network is None else network.width)
        self.posterior = LinearPosterior(len(self.arms), size, self.settings.prior)

    def _learn(self, settled: Settled) -> int:
        if len(settled):
            self.posterior.update(self._inputs(settled.context), settled.action, settled.reward, settled.at)
            if self.settings.keep:
                self._settled.append(settled)
        return len(settled)

    def _standardised(self, context: ArrayLike) -> FloatArray:
        return (rows_of("context", context, len(self.features)) - self.centre) / self.scale

    def _inputs(self, context: ArrayLike) -> FloatArray:
        """`[n, 1 + width]`: a constant, and what the regressions are linear in."""
        x = self._standardised(context)
        seen = x if self.network is None else self.network.hidden(x)
        return np.column_stack([np.ones(len(x)), seen])


def _distinct(name: str, names: Sequence[str], least: int) -> tuple[str, ...]:
    found = tuple(names)
    if len(found) < least or len(set(found)) < len(found):
        raise ValueError(f"{name}: {list(found)} must be at least {least} different names")
    return found
