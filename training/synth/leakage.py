"""Whether a synthetic cohort tells who it was made from: two membership attacks, and how well they do.

Members are the users that a generator learned from, non-members users of the same table that it never saw. An
attack gives each a score; its AUC is the chance that a member's is higher, 0.5 for a cohort that tells
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression

from qiance.domain import Interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NEIGHBOURS = (1, 5)
SHADOWS = 8
_CLOSEST = 1e-6


class Samples(Protocol):
    """A fitted generator."""

    def sample(self, count: int, seed: int = 0) -> pd.DataFrame: ...


Fit = Callable[[pd.DataFrame, int], Samples]
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Leakage:
    """AUC of each attack with its 95 % interval; members, non_members: how many were told apart."""

    attacks: dict[str, Interval]
    members: int
    non_members: int

    @property
    def worst(self) -> str:
        """The attack with the highest AUC."""
        return max(self.attacks, key=lambda name: self.attacks[name].value)

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"worst": self.worst}


def leakage(
    users: pd.DataFrame,
    member: Bools,
    released: pd.DataFrame,
    fit: Fit,
    seed: int = 0,
    shadows: int = SHADOWS,
    tell: Tell | None = None,
) -> Leakage:
    """Attack `released`, which was made from the users `[n]` where `member`, with all users as suspects.

    closest_record: by the distance to the closest synthetic user. shadow: the attacker fits the same
    generator on random parts of the suspects, learns from those how distances differ for who was in and who
    was not, and sets a user's distances against the user's own when left out. Sources: Chen et al.,
    GAN-Leaks, CCS 2020; Stadler, Oprisanu & Troncoso, Synthetic Data, USENIX Security 2022; Carlini et al.,
    Membership Inference Attacks From First Principles, S&P 2022.
    """
    if member.all() or not member.any():
        raise ValueError("member: needs users that were learned from, and others")
    near = nearness(users, released)
    shadow = _shadow(users, member, near, len(released), fit, seed, shadows, tell)
    scores = {"closest_record": near[:, 0], "shadow": shadow}
    attacks = {name: auc_interval(member, score) for name, score in scores.items()}
    return Leakage(attacks, int(member.sum()), int((~member).sum()))


def nearness(users: pd.DataFrame, synthetic: pd.DataFrame) -> Floats:
    """`[n, 2]` −log of the mean distance to the nearest 1 and 5 synthetic users.

    A number is where it stands among the synthetic ones (in [0, 1], missing is −0.5); another category is 1
    away.
    """
    tree = cKDTree(_points(synthetic, synthetic))
    distance, _ = tree.query(_points(users, synthetic), k=min(max(NEIGHBOURS), len(synthetic)))
    distance = distance.reshape(len(users), -1)
    return -np.log(np.stack([distance[:, :k].mean(axis=1) for k in NEIGHBOURS], axis=1) + _CLOSEST)


def _points(users: pd.DataFrame, synthetic: pd.DataFrame) -> Floats:
    parts = []
    for name in synthetic:
        if synthetic[name].dtype == object:
            known = pd.Index(sorted(set(synthetic[name].dropna())))
            parts.append(np.eye(len(known) + 1)[known.get_indexer(users[name])] / np.sqrt(2))
        else:
            values, own = np.sort(synthetic[name].dropna()), users[name].to_numpy(dtype=np.float64)
            place = np.searchsorted(values, own, "left") + np.searchsorted(values, own, "right")
            parts.append(np.where(np.isnan(own), -0.5, place / (2 * max(len(values), 1)))[:, None])
    return np.concatenate(parts, axis=1)


def _shadow(
    users: pd.DataFrame,
    member: Bools,
    near: Floats,
    count: int,
    fit: Fit,
    seed: int,
    shadows: int,
    tell: Tell | None,
) -> Floats:
    """`[n]` scores; count: synthetic users that were released, and that every shadow makes."""
    rng = np.random.default_rng([seed, 3])
    inside = np.zeros((shadows, len(users)), dtype=bool)
    found = []
    for k in range(shadows):
        if tell:
            tell(k / shadows, f"attacks: shadow generator {k + 1} of {shadows}")
        inside[k, rng.permutation(len(users))[: member.sum()]] = True
        made = fit(users[inside[k]].reset_index(drop=True), seed + 1 + k)
        found.append(nearness(users, made.sample(count, seed + 1 + k)))
    seen = np.stack(found)
    rows = [_standing(seen[k], np.delete(seen, k, 0), np.delete(inside, k, 0)) for k in range(shadows)]
    attacker = LogisticRegression(max_iter=1_000).fit(np.concatenate(rows), inside.ravel())
    return np.asarray(attacker.decision_function(_standing(near, seen, inside)))


def _standing(near: Floats, others: Floats, inside: Bools) -> Floats:
    """`[n, 4]`: nearness, and by how much it is above the user's mean where the user was left out."""
    out = ~inside[:, :, None]
    count = np.maximum(out.sum(axis=0), 1)
    known = (others * out).sum(axis=0) / count
    usual = np.where(out.any(axis=0), known, others.mean(axis=0))
    return np.concatenate([near, near - usual], axis=1)


def auc_interval(label: Bools, score: Floats) -> Interval:
    """AUC with its 95 % interval by the variance of placements.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), 837-845.
    """
    ones, zeros = np.sort(score[label]), np.sort(score[~label])

    def placed(values: Floats, among: Floats) -> Floats:
        both = np.searchsorted(among, values, "left") + np.searchsorted(among, values, "right")
        return np.asarray(both / (2 * len(among)))

    above, below = placed(ones, zeros), placed(zeros, ones)
    value = float(above.mean())
    spread = above.var(ddof=1) / len(ones) + below.var(ddof=1) / len(zeros)
    half = float(stats.norm.ppf(0.975) * np.sqrt(spread))
    return Interval(value, max(value - half, 0.0), min(value + half, 1.0))
