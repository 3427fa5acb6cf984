"""The policies that are compared: who would have been shown what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qiance.allocate import allocate
from qiance.cli.offline.study import Floats, Mask
from qiance.decide.rule import policy_probabilities

CONTACT_SHARES = (0.1, 0.3, 0.5)
LOGGED = "logged policy"
EVERYBODY = "everybody: "
BEST = "best arm per customer"
SOFTMAX = "softmax over predictions"
# Above this many arms, "everybody gets it" is shown for the best one only.
_MAX_SINGLE = 6


@dataclass(frozen=True)
class Policy:
    """A policy by name.

    probs: `[N, K]`. random: `[N, K]`, as many contacts given at random; None where that has no sense.
    """

    name: str
    probs: Floats
    random: Floats | None = None


@dataclass(frozen=True)
class Choice:
    """What policies are made from.

    value: `[N, K]` predicted primary outcome, by the model that has not seen the row's half; the first
    column is control where `control`. halves: of the rows; budgets hold, and best arms are found, in each.
    logging: `[K]` or `[N, K]` probabilities of the logging policy. epsilon: exploration of a live policy.
    """

    value: Floats
    arms: Sequence[str]
    control: bool
    halves: Sequence[Mask]
    logging: Floats
    epsilon: float

    @property
    def proposals(self) -> tuple[str, ...]:
        """Policies that may be proposed, the boldest first; one that the log can judge is taken."""
        return (BEST,) if self.control else (exploring_name(self.epsilon), SOFTMAX)


def exploring_name(epsilon: float) -> str:
    """Name of the best arm per customer as it would be served, with its share of exploration."""
    return f"{BEST}, {epsilon:.0%} exploration"


def policies(choice: Choice) -> Iterator[Policy]:
    """The logging policy first; made one by one, for each is as large as the log times the arms."""
    n, size = choice.value.shape
    yield Policy(LOGGED, np.broadcast_to(choice.logging, (n, size)))
    if size <= _MAX_SINGLE:
        for place, arm in enumerate(choice.arms):
            yield Policy(f"{EVERYBODY}{arm}", _always(n, size, place))
    else:
        yield Policy(f"{EVERYBODY}the best single arm", best_single(choice))
    yield Policy(BEST, _decided(choice.value, 0.0))
    if choice.control:
        for share in CONTACT_SHARES:
            yield _contacts(choice, share)
    else:
        yield Policy(exploring_name(choice.epsilon), _decided(choice.value, choice.epsilon))
        yield Policy(SOFTMAX, softmax(choice.value, choice.halves))


def best_single(choice: Choice) -> Floats:
    """`[N, K]` the arm of highest mean prediction for everybody in the half."""
    probs = np.zeros(choice.value.shape)
    for rows in choice.halves:
        first = int(choice.control)
        probs[rows, first + int(choice.value[rows, first:].mean(axis=0).argmax())] = 1.0
    return probs


def softmax(value: Floats, halves: Sequence[Mask]) -> Floats:
    """`[N, K]` ∝ exp(value / τ); τ: mean standard deviation of a row's predictions over the arms, by half."""
    probs = np.empty(value.shape)
    for rows in halves:
        part = value[rows] - value[rows].max(axis=1, keepdims=True)
        temperature = max(float(part.std(axis=1).mean()), 1e-12)
        weights = np.exp(part / temperature)
        probs[rows] = weights / weights.sum(axis=1, keepdims=True)
    return probs


def _contacts(choice: Choice, share: float) -> Policy:
    """At most `share` of each half contacted, where the predicted uplift is highest."""
    n, size = choice.value.shape
    probs, random = np.zeros((n, size)), np.zeros((n, size))
    uplift = choice.value - choice.value[:, :1]
    single = best_single(choice)
    for rows in choice.halves:
        cost = np.ones((int(rows.sum()), size))
        cost[:, 0] = 0.0
        chosen = allocate(uplift[rows], cost, np.floor(share * len(cost))).choice
        probs[np.flatnonzero(rows), chosen] = 1.0
        contacted = float((chosen > 0).mean())
        random[rows] = contacted * single[rows]
        random[rows, 0] += 1.0 - contacted
    return Policy(f"contact {share:.0%} by predicted uplift", probs, random)


def _decided(value: Floats, epsilon: float) -> Floats:
    """What the live decision rule would choose, without cost."""
    return policy_probabilities(value, np.zeros_like(value), np.ones(value.shape, np.bool_), 0.0, epsilon)


def _always(n: int, size: int, place: int) -> Floats:
    probs = np.zeros((n, size))
    probs[:, place] = 1.0
    return probs
