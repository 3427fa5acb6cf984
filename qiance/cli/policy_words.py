"""Evaluations of policies as tables for people and as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from qiance.launch import Evaluation, ShadowDay


def plain_evaluation(found: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON; null where a number is not finite."""
    document = asdict(found)
    return {name: _finite(part) for name, part in document.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluation_table(found: Evaluation) -> Iterator[Table | str]:
    """Tables and sentences, in the order in which they are printed."""
    verdict = found.verdict
    table = Table(
        title=f"{verdict.policy} against {verdict.live}: margin per decision, minor units",
        title_justify="left",
    )
    for name in ("campaign", "decisions", "improvement", "low", "high", "margin", "gate"):
        table.add_column(name, justify="left" if name in ("campaign", "gate") else "right")
    for one in verdict.campaigns:
        gain = one.improvement
        numbers = ("–",) * 3 if gain is None else tuple(f"{x:.3f}" for x in (gain.value, gain.low, gain.high))
        told = "[green]open[/]" if one.passed else "[red]closed[/]"
        table.add_row(escape(one.campaign), f"{one.decisions:,}", *numbers, f"{one.margin:g}", told)
    yield table
    yield from _sentences(found)
    word = "[green]the gate is open[/]" if verdict.passed else "[red]the gate is closed[/]"
    yield f"{word}: {escape(verdict.reason)}"


def _sentences(found: Evaluation) -> Iterator[str]:
    if found.value is not None and found.live_value is not None and found.improvement is not None:
        gain = found.improvement
        yield (
            f"{found.decisions:,} decisions of {found.users:,} users: {found.value:.2f} estimated, the live "
            f"policy {found.live_value:.2f}"
        )
        yield (
            f"improvement {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}] at {gain.confidence:.0%} by "
            f"{gain.estimator}"
        )
        yield f"predicted use of the budgets: {found.spend:.2f}, the live policy {found.live_spend:.2f}"
        for text in gain.diagnostics.warnings:
            yield f"[yellow]note:[/] {escape(text)}"
    for reason, count in found.left_out.items():
        yield f"left out: {count:,} decisions: {escape(reason)}"
    for text in found.notes:
        yield f"[yellow]note:[/] {escape(text)}"


def shadow_table(days: Sequence[ShadowDay]) -> Table | str:
    """One line per day."""
    if not days:
        return "too few decisions, or none with an outcome, to show a development"
    table = Table(
        title="In shadow: improvement per decision, minor units; the interval holds on all days at once",
        title_justify="left",
    )
    for name in ("day", "decisions", "improvement", "low", "high", "would open"):
        table.add_column(name, justify="left" if name in ("day", "would open") else "right")
    for day in days:
        numbers = (f"{x:.3f}" for x in (day.value, day.low, day.high))
        table.add_row(f"{day.day}", f"{day.decisions:,}", *numbers, "[green]yes[/]" if day.opens else "no")
    return table
