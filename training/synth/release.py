"""A cohort for sharing: fitted, drawn, judged, and written unless it tells who it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qiance.artifacts.json_file import write_json
from qiance.ledger.records import Override
from training.propose.fit import Tell
from training.synth.fidelity import fidelity
from training.synth.generate import Method, fit_generator
from training.synth.leakage import SHADOWS, Fit, Leakage, leakage
from training.synth.table import LEAST_USERS

USERS, REPORT, PAGE = "users.parquet", "fidelity.json", "fidelity.md"
LEAST_DRAWN = 50


@dataclass(frozen=True, slots=True)
class SynthSettings:
    """held_out: share of users that the generator never sees; they judge it. max_leakage: highest AUC of a
    membership attack with which a cohort is written. target: see `fidelity`."""

    method: Method = "copula"
    held_out: float = 0.3
    max_leakage: float = 0.55
    target: str | None = None
    shadows: int = SHADOWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.held_out <= 0.9:
            raise ValueError(
                f"held_out: {self.held_out:g} is outside [0.1, 0.9]; too few would judge or learn"
            )
        if not 0.5 <= self.max_leakage <= 1.0:
            raise ValueError(f"max_leakage: {self.max_leakage:g} is outside [0.5, 1]; 0.5 is a coin")


@dataclass(frozen=True)
class Cohort:
    """users: the synthetic ones. refused: why they may not be shared, empty if they may."""

    users: pd.DataFrame
    leakage: Leakage
    report: Mapping[str, Any]
    refused: str


def make_cohort(
    users: pd.DataFrame,
    count: int,
    settings: SynthSettings | None = None,
    fit: Fit | None = None,
    tell: Tell | None = None,
) -> Cohort:
    """Learn from a part of `users`, draw `count`, and judge them by the rest; `fit` replaces the method's."""
    chosen, told = settings or SynthSettings(), tell or (lambda _share, _text: None)
    if len(users) < LEAST_USERS:
        raise ValueError(f"users: {len(users)} are too few to tell leakage; give at least {LEAST_USERS}")
    if count < LEAST_DRAWN:
        raise ValueError(f"n: {count} synthetic users are too few to judge; ask for at least {LEAST_DRAWN}")
    fitting: Fit = fit or (lambda some, seed: fit_generator(some, chosen.method, seed))
    member = np.zeros(len(users), dtype=bool)
    order = np.random.default_rng([chosen.seed, 4]).permutation(len(users))
    member[order[round(chosen.held_out * len(users)) :]] = True
    learned, held = users[member].reset_index(drop=True), users[~member].reset_index(drop=True)
    told(0.0, "fitting the generator")
    synthetic = fitting(learned, chosen.seed).sample(count, chosen.seed)
    told(0.15, "fidelity")
    faithful = fidelity(learned, held, synthetic, chosen.target, chosen.seed)
    leaked = leakage(
        users,
        member,
        synthetic,
        fitting,
        chosen.seed,
        chosen.shadows,
        lambda share, text: told(0.2 + 0.8 * share, text),
    )
    worst = leaked.attacks[leaked.worst]
    refused = ""
    if worst.value > chosen.max_leakage:
        refused = (
            f"the attack {leaked.worst!r} tells members from others with AUC {worst.value:.3f} "
            f"[{worst.low:.3f}, {worst.high:.3f}], above {chosen.max_leakage:g}"
        )
    report = {
        "users": {"learned_from": int(member.sum()), "held_out": int((~member).sum()), "synthetic": count},
        "method": chosen.method,
        "seed": chosen.seed,
        "fidelity": faithful,
        "leakage": leaked.plain() | {"max": chosen.max_leakage},
        "refused": refused,
    }
    told(1.0, "judged")
    return Cohort(synthetic, leaked, report, refused)


def write_cohort(cohort: Cohort, out: Path, override: Override | None = None) -> bool:
    """Write the report into `out`, and the users too unless they are refused; whether they were.

    override: who has them written all the same, and why; both go into the report. Users of an earlier call
    are taken away first, so that no report stands beside a cohort that it is not about.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / USERS).unlink(missing_ok=True)
    overridden = (
        None if override is None or not cohort.refused else {"by": override.by, "reason": override.reason}
    )
    written = not cohort.refused or overridden is not None
    report = {**cohort.report, "override": overridden, "written": written}
    write_json(out / REPORT, report, indent=2)
    (out / PAGE).write_text(page(report), encoding="utf-8")
    if written:
        staged = out / f".{USERS}"
        cohort.users.to_parquet(staged, index=False)
        os.replace(staged, out / USERS)
    return written


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    sizes, found, leaked = report["users"], report["fidelity"], report["leakage"]
    lines = [
        "# Synthetic cohort",
        "",
        f"{sizes['synthetic']:,} users drawn from a generator ({report['method']}) that learned from "
        f"{sizes['learned_from']:,} users; {sizes['held_out']:,} others judged it.",
        "",
        "## Leakage",
        "",
        "| attack | AUC | 95 % interval | allowed |\n| --- | --- | --- | --- |",
        *(
            f"| {name} | {own['value']:.3f} | {own['low']:.3f} to {own['high']:.3f} | {leaked['max']:g} |"
            for name, own in leaked["attacks"].items()
        ),
        "",
        _verdict(report),
        "",
        "## Fidelity",
        "",
        "Against the users that judged; beside it the users that the generator learned from.",
        "",
        "| figure | synthetic | real |\n| --- | --- | --- |",
        *_figures(found),
        "",
        "| column | distance, synthetic | real |\n| --- | --- | --- |",
        *(
            f"| {name} | {own['synthetic']:.3f} | {own['real']:.3f} |"
            for name, own in found["columns"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _verdict(report: Mapping[str, Any]) -> str:
    if not report["refused"]:
        return "No attack does better than is allowed."
    override = report["override"]
    if override is None:
        return f"Not written: {report['refused']}."
    return f"Written by order of {override['by']} ({override['reason']}), although {report['refused']}."


def _figures(found: Mapping[str, Any]) -> list[str]:
    utility = found["utility"]
    rows = {
        "mean distance of a column": found["mean_distance"],
        "rank correlations, mean difference": {k: v["mean"] for k, v in found["correlation"].items()},
        "rank correlations, largest difference": {k: v["largest"] for k, v in found["correlation"].items()},
        "two-sample test, AUC (0.5: cannot be told)": found["two_sample"],
        f"AUC of a model of {utility['target']}, trained on": {
            side: utility[f"trained_on_{side}"] for side in ("synthetic", "real")
        },
    }
    shown = {name: [row[side] for side in ("synthetic", "real")] for name, row in rows.items()}
    return [
        f"| {name} | {' | '.join('none' if value is None else f'{value:.3f}' for value in row)} |"
        for name, row in shown.items()
    ]
