"""What matters in a run, in plain words: the figures at the top of the page and in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from qiance.report.figures import NONE, Unit, milliseconds, money, number, percent, seconds, words
from qiance.report.model import OfflinePolicy, PolicyReport, RunReport

Tone = Literal["good", "warn", "bad", "plain"]
_COLOURS: dict[Tone, str] = {"good": "green", "warn": "yellow", "bad": "red", "plain": ""}
# Spending beyond the cap that is still within the promise of the product.
OVERSPEND_PROMISE = 0.01


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure that matters: what it is, its value, and a line that says what it means."""

    label: str
    value: str
    detail: str
    tone: Tone = "plain"


def headlines(report: RunReport) -> list[Headline]:
    """The four to six figures that matter most, the most important first."""
    found = _loop(report) if report.kind == "loop" else _offline(report)
    return list(found)[:6]


def lead(report: RunReport) -> str:
    """The result of the run in a sentence or two."""
    if report.kind == "offline":
        return _offline_lead(report)
    policy, unit = report.policy, Unit("minor", report.currency)
    if policy.gate is not None and not policy.gate.passed:
        return "The new policy did not pass its check before launch, so live customers were left alone."
    if policy.measured is None:
        return "This run has no live phase, so nothing was measured."
    start = f"Customers under the new policy brought {unit(policy.measured)} of margin per decision"
    gain = policy.uplift
    if gain is None or gain.value is None:
        return f"{start}."
    size = unit(abs(gain.value))
    against = f"{start}, {size} {'more' if gain.value >= 0 else 'less'} than customers left alone"
    if gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high:
        return f"{against}. The difference is within what chance alone can do: more decisions are needed."
    return f"{against}. Chance alone does not explain the difference."


def verdict(policy: PolicyReport, unit: Unit) -> str:
    """Whether the forecast held, in words; empty without a live phase."""
    if policy.measured is None:
        return ""
    if policy.predicted_low is None or policy.predicted_high is None:
        return "No interval was forecast before the launch, so there is nothing to hold the measurement to."
    span = unit.interval(policy.predicted_low, policy.predicted_high)
    measured = unit(policy.measured)
    if held(policy):
        return (
            f"The forecast held: {measured} was measured, inside the interval of {span} made before launch."
        )
    side = "below" if policy.measured < policy.predicted_low else "above"
    missed = (
        f"The forecast did not hold: {measured} was measured, {side} the interval of {span} "
        "made before launch."
    )
    apart = (policy.high is not None and policy.high < policy.predicted_low) or (
        policy.low is not None and policy.low > policy.predicted_high
    )
    if policy.low is None or policy.high is None:
        return missed
    return f"{missed} The two intervals {'do not overlap either' if apart else 'still overlap'}."


def held(policy: PolicyReport) -> bool | None:
    """Whether the interval made before contains the measured value; None where it cannot be said."""
    if policy.contains is not None and policy.measured is not None:
        return policy.contains
    if policy.measured is None or policy.predicted_low is None or policy.predicted_high is None:
        return None
    return policy.predicted_low <= policy.measured <= policy.predicted_high


def chosen_policy(report: RunReport) -> OfflinePolicy | None:
    """The policy that an offline run proposes."""
    policies = report.offline.policies if report.offline else []
    wanted = report.offline.chosen if report.offline else None
    return next((p for p in policies if p.name == wanted), policies[0] if policies else None)


def summary_table(report: RunReport) -> Table:
    """The figures that matter, for the terminal."""
    table = Table(title=Text(report.title), title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(style="dim", overflow="fold")
    for line in headlines(report):
        table.add_row(Text(line.label), Text(line.value, style=_COLOURS[line.tone]), Text(line.detail))
    total = sum(stage.seconds or 0.0 for stage in report.stages)
    slowest = max(report.stages, key=lambda stage: stage.seconds or 0.0, default=None)
    detail = f"longest: {slowest.name}, {seconds(slowest.seconds)}" if slowest else ""
    table.add_row(Text("Time"), Text(seconds(total)), Text(detail))
    for note in report.notes:
        table.add_row(Text("Note", style="yellow"), Text(""), Text(note))
    return table


def _loop(report: RunReport) -> Iterator[Headline]:
    policy, unit = report.policy, Unit("minor", report.currency)
    yield _gain(policy, unit)
    forecast = held(policy)
    if policy.measured is not None:
        answer = {True: "Yes", False: "No", None: NONE}[forecast]
        tone: Tone = "good" if forecast else "warn"
        span = unit.interval(policy.predicted_low, policy.predicted_high)
        detail = f"forecast {span or unit(policy.predicted)}, measured {unit(policy.measured)} a decision"
        yield Headline("Did the forecast hold?", answer, detail, tone)
    if policy.oracle_share is not None:
        yield Headline(
            "Share of the best possible",
            percent(policy.oracle_share),
            "of the gain that perfect foresight would have made with the same budget",
        )
    if policy.budget is not None:
        yield _budget(policy, report.currency)
    yield _strategies(report)
    if policy.decisions:
        yield _service(policy)


def _gain(policy: PolicyReport, unit: Unit) -> Headline:
    gain = policy.uplift
    label = "Extra margin per 1,000 decisions"
    if gain is None or gain.value is None:
        return Headline(label, NONE, "not measured in this run")
    tone: Tone = "plain"
    if gain.low is not None and gain.high is not None:
        tone = "good" if gain.low > 0 else "bad" if gain.high < 0 else "warn"
    span = ""
    if gain.low is not None and gain.high is not None:
        span = f"; {unit.per_thousand(gain.low, gain.value)} to {unit.per_thousand(gain.high, gain.value)}"
        span += f" at {percent(policy.confidence, 0)}"
    return Headline(label, unit.per_thousand(gain.value), f"against customers left alone{span}", tone)


def _budget(policy: PolicyReport, currency: str) -> Headline:
    budget, over = policy.budget, policy.overspend or 0.0
    assert budget is not None
    value = money(budget.spent, currency, 0)
    cap = f"of {money(budget.cap, currency, 0)}" if budget.cap is not None else "no cap"
    said = "no overspend" if over == 0 else f"{percent(over)} over the cap"
    return Headline("Spent", value, f"{cap}; {said}", _over_tone(over))


def _over_tone(over: float) -> Tone:
    return "good" if over == 0 else "warn" if over <= OVERSPEND_PROMISE else "bad"


def _strategies(report: RunReport) -> Headline:
    kinds = len({strategy.kind for strategy in report.strategies})
    creatives = [a.creative for s in report.strategies for a in s.actions if a.creative is not None]
    written = sum(creative.source == "llm" for creative in creatives)
    detail = f"of {kinds} kind{'' if kinds == 1 else 's'}" if kinds else "none were proposed"
    if creatives:
        detail += f"; {written} of {len(creatives)} texts by the language model"
    return Headline("Strategies", number(len(report.strategies)), detail)


def _service(policy: PolicyReport) -> Headline:
    p99 = policy.latency_ms.p99 if policy.latency_ms else None
    parts = [f"{number(policy.decisions)} decisions over HTTP"]
    if policy.decisions_per_s is not None:
        parts.append(f"{policy.decisions_per_s:,.0f} a second")
    if policy.degraded:
        parts.append(f"{number(sum(policy.degraded.values()))} with a part missing")
    missing = sum(policy.degraded.values())
    tone: Tone = "warn" if missing >= 0.01 * (policy.decisions or 1) else "plain"
    return Headline("Slowest 1 in 100 answers", milliseconds(p99), ", ".join(parts), tone)


def _offline(report: RunReport) -> Iterator[Headline]:
    policy, unit = report.policy, Unit(report.unit, report.currency)
    label = report.offline.label if report.offline else "outcome"
    span = unit.interval(policy.predicted_low, policy.predicted_high)
    spread = f"; {span} at {percent(policy.confidence, 0)}" if span else ""
    yield Headline(
        f"Forecast {label} of the proposed policy", unit(policy.predicted), f"per decision{spread}"
    )
    if policy.gate is not None:
        gate = policy.gate
        between = unit.difference_interval(gate.low, gate.high)
        tone: Tone = "good" if gate.low is not None and gate.low > 0 else "warn"
        yield Headline(
            "Better than the logged policy by", unit.difference(gate.value), between or "no interval", tone
        )
        yield Headline(
            "May it go live?", "Yes" if gate.passed else "No", gate.reason, "good" if gate.passed else "warn"
        )
    if report.offline is not None:
        logged = report.offline.logged
        detail = f"real responses to {len(logged.arms)} arms; nothing simulated"
        yield Headline("Logged decisions", number(logged.n), detail)
    yield from _quality(report)
    yield from _model(report, label)


def _quality(report: RunReport) -> Iterator[Headline]:
    read = sum(table.rows_read for table in report.data.tables) if report.data else 0
    if report.data is None or not read:
        return
    accepted = sum(table.accepted for table in report.data.tables)
    aside = sum(table.quarantined for table in report.data.tables)
    yield Headline("Rows accepted", percent(accepted / read), f"{read:,} read, {aside:,} put aside")


def _model(report: RunReport, label: str) -> Iterator[Headline]:
    found = report.models.effect.scores.get(label, []) if report.models.effect else []
    ours = next((s for s in found if is_ours(s.name)), None)
    if ours is not None and ours.auc is not None:
        detail = f"AUC for {label} on {ours.n_test:,} unseen rows; 0.5 is a coin"
        yield Headline("Telling responders apart", f"{ours.auc:.3f}", detail)


def is_ours(name: str) -> bool:
    """Whether a row of a model table is the model that the loop uses."""
    return name == "effect model"


def _offline_lead(report: RunReport) -> str:
    policy, unit = report.policy, Unit(report.unit, report.currency)
    if policy.predicted is None:
        return "This run has no estimate of a policy."
    label = words(report.offline.label) if report.offline else "outcome"
    value = unit(policy.predicted)
    reached = (
        f"a {label} rate of {value}" if report.unit == "fraction" else f"{value} of {label} per decision"
    )
    first = f"On real logged responses the proposed policy is estimated to reach {reached}"
    gate = policy.gate
    if gate is None or gate.value is None:
        return f"{first}."
    way = "more" if gate.value >= 0 else "less"
    sure = "a clear gain" if gate.low is not None and gate.low > 0 else "not a clear gain"
    return f"{first}, {unit.difference(abs(gate.value))} {way} than the policy that made the log: {sure}."
