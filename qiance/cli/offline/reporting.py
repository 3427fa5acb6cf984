"""From what an offline run found to the document that is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qiance.cli.loop.reporting import frame, plain
from qiance.cli.offline.estimate import CONFIDENCE, Evaluated
from qiance.cli.offline.learn import Learned
from qiance.cli.offline.policies import EVERYBODY, LOGGED
from qiance.cli.offline.propose import EFFECT_CONFIDENCE, Proposal
from qiance.cli.offline.sources import Source
from qiance.cli.offline.study import Study
from qiance.cli.stages import Stages
from qiance.domain import Interval
from qiance.evaluate.ope import Estimate
from qiance.report import RunReport
from qiance.report.figures import Unit
from qiance.settings import Settings

_FEW_EVENTS = 200
_FIGURES = ("effective_sample_size", "max_weight", "mean_weight", "unsupported_mass")


@dataclass(frozen=True)
class Finished:
    """Everything the steps of the loop handed on; chosen: the proposed policy."""

    study: Study
    learned: Learned
    proposals: Sequence[Proposal]
    evaluated: Sequence[Evaluated]
    chosen: Evaluated
    source: Source

    @property
    def judged(self) -> tuple[str, float, float]:
        """A metric on unseen rows, where less is better: of the effect model and of the population mean."""
        by_name = {score.name: score for score in self.learned.scores}
        ours, mean = by_name["effect model"], by_name["population mean"]
        metric = "rmse" if ours.log_loss is None else "log_loss"
        return metric, getattr(ours, metric), getattr(mean, metric)

    @property
    def is_doubtful(self) -> bool:
        """Whether the effect model fails to beat the population mean on unseen rows."""
        _, ours, mean = self.judged
        return ours >= mean


def offline_report(f: Finished, settings: Settings, stages: Stages) -> RunReport:
    """The document of an offline run."""
    responses = f.study.responses
    document: dict[str, Any] = {
        **frame("offline", f.source.title, settings, stages),
        "currency": responses.currency,
        "simulated": False,
        "notes": notes(f, settings),
        "data": {
            "dataset": responses.name,
            "source": responses.report.source,
            "fingerprint": responses.fingerprint,
            "terms": f.source.terms,
            "tables": [responses.report.to_dict()],
        },
        "models": {"effect": _model(f.learned, f.study)},
        "strategies": [_strategy(p, f) for p in f.proposals],
        "effect_confidence": EFFECT_CONFIDENCE,
        "policy": _policy(f.chosen),
        "offline": {
            "logged": {"n": len(f.study), "arms": _arms(f.study)},
            "policies": [_evaluated(found) for found in f.evaluated],
            "label": f.study.primary,
            "unit": unit_of(f.study),
            "chosen": f.chosen.name,
        },
    }
    return RunReport.model_validate(document)


def unit_of(study: Study) -> str:
    """Unit of the primary outcome."""
    return "minor" if study.primary == "sales" else "fraction"


def gain_words(found: Evaluated, study: Study) -> str:
    """The gain over the logging policy in words, or why there is none."""
    if found.gain is None:
        return found.problem
    return f"{_difference(found.gain, study)} over the {study.primary} of the logged policy"


def notes(f: Finished, settings: Settings) -> list[str]:
    """What a reader must know before believing a figure."""
    study = f.study
    found = [*f.source.notes, *study.notes]
    happened = int((study.outcome(study.primary) > 0).sum())
    if happened < _FEW_EVENTS:
        found.append(
            f"Only {happened} of {len(study):,} rows have {study.primary}: intervals are wide, a policy that "
            "differs much from the logged one rests on a handful of them, and no model can learn much."
        )
    found += _against_mean(f)
    found += _same_as(f)
    gate = f.chosen.gate
    if gate is None:
        found.append(f"The proposed policy cannot be estimated from this log: {f.chosen.problem}")
    elif not gate.passed:
        found.append(f"The gate does not open for the proposed policy: {gate.reason}.")
    found.append(
        "Every figure is for units that the model behind it was not trained on. The proposed policy was "
        "chosen without looking at its estimate; the best of many estimates flatters."
    )
    if not study.responses.randomised:
        found.append(
            "The log is not said to be randomised: everything rests on its propensities being right."
        )
    if "sales" in study.labels:
        found.append(
            f"Margin is sales less goods at {settings.data.cost_fraction:.0%} of the price "
            "(data.cost_fraction, an assumption where the log has no cost), less the contact."
        )
    return found


def _same_as(f: Finished) -> list[str]:
    """Says so where the proposed policy earns exactly what one arm for everybody does."""
    if f.chosen.gain is None:
        return []
    twins = [
        found.name
        for found in f.evaluated
        if found.name.startswith(EVERYBODY) and found.gain is not None and found.gain == f.chosen.gain
    ]
    if not twins:
        return []
    arm = twins[0].removeprefix(EVERYBODY)
    return [f"The model finds nobody for whom another arm beats {arm}: the proposed policy gives it to all."]


def _against_mean(f: Finished) -> list[str]:
    if not f.is_doubtful:
        return []
    metric, ours, mean = f.judged
    return [
        f"On unseen rows the effect model does not beat the population mean ({metric.replace('_', ' ')} "
        f"{ours:.5g} against {mean:.5g}): the differences that it predicts between customers may be noise."
    ]


def _model(learned: Learned, study: Study) -> dict[str, Any]:
    metrics = dict(learned.trained.metrics)
    return {
        "version": learned.models[0].version,
        "name": "Effect model of the first half, judged on the second",
        "rows": int(study.first.sum()),
        "seconds": metrics.get("seconds"),
        "metrics": plain(metrics),
        "scores": {study.primary: [plain(score) for score in learned.scores]},
        "segments": [plain(one) for one in learned.trained.segments],
    }


def _strategy(p: Proposal, f: Finished) -> dict[str, Any]:
    rule = "rule by a shallow tree on predicted uplift" if p.audience.conditions else "everybody"
    return {
        "strategy_id": f"{p.kind.value}-{p.arm}",
        "kind": p.kind.value,
        "title": p.title,
        "state": "draft",
        "audience": {"name": p.audience.name, "rule": p.audience.describe()},
        "reach": p.reach,
        "actions": [{"action_id": p.arm, "product": p.name, "channel": f.source.channel}],
        "effect": plain(p.effect),
        "measured": None,
        "reasons": _reasons(p, f),
        "provenance": {"action": "an arm of the log", "audience": rule},
    }


def _reasons(p: Proposal, f: Finished) -> list[str]:
    study = f.study
    over = study.arms[0] if study.has_control else "the logged policy"
    unit = Unit(unit_of(study), study.responses.currency)
    said = _interval(unit, p.uplift, EFFECT_CONFIDENCE)
    doubt = " by a model that does not beat the population mean" if f.is_doubtful else ""
    found = [f"Predicted {study.primary} on unseen rows{doubt}: {said} over {over}."]
    if p.checked is None:
        found.append(f"The log cannot check it: {p.problem}")
        return found
    clear = "" if p.checked.low > 0 or p.checked.high < 0 else "; not a clear difference"
    found.append(
        f"Off-policy on {p.checked.diagnostics.rows:,} unseen rows of the audience: "
        f"{_difference(p.checked, study)} over {over}{clear}."
    )
    return found


def _difference(found: Estimate, study: Study) -> str:
    return _interval(Unit(unit_of(study), study.responses.currency), found, found.confidence)


def _interval(unit: Unit, found: Interval | Estimate, confidence: float) -> str:
    """E.g. `3.56 points [3.16 to 3.96, 95%]`."""
    low, high = unit.difference(found.low).removesuffix(" points"), unit.difference(found.high)
    return f"{unit.difference(found.value)} [{low} to {high.removesuffix(' points')}, {confidence:.0%}]"


def _policy(chosen: Evaluated) -> dict[str, Any]:
    """The proposed policy; nothing was live, so nothing was measured."""
    nothing = dict.fromkeys(("measured", "low", "high", "holdout", "oracle_share", "overspend"))
    if chosen.gain is None or chosen.gate is None:
        gate = {"passed": False, "reason": chosen.problem}
        return {**nothing, "predicted": None, "gate": gate, "confidence": CONFIDENCE}
    gain = chosen.gain
    # The same estimator for both, or the two would not add up.
    lead = next(found for found in chosen.estimates if found.estimator == gain.estimator)
    return {
        **nothing,
        "predicted": lead.value,
        "predicted_low": lead.low,
        "predicted_high": lead.high,
        "estimator": lead.estimator,
        "gate": {
            "passed": chosen.gate.passed,
            "reason": chosen.gate.reason,
            "value": gain.value,
            "low": gain.low,
            "high": gain.high,
        },
        "confidence": CONFIDENCE,
    }


def _arms(study: Study) -> list[dict[str, Any]]:
    outcomes = {label: study.outcome(label) for label in study.responses.labels}
    found = []
    for place, arm in enumerate(study.arms):
        rows = study.action == place
        rates = {label: float(values[rows].mean()) for label, values in outcomes.items()}
        found.append({"arm": arm, "n": int(np.count_nonzero(rows)), "rates": rates})
    return found


def _evaluated(found: Evaluated) -> dict[str, Any]:
    estimates = [
        {"estimator": e.estimator, "value": e.value, "low": e.low, "high": e.high} for e in found.estimates
    ]
    return {"name": found.name, "estimates": estimates, "diagnostics": plain(_diagnostics(found))}


def _diagnostics(found: Evaluated) -> dict[str, Any]:
    """One line each on the page; an estimate is [value, low, high] in the units of its outcome."""
    if found.gain is None or found.gate is None:
        return {"problem": found.problem}
    health = found.estimates[0].diagnostics
    lines: dict[str, Any] = {}
    if found.name != LOGGED:
        lines |= {"gain_over_logged": _three(found.gain), "gate": found.gate.reason}
    if found.targeting is not None:
        lines["gain_over_as_many_at_random"] = _three(found.targeting)
    if found.contacted is not None:
        lines["contacted"] = found.contacted
    lines |= {outcome: _three(other) for outcome, other in found.others.items()}
    lines |= {name: getattr(health, name) for name in _FIGURES}
    lines["warnings"] = list(health.warnings)
    return lines


def _three(found: Estimate) -> list[float | None]:
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in (found.value, found.low, found.high)]
