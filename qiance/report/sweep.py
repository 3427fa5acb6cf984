"""The page of a sweep: best so far, learning curves, and the value over each parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qiance.report import charts, figures
from qiance.report.curves import Curve, Spot, curves, spots
from qiance.report.page import page_environment, replace_text

_TONES = {"done": "forecast", "stopped": "holdout", "failed": "holdout", "running": "holdout"}


@dataclass(frozen=True, slots=True)
class SweepTrialView:
    """A trial. value: its best; ended: seconds since the epoch; curve: (step, value)."""

    name: str
    model: str
    state: str
    value: float | None
    seconds: float
    ended: float | None
    parameters: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    best: bool = False
    default: bool = False


@dataclass(frozen=True)
class SweepPage:
    """What the page shows. label: what is predicted, or played; judged_on: in a few words; held_out: what one
    of those is (rows, episodes); anew: the command that judges the best once more. units: what a step is, by
    model; logarithmic: parameters (`model.name`) on such an axis; importance: by model and parameter."""

    title: str
    metric: str
    larger_is_better: bool
    label: str
    judged_on: str
    held_out: str
    anew: str
    units: Mapping[str, str]
    logarithmic: Set[str]
    trials: tuple[SweepTrialView, ...]
    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def write_sweep_page(path: Path, page: SweepPage) -> None:
    """Write the page; it needs no script, network or outside file."""
    template = page_environment("USD").get_template("sweep.html.j2")
    models = list(dict.fromkeys(trial.model for trial in page.trials))
    shown = [_model(page, model) for model in models]
    replace_text(path, template.render(page=page, models=shown, text=parameter_text))


def parameter_text(value: Any) -> str:
    """A parameter's value as people read it."""
    if isinstance(value, float):
        return figures.number(value, 3)
    return json.dumps(value) if isinstance(value, list) else str(value)


def _model(page: SweepPage, model: str) -> dict[str, Any]:
    trials = [trial for trial in page.trials if trial.model == model]
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    order = sorted(trials, key=lambda trial: _rank(page, trial))
    return {
        "name": model,
        "trials": order,
        "parameters": names,
        "best": next((trial for trial in trials if trial.best), None),
        "default": next((trial for trial in trials if trial.default), None),
        "so_far": _so_far(page, trials),
        "learning": _learning(page, model, trials),
        "scatters": [(name, _scatter(page, model, name, trials)) for name in names],
        "importance": _importance(page.importance.get(model, {})),
    }


def _rank(page: SweepPage, trial: SweepTrialView) -> tuple[bool, float]:
    value = trial.value or 0.0
    return (trial.value is None, -value if page.larger_is_better else value)


def _so_far(page: SweepPage, trials: Sequence[SweepTrialView]) -> Markup | None:
    ended = sorted((t for t in trials if t.ended and t.value is not None), key=lambda t: t.ended or 0.0)
    better = max if page.larger_is_better else min
    points, best = list[tuple[float, float]](), None
    for place, trial in enumerate(ended, 1):
        assert trial.value is not None, "filtered above"
        if best is not None:
            points.append((float(place), best))  # the value holds until here: a stair
        best = trial.value if best is None else better(best, trial.value)
        points.append((float(place), best))
    label = f"Best {page.metric} so far, by finished trial"
    return curves([Curve(tuple(points), "measured", label)], figures.score, label, "trials")


def _learning(page: SweepPage, model: str, trials: Sequence[SweepTrialView]) -> Markup | None:
    # The best is drawn last, on top.
    lines = [
        Curve(tuple((float(step), value) for step, value in trial.curve), _tone(trial), _said(trial))
        for trial in sorted(trials, key=lambda trial: trial.best)
    ]
    return curves(lines, figures.score, f"{page.metric} by step, {model}", page.units[model])


def _scatter(page: SweepPage, model: str, name: str, trials: Sequence[SweepTrialView]) -> Markup | None:
    known = [(t.parameters[name], t.value, t) for t in trials if t.value is not None and name in t.parameters]
    label = f"{page.metric} over {name}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value, *_ in known):
        points = [Spot(float(x), y, _tone(trial), _said(trial)) for x, y, trial in known]
        wide = f"{model}.{name}" in page.logarithmic
        return spots(points, figures.score, figures.number, label, logarithmic=wide)
    names = sorted({parameter_text(value) for value, *_ in known})
    points = [
        Spot(float(names.index(parameter_text(x))), y, _tone(trial), _said(trial)) for x, y, trial in known
    ]
    return spots(points, figures.score, figures.number, label, names=names)


def _tone(trial: SweepTrialView) -> str:
    return "measured" if trial.best else _TONES[trial.state]


def _said(trial: SweepTrialView) -> str:
    return f"{trial.name}: {figures.score(trial.value)}, {trial.state}"


def _importance(shares: Mapping[str, float]) -> charts.Chart | None:
    bars = [charts.Bar(name, share, tone="forecast") for name, share in shares.items()]
    return charts.lengths(bars, figures.percent) if bars else None
