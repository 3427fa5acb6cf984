"""`qiance evaluate`: what a policy would have earned, from a log that another one made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qiance.evaluate.arrays import FloatArray
from qiance.evaluate.ope import (
    BanditLog,
    Estimate,
    GateResult,
    IntervalKind,
    clears_gate,
    difference,
    estimate,
)

app = typer.Typer(help="Estimate what a policy would have earned, before it is live.", no_args_is_help=True)

DEFAULT = ("auto", "sndr", "snipw", "ipw")


@app.callback()
def root() -> None:
    """Nothing is done at import."""


@dataclass(frozen=True)
class _Ask:
    """How intervals are made."""

    confidence: float
    seed: int
    interval: IntervalKind
    reward_range: tuple[float, float] | None


@dataclass(frozen=True)
class _Judged:
    """A policy by name, with its estimates and, where there is a baseline, its improvement over it."""

    policy: str
    estimates: tuple[Estimate, ...]
    improvement: Estimate | None = None
    gate: GateResult | None = None


@app.command("ope")
def ope(
    data: Annotated[
        Path, typer.Option("--data", help="Logged decisions with propensities: CSV, JSON Lines or Parquet.")
    ],
    mapping: Annotated[
        Path, typer.Option("--mapping", "-m", help="What their columns mean: a mapping with kind: responses.")
    ],
    policy: Annotated[
        list[str],
        typer.Option(
            help="Policy to evaluate, may be repeated: uniform, best-arm (chosen on the other half of the "
            "users), arm:NAME, column:NAME (a categorical feature that names the arm), or a file with one "
            "column of probabilities per arm and, unless rows are in the log's order, a column row_id."
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="The policy that is live, named as --policy: adds improvement and gate."),
    ] = None,
    reward: Annotated[
        Literal["click", "conversion", "sales"] | None,
        typer.Option(help="Label to count as the reward; default: conversion, else click, else sales."),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated: auto, ipw, clipped-ipw, snipw, dm, dr, sndr, greg, switch-dr, dros, mrdr; "
            "the improvement is by the first."
        ),
    ] = None,
    reward_model: Annotated[
        Path | None,
        typer.Option(
            help="File like that of a policy with expected rewards, from a model that has not seen the row; "
            "default: one fitted out of fold from the mapped features."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")] = 0.95,
    interval: Annotated[
        IntervalKind,
        typer.Option(
            help="Of values and of the improvement: default; bernstein holds for every sample size, anytime "
            "also while you watch."
        ),
    ] = "default",
    reward_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Least and largest possible reward, for bernstein and anytime on sales."),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="By how much the baseline must be beaten, per decision.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of folds and bootstrap.")] = 0,
    quarantine: Annotated[Path | None, typer.Option(help="Folder for rows with faults.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the value per decision of policies from a log of decisions with known propensities.

    Nothing goes live. Each estimate has an interval; the notes below the table say what the log cannot answer
    and what to do about it. With --baseline the improvement must clear --margin to pass the gate. Ends with 1
    where the gate is closed for any of the policies.
    """
    from qiance.cli.policy_source import matrix_of, policy_of, read_log
    from qiance.cli.stages import Stages
    from qiance.evaluate.ope_models import fit_reward_model

    stages = Stages(Console(stderr=True))
    names = tuple(estimator or DEFAULT)
    with stages.stage(f"reading {data.name}") as stage:
        given = read_log(data, mapping, reward, quarantine)
        report = given.responses.report
        stage.note(f"{report.rows_read:,} rows, {report.quarantined:,} in quarantine; {len(given.arms)} arms")
    with stages.stage("reward model"):
        model = (
            matrix_of(given, reward_model)
            if reward_model
            else fit_reward_model(given.log, len(given.arms), seed=seed)
        )
    ask = _Ask(confidence, seed, interval, reward_range)
    found = []
    with stages.stage("estimating") as stage:
        live = policy_of(given, baseline) if baseline else None
        for number, text in enumerate(policy):
            stage.tell(number / len(policy), text)
            probs = policy_of(given, text)
            # MRDR fits a model of its own kind unless one was brought.
            models = {n: None if n == "mrdr" and not reward_model else model for n in names}
            found.append(_judge(text, given.log, (probs, live), models, margin, ask))
    if as_json:
        typer.echo(json.dumps(_document(given.reward, baseline, found), ensure_ascii=False, allow_nan=False))
    else:
        _print(Console(), given.reward, baseline, found)
    if any(one.gate is not None and not one.gate.passed for one in found):
        raise typer.Exit(1)


def _judge(
    policy: str,
    log: BanditLog,
    probs: tuple[FloatArray, FloatArray | None],
    models: dict[str, FloatArray | None],
    margin: float,
    ask: _Ask,
) -> _Judged:
    """Estimates by the estimators named in `models`; the improvement by the first of them."""
    chosen, live = probs
    numbers, how = (ask.confidence, ask.seed), ask.interval
    estimates = tuple(
        estimate(log, chosen, model, name, *numbers, interval=how, reward_range=ask.reward_range)
        for name, model in models.items()
    )
    if live is None:
        return _Judged(policy, estimates)
    name, model = next(iter(models.items()))
    gain = difference(log, chosen, live, model, name, *numbers, interval=how, reward_range=ask.reward_range)
    return _Judged(policy, estimates, gain, clears_gate(gain, margin))


def _document(reward: str, baseline: str | None, found: list[_Judged]) -> dict[str, Any]:
    policies = [
        {
            "policy": one.policy,
            "estimates": [_plain(asdict(e)) for e in one.estimates],
            "improvement": None if one.improvement is None else _plain(asdict(one.improvement)),
            "gate": None if one.gate is None else {"passed": one.gate.passed, "reason": one.gate.reason},
        }
        for one in found
    ]
    return {"reward": reward, "baseline": baseline, "policies": policies}


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite: null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(console: Console, reward: str, baseline: str | None, found: list[_Judged]) -> None:
    confidence = found[0].estimates[0].confidence
    table = Table(title=f"{reward} per decision, {confidence:.0%} intervals", title_justify="left")
    for name in ("policy", "estimator", "value", "low", "high"):
        table.add_column(name, justify="right" if name in ("value", "low", "high") else "left")
    for one in found:
        for number, e in enumerate(one.estimates):
            table.add_row("" if number else escape(one.policy), _estimator(e), *_numbers(e))
        if one.improvement is not None:
            label = f"improvement over {escape(baseline or '')}, {_estimator(one.improvement)}"
            table.add_row("", label, *_numbers(one.improvement))
        table.add_section()
    console.print(table)
    console.print(_health(found))
    for one in found:
        for text in dict.fromkeys(w for e in one.estimates for w in e.diagnostics.warnings):
            console.print(f"[yellow]{escape(one.policy)}:[/] {escape(text)}", highlight=False)
        if one.gate is not None:
            verdict = "[green]gate passed[/]" if one.gate.passed else "[red]gate not passed[/]"
            console.print(f"{escape(one.policy)}: {verdict}: {escape(one.gate.reason)}", highlight=False)


def _estimator(found: Estimate) -> str:
    if not found.shares:
        return found.estimator if found.parameter is None else f"{found.estimator} ({found.parameter:.3g})"
    return "auto: " + ", ".join(f"{share:.0%} {name}" for name, share in found.shares)


def _numbers(found: Estimate) -> tuple[str, str, str]:
    return f"{found.value:.6g}", f"{found.low:.6g}", f"{found.high:.6g}"


def _health(found: list[_Judged]) -> Table:
    table = Table(title="What the log holds about each policy", title_justify="left")
    table.add_column("policy")
    for name in ("effective rows", "of", "overlap", "mean weight", "largest", "never logged"):
        table.add_column(name, justify="right")
    for one in found:
        health = one.estimates[0].diagnostics
        table.add_row(
            escape(one.policy),
            f"{health.effective_sample_size:,.0f}",
            f"{health.units:,}",
            f"{health.overlap:.1%}",
            f"{health.mean_weight:.3f} [{health.mean_weight_low:.3f}, {health.mean_weight_high:.3f}]",
            f"{health.max_weight:.3g}",
            f"{health.unsupported_mass:.1%}",
        )
    return table
