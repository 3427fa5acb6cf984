"""A choice of candidates that is good and varied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from qiance.domain import StrategyKind
from qiance.strategy.propose_candidate import Candidate

# What a repeat costs, on the scale where the worst candidate is 0 and the best 1.
PENALTIES = {"item": 0.5, "audience": 0.3, "channel": 0.15, "kind": 0.25}

# One strategy in so many is kept for those that a model of logged ones proposes.
LEARNED_EVERY = 4

Trait = tuple[str, Hashable]


def choose_diverse(pool: Sequence[Candidate], n: int) -> list[Candidate]:
    """At most `n` distinct candidates; every kind in the pool is among them when n allows it.

    Greedy: argmax over what is left of rank(value) − Σ penalty · repeats of its item, audience,
    channel and kind among those chosen, with rank in [0, 1]. One in `LEARNED_EVERY` is a learned one,
    if as many are expected to bring anything. Once only as many places are left as kinds and learned
    ones are missing, only these are considered.
    The promotions of an item are not planned to sell more together than one of them may, `Sold.limit`.
    Carbonell and Goldstein (1998), maximal marginal relevance, with counts for similarity.
    """
    left = sorted({candidate.content: candidate for candidate in pool}.values(), key=_order)
    quality = dict(zip((c.content for c in left), _ranks([c.total for c in left]), strict=True))
    kinds = {candidate.kind for candidate in left}
    wanted = min(n // LEARNED_EVERY, sum(_promising(c) for c in left))
    used: Counter[Trait] = Counter()
    chosen: list[Candidate] = []
    while len(chosen) < n and (left := [c for c in left if _in_stock(c, chosen)]):
        missing = kinds - {candidate.kind for candidate in chosen}
        due = max(wanted - sum(_promising(c) for c in chosen), 0)
        open_now = _open(left, missing, due, n - len(chosen))
        best = max(open_now, key=lambda c: float(quality[c.content]) - _penalty(c, used))
        chosen.append(best)
        left.remove(best)
        used.update(_traits(best))
    return chosen


def _open(left: list[Candidate], missing: set[StrategyKind], due: int, places: int) -> list[Candidate]:
    """Those that may come next, so that the kinds that are missing and `due` learned ones still fit in."""
    spare = places - len(missing) - due
    if spare > 0 or not (missing or due):
        return left
    learned = [c for c in left if due and _promising(c)]
    of_kind = [c for c in left if c.kind in missing]
    if spare < 0:  # only one that is both makes room
        return [c for c in learned if c.kind in missing] or of_kind or learned
    return [c for c in left if c.kind in missing or (due and _promising(c))]


def _in_stock(candidate: Candidate, chosen: Sequence[Candidate]) -> bool:
    """Whether the promotions of its item may together sell what they are predicted to."""
    if candidate.sold is None:
        return True
    others = [c.sold.units.high for c in chosen if c.sold and c.item == candidate.item]
    return not others or sum(others) + candidate.sold.units.high <= candidate.sold.limit


def _promising(candidate: Candidate) -> bool:
    return candidate.learned and candidate.total > 0


def missing_kinds(pool: Sequence[Candidate]) -> tuple[StrategyKind, ...]:
    """Kinds that no candidate has."""
    present = {candidate.kind for candidate in pool}
    return tuple(kind for kind in StrategyKind if kind not in present)


def _traits(candidate: Candidate) -> tuple[Trait, ...]:
    return (
        ("item", candidate.item.item_id),
        ("audience", candidate.audience.conditions),
        ("channel", candidate.channels[0]),
        ("kind", candidate.kind),
    )


def _penalty(candidate: Candidate, used: Counter[Trait]) -> float:
    return sum(PENALTIES[trait[0]] * used[trait] for trait in _traits(candidate))


def _order(candidate: Candidate) -> tuple[object, ...]:
    """A total order that does not depend on how the pool was made."""
    return (-candidate.total, repr(candidate.content))


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Mid-ranks scaled to [0, 1]; equal values share theirs."""
    array = np.asarray(values, dtype=np.float64)
    ordered = np.sort(array)
    middle = (np.searchsorted(ordered, array, "left") + np.searchsorted(ordered, array, "right")) / 2
    return np.asarray(middle / max(len(array), 1), dtype=np.float64)
