"""`qiance train uplift`: what each arm of a log of one's own adds to the outcome, and for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table


def uplift(
    data: Annotated[
        Path, typer.Option("--data", help="Log with arms: CSV, JSON lines or Parquet; may be gzipped.")
    ],
    mapping: Annotated[
        Path,
        typer.Option("--mapping", "-m", help="What its columns mean (`kind: responses`); see docs/data.md."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its figures.")],
    label: Annotated[
        str | None,
        typer.Option(
            help="Outcome to move: conversion (default where mapped), click, or the column of one of them."
        ),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Arm that means doing nothing; default: the mapping's control.")
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARM=COST",
            help="What an arm costs per user, in units of the outcome: 0.02 where it pays from two more "
            "outcomes per 100 users on; repeat for several.",
        ),
    ] = None,
    outcome_value: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Minor units that one outcome is worth: the mapping's arm_cost then counts as cost."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-fitting that judges it.")] = 5,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
) -> None:
    """Learn for whom which arm makes a difference, from a log in which users got different arms.

    Writes into OUT: the model, metrics.json (mean effects, Qini by both definitions, AUUC, RATE, what
    targeting is worth beside random and response targeting, each with its interval) and curve.csv (the cost
    curve). `qiance predict` uses it. Without a logged propensity it is estimated from the features.
    """
    from qiance.cli.stages import Stages
    from qiance.cli.train import read_responses

    prices = parse_costs(cost or [])
    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        found, responses = read_responses(data, mapping, out, stage)
        if outcome_value is not None:
            prices = _priced(responses.arm_cost, outcome_value) | prices
        elif not prices and any(responses.arm_cost.values()):
            stage.note("the mapping's arm_cost is money: --outcome-value makes it count")
    with stages.stage("training") as stage:
        from training.uplift.fit import train_uplift
        from training.uplift.learner import UpliftSettings

        trained = train_uplift(
            responses,
            out,
            folds=folds,
            label=_label(found, label),
            control=control,
            cost=prices,
            settings=UpliftSettings(seed=seed),
            tell=stage.tell,
        )
    for table in _tables(trained.metrics):
        console.print(table)
    for note in _notes(trained.metrics):
        console.print(f"[yellow]{note}[/]", highlight=False)
    console.print(f"Model and figures: [bold]{out}[/]", highlight=False)


def parse_costs(given: list[str]) -> dict[str, float]:
    """ARM=COST by arm; an arm's name may hold `=` itself. typer.BadParameter for what is no amount."""
    prices = {}
    for text in given:
        arm, sign, amount = text.rpartition("=")
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not sign or not arm or not math.isfinite(value) or value < 0:
            raise typer.BadParameter(
                f"{text!r} is not ARM=COST; write for example 'Mens E-Mail=0.01'", param_hint="--cost"
            )
        prices[arm] = value
    return prices


def _priced(arm_cost: Mapping[str, int], outcome_value: float) -> dict[str, float]:
    if outcome_value <= 0:
        raise typer.BadParameter("must be above 0: what one outcome is worth", param_hint="--outcome-value")
    return {arm: amount / outcome_value for arm, amount in arm_cost.items() if amount}


def _label(mapping: Any, label: str | None) -> str | None:
    """The label of that name, or the one that is read from that column."""
    by_column = {spec.column: name for name, spec in mapping.labels.items()}
    return label if label is None or label in mapping.labels else by_column.get(label, label)


def _tables(metrics: Mapping[str, Any]) -> list[Table]:
    arms = Table(*_heads("effect over " + metrics["control"], "mean", "95 % interval"), box=None)
    ranking = Table(*_heads("finding who is moved", "", "value", "95 % interval"), box=None)
    for arm, ate in metrics["ate"].items():
        arms.add_row(arm, f"{ate['value']:+.2%}", f"{ate['low']:+.2%} to {ate['high']:+.2%}")
        qini, ranked = metrics["qini"][arm], metrics["rate"][arm]
        for name, title in (("qini_radcliffe", "Qini"), ("auuc", "AUUC")):
            ranking.add_row(arm, title, *_figures(*(qini[f"{name}{end}"] for end in ("", "_low", "_high"))))
        ranking.add_row(arm, "RATE", *_figures(*(ranked[name] for name in ("value", "low", "high"))))
    ranking.caption = "by cross-fitting"
    arms.caption = f"{metrics['label']}: {metrics['rate_of_outcome']:.2%} of {metrics['rows']:,} rows"
    budgets = Table(*_heads("treating the best", "is worth", "response", "random", "over random"), box=None)
    for budget, found in metrics["policy_value"].items():
        gain = found["gain_over_random"]
        budgets.add_row(
            f"{float(budget):.0%}",
            *(f"{found[name]['value']:.4f}" for name in ("uplift", "response", "random")),
            f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
        )
    budgets.caption = "outcome per user of all, net of cost, by cross-fitting"
    return [arms, ranking, budgets]


def _figures(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A figure and its interval; a targeted log has no Qini curve."""
    if value is None:
        return "–", "targeted log"
    interval = "too few users" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    return f"{value:.4f}", interval


def _heads(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, justify="right" if place else "left") for place, name in enumerate(names))


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    notes = [f"{name} has no value in any row and was left out" for name in metrics["left_out"]]
    overlap = metrics["propensity"]
    if overlap["source"] == "estimated":
        least = min(overlap["smallest"], key=overlap["smallest"].get)
        notes.append(
            "propensities are estimated from the features: effects hold where nothing else decided the arm; "
            f"smallest {overlap['smallest'][least]:.1%} ({least}), "
            f"{overlap['raised']:.1%} of rows raised to 1 %"
        )
    return notes
