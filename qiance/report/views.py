"""What each section of the page shows: charts and sentences made from the document."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from qiance.report.charts import Bar, Chart, Scale, intervals, lengths, mini, scale, steps
from qiance.report.figures import Format, Unit, money, money_each, number, percent, seconds, title, words
from qiance.report.model import EffectView, PolicyReport, RunReport, StrategyView
from qiance.report.model_views import MONEY_LABELS
from qiance.report.summary import Tone, chosen_policy, held

_LOGGED_AT_RANDOM = 0.001  # below this p value the split of an experiment is not the planned one
_EFFECTS = (
    ("ctr", "Clicks"),
    ("cvr", "Purchases"),
    ("sales", "Sales"),
    ("margin", "Margin"),
    ("uplift", "Extra margin"),
)
_SHOWN_ACTIONS = 1
_ESTIMATORS = {
    "ipw": "inverse propensity weighting",
    "snipw": "self-normalised weighting",
    "dm": "direct method",
    "dr": "doubly robust",
    "sndr": "self-normalised doubly robust",
}


@dataclass(frozen=True, slots=True)
class EffectRow:
    """One predicted effect on a card, with what was measured where that is known."""

    label: str
    value: str
    interval: str
    measured: str
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Card:
    """A strategy with its effects drawn."""

    strategy: StrategyView
    effects: tuple[EffectRow, ...]
    first: int = _SHOWN_ACTIONS


def effect_chart(report: RunReport) -> Chart | None:
    """Forecast, measurement and holdout on one axis, the forecast's interval shaded through all."""
    p, unit = report.policy, Unit(report.unit, report.currency)
    made = f"{estimator_name(p.estimator)}, before launch" if p.estimator else "before launch"
    bars = [Bar("Forecast", p.predicted, p.predicted_low, p.predicted_high, "forecast", made)]
    if p.measured is None:
        return intervals([*bars, *_log_bar(p)], unit)
    served = f"{p.decisions:,} decisions over HTTP" if p.decisions else "live"
    bars.append(Bar("Measured", p.measured, p.low, p.high, "measured", served))
    if p.holdout is not None:
        bars.append(
            Bar("Left alone", p.holdout, p.holdout_low, p.holdout_high, "holdout", "the holdout, no contact")
        )
    return intervals(bars, unit, band=(p.predicted_low, p.predicted_high))


def _log_bar(p: PolicyReport) -> list[Bar]:
    """What the policy that made the log earned: the forecast less its improvement."""
    if p.predicted is None or p.gate is None or p.gate.value is None:
        return []
    return [
        Bar("Policy of the log", p.predicted - p.gate.value, tone="holdout", note="by the same estimator")
    ]


def estimator_name(name: str) -> str:
    """The estimator in words, with its short name."""
    return f"{_ESTIMATORS[name]} ({name})" if name in _ESTIMATORS else name


def forecast_tone(policy: PolicyReport) -> Tone:
    """Colour of the verdict."""
    found = held(policy)
    return "plain" if found is None else "good" if found else "warn"


def split_sentence(policy: PolicyReport) -> str:
    """Whether the share of customers left alone is the planned one."""
    p = policy.sample_ratio_p
    if p is None:
        return ""
    if p < _LOGGED_AT_RANDOM:
        return f"The split is not the planned one (p = {number(p, 2)}): do not trust this comparison."
    return f"The split between policy and holdout is as planned (sample-ratio test, p = {number(p, 2)})."


def regret_chart(report: RunReport) -> Chart | None:
    """True extra margin of the policy, of the oracle and of simpler rules, totals of the live phase."""
    p = report.policy
    if p.oracle_value is None and p.policy_value is None and not p.comparisons:
        return None
    bars = [
        Bar("Perfect foresight", p.oracle_value, tone="forecast", note="the oracle, same budget"),
        Bar("This policy", p.policy_value, tone="measured"),
        *(Bar(title(name), value, tone="holdout") for name, value in p.comparisons.items()),
    ]
    known = [bar for bar in bars if bar.value is not None]
    return lengths(known, _total(report.currency))


def budget_chart(report: RunReport) -> Chart | None:
    """Cap, spending and reservations, totals."""
    budget = report.policy.budget
    if budget is None:
        return None
    bars = [
        Bar("Cap", budget.cap, tone="forecast"),
        Bar("Spent", budget.spent, tone="measured"),
        Bar("Reserved", budget.reserved, tone="holdout", note="may still be redeemed"),
        Bar("Without a cap", budget.unconstrained, tone="holdout", note="what the policy would have liked"),
    ]
    return lengths([bar for bar in bars if bar.value is not None], _total(report.currency))


def price_chart(report: RunReport) -> Markup | None:
    """The shadow price as it was set during the live phase."""
    points = [(float(p.day), p.value) for p in report.policy.shadow_prices if p.value is not None]
    return steps(points, lambda v: number(v, 3), "Shadow price over the live phase")


def rl_chart(report: RunReport) -> Chart | None:
    """Returns of the pacing policies on held-out seeds."""
    if report.rl is None:
        return None
    chosen = report.rl.chosen
    bars = [
        Bar(words(name), r.mean, r.low, r.high, *_picked(name == chosen))
        for name, r in report.rl.returns.items()
    ]
    return intervals(bars, lambda v: number(v))


def _picked(chosen: bool) -> tuple[str, str]:
    return ("measured", "taken") if chosen else ("holdout", "")


def stage_chart(report: RunReport) -> Chart | None:
    """How long each step took."""
    bars = [Bar(s.name, s.seconds, tone="forecast") for s in report.stages]
    return lengths(bars, seconds, tick=lambda v: f"{number(v)} s")


def offline_chart(report: RunReport) -> Chart | None:
    """Off-policy estimates of every policy by every estimator."""
    if report.offline is None:
        return None
    ours = chosen_policy(report)
    bars = [
        Bar(
            p.name,
            e.value,
            e.low,
            e.high,
            "measured" if p is ours else "holdout",
            estimator_name(e.estimator),
        )
        for p in report.offline.policies
        for e in p.estimates
    ]
    return intervals(bars, Unit(report.unit, report.currency))


def arm_rate(report: RunReport, label: str, value: float | None) -> str:
    """Mean outcome of an arm in the unit of its label."""
    if report.offline is not None and label == report.offline.label:
        return Unit(report.unit, report.currency)(value)
    return money_each(value, report.currency) if label in MONEY_LABELS else percent(value, 2)


def uplift_chart(report: RunReport) -> Chart | None:
    """Predicted extra margin per contact of every strategy, best first."""
    bars = []
    for strategy in report.strategies:
        if strategy.effect is not None and strategy.effect.uplift.value is not None:
            found = strategy.effect.uplift
            tone = "gain" if found.low is not None and found.low > 0 else "holdout"
            note = f"{strategy.kind.value}, {strategy.reach:,} customers"
            bars.append(Bar(strategy.title, found.value, found.low, found.high, tone, note))
    bars.sort(key=lambda bar: -(bar.value or 0.0))
    return intervals(bars, Unit("minor", report.currency), zero=True) if len(bars) > 1 else None


def cards(report: RunReport) -> list[Card]:
    """A card per strategy; bars of the same effect share a scale, so that cards compare."""
    scales = {name: _shared(report, name) for name, _ in _EFFECTS}
    return [Card(s, _effect_rows(s, scales, report.currency)) for s in report.strategies]


def _shared(report: RunReport, name: str) -> Scale | None:
    found = [getattr(s.effect, name) for s in report.strategies if s.effect is not None]
    values = [v for part in found for v in (part.value, part.low, part.high)]
    marks = [m for s in report.strategies if (m := _measured(s, name)) is not None]
    return scale([*values, *marks], zero=True)


def _measured(strategy: StrategyView, name: str) -> float | None:
    if strategy.measured is None:
        return None
    return {"cvr": strategy.measured.conversion, "margin": strategy.measured.margin}.get(name)


def _effect_rows(
    strategy: StrategyView, scales: dict[str, Scale | None], currency: str
) -> tuple[EffectRow, ...]:
    effect = strategy.effect or EffectView()
    rows = []
    for name, label in _EFFECTS:
        part, mark = getattr(effect, name), _measured(strategy, name)
        if part.value is None and mark is None:
            continue
        show = Unit("fraction" if name in ("ctr", "cvr") else "minor", currency)
        drawing = mini(Bar(label, part.value, part.low, part.high, "forecast", mark=mark), scales[name], show)
        measured = "" if mark is None else show(mark)
        rows.append(EffectRow(label, show(part.value), show.interval(part.low, part.high), measured, drawing))
    return tuple(rows)


def _total(currency: str) -> Format:
    return lambda value: money(value, currency, 0)
