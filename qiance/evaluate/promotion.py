"""Whether a challenger may take the champion's place: not worse, surely enough, on rows neither learned from.

A non-inferiority test: for each outcome, the interval of the difference in log loss and in calibration error
must lie below a margin with its whole length (CONSORT: Piaggio et al., 2012). The interval is the paired
bootstrap over units, so that a user with many rows counts once: Poisson(1) weights per unit (Chamandy et al.,
2012), the same for both models, and the basic interval (Davison and Hinkley, 1997, section 5.2), because the
calibration error of resampled rows is larger than that of the rows. All measures have to pass, so none needs
a correction for the others. Shapes: n rows, U units, B bins, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.prediction import EPSILON, binary, equal_mass_bins

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

MIN_EVENTS = 20  # rows of either outcome; with fewer nothing can be told
_AT_ONCE = 4_000_000  # weights in memory


@dataclass(frozen=True, slots=True)
class PromotionRule:
    """What counts as not worse.

    log_loss_margin: largest loss of log loss, as a share of the champion's. ece_margin: largest loss of
    expected calibration error, in probability. confidence: of the two-sided intervals. draws: R.
    """

    log_loss_margin: float = 0.01
    ece_margin: float = 0.01
    confidence: float = 0.95
    draws: int = 1_000
    bins: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("log_loss_margin", "ece_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"rule.{name}: {getattr(self, name)} is outside [0, 1)")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"rule.confidence: {self.confidence} is outside [0.5, 1)")
        if self.draws < 100 or self.bins < 1:
            raise ValueError(f"rule: {self.draws} draws and {self.bins} bins; at least 100 and 1 are needed")


@dataclass(frozen=True, slots=True)
class Rivals:
    """Outcomes y (0 or 1) and both models' probabilities of them, each `[n]`, of the same rows."""

    y: ArrayLike
    champion: ArrayLike
    challenger: ArrayLike


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of one outcome: challenger − champion with its interval; above 0 the challenger is worse.

    measure: `log loss` in nats, or `calibration error` in probability; margin is in the same unit.
    """

    outcome: str
    measure: str
    champion: float
    challenger: float
    value: float
    low: float
    high: float
    margin: float

    @property
    def not_worse(self) -> bool:
        """Whether the whole interval lies below the margin."""
        return self.high <= self.margin

    def __str__(self) -> str:
        away = f"{abs(self.value):.4f} {'above' if self.value >= 0 else 'below'} the champion's"
        return (
            f"{self.outcome}: {self.measure} {self.challenger:.4f}, {away} (interval "
            f"{self.low:+.4f} to {self.high:+.4f}, allowed +{self.margin:.4f})"
        )


@dataclass(frozen=True, slots=True)
class PromotionTest:
    """The verdict. reason: in words; differences: all that was compared; unfair: a sentence per group."""

    passed: bool
    reason: str
    rows: int
    units: int
    confidence: float
    differences: tuple[Difference, ...]
    unfair: tuple[str, ...] = ()


def promotion_test(
    outcomes: Mapping[str, Rivals],
    units: ArrayLike,
    rule: PromotionRule | None = None,
    unfair: Sequence[str] = (),
) -> PromotionTest:
    """Compare two models on rows that neither has seen.

    outcomes: by name. units: `[n]` ids of users. unfair: sentences about groups that the challenger is wrong
    about beyond a threshold; each blocks it. Raises ValueError for shapes and values that do not fit.
    """
    chosen = rule or PromotionRule()
    _, place = np.unique(np.asarray(units).astype(np.str_), return_inverse=True)
    unit = place.ravel()
    if not outcomes or not unit.size:
        raise ValueError("outcomes: nothing to compare; give at least one outcome with one row")
    differences, unknown = list[Difference](), list[str]()
    for name, rivals in outcomes.items():
        checked = _checked(name, rivals, unit.size)
        rarer = int(min(checked[0].sum(), (1 - checked[0]).sum()))
        if rarer < MIN_EVENTS:
            unknown.append(f"{name}: {rarer} held-out rows of the rarer outcome, and {MIN_EVENTS} are needed")
        else:
            differences += _compare(name, *checked, unit, chosen)
    worse = [str(one) for one in differences if not one.not_worse]
    return PromotionTest(
        passed=not (worse or unknown or unfair),
        reason=_reason(differences, worse, unknown, unfair),
        rows=unit.size,
        units=int(unit.max()) + 1,
        confidence=chosen.confidence,
        differences=tuple(differences),
        unfair=tuple(unfair),
    )


def _reason(
    differences: Sequence[Difference], worse: Sequence[str], unknown: Sequence[str], unfair: Sequence[str]
) -> str:
    found = [
        *(f"too few to tell: {text}" for text in unknown),
        *(f"may be worse: {text}" for text in worse),
        *(f"unfair: {text}" for text in unfair),
    ]
    return "; ".join(found) or "not worse: " + "; ".join(map(str, differences))


def _checked(name: str, rivals: Rivals, rows: int) -> tuple[Floats, Floats, Floats]:
    try:
        y, champion = binary(rivals.y, rivals.champion)
        _, challenger = binary(rivals.y, rivals.challenger)
    except ValueError as error:
        raise ValueError(f"outcomes.{name}: {error}") from None
    if y.size != rows:
        raise ValueError(f"outcomes.{name}: has {y.size} rows where units has {rows}")
    return y, champion, challenger


def _compare(
    name: str, y: Floats, champion: Floats, challenger: Floats, unit: Index, rule: PromotionRule
) -> list[Difference]:
    models = (champion, challenger)
    losses: list[Floats] = [np.bincount(unit, _log_losses(y, p)).astype(np.float64) for p in models]
    gaps = [_gaps(y, p, unit, rule.bins) for p in models]
    count = np.bincount(unit).astype(np.float64)
    drawn = _resampled(losses, gaps, count, rule)
    whole = _measures(losses, gaps, count, np.ones((1, count.size)))
    margins = (rule.log_loss_margin * float(whole[0, 0, 0]), rule.ece_margin)
    edge = (1 - rule.confidence) / 2
    found = []
    for row, measure in enumerate(("log loss", "calibration error")):
        own, other = (float(value) for value in whole[row, :, 0])
        value, spread = other - own, drawn[row, 1] - drawn[row, 0]
        low, high = np.quantile(spread, [edge, 1 - edge])
        limits = (2 * value - float(high), 2 * value - float(low))
        found.append(Difference(name, measure, own, other, value, *limits, margins[row]))
    return found


def _log_losses(y: Floats, p: Floats) -> Floats:
    cut = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(-(y * np.log(cut) + (1 - y) * np.log1p(-cut)))


def _gaps(y: Floats, p: Floats, unit: Index, bins: int) -> Floats:
    """`[U, B]` sum of observed − predicted per unit in each bin of the predictions of all rows."""
    place = equal_mass_bins(p, bins)
    width = int(place.max()) + 1
    sums = np.bincount(unit * width + place, y - p, minlength=(int(unit.max()) + 1) * width)
    return np.asarray(sums.reshape(-1, width))


def _resampled(
    losses: Sequence[Floats], gaps: Sequence[Floats], count: Floats, rule: PromotionRule
) -> Floats:
    """`[2, 2, R]`: measure × model × draw, the same weights for both models."""
    random = np.random.default_rng(rule.seed)
    size = max(1, _AT_ONCE // count.size)
    parts = []
    for start in range(0, rule.draws, size):
        weights = random.poisson(1.0, (min(size, rule.draws - start), count.size)).astype(np.float64)
        parts.append(_measures(losses, gaps, count, weights))
    return np.concatenate(parts, axis=2)


def _measures(losses: Sequence[Floats], gaps: Sequence[Floats], count: Floats, weights: Floats) -> Floats:
    """Mean log loss and Σ_b |Σ (y − p)| / n of both models, for each row of weights `[R, U]`."""
    total = np.maximum(weights @ count, 1.0)
    by_loss = [weights @ own / total for own in losses]
    by_gap = [np.abs(weights @ own).sum(axis=1) / total for own in gaps]
    return np.stack([np.stack(by_loss), np.stack(by_gap)])
