"""From what a run found to the document that is shown."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil

from qiance import __version__
from qiance.cli.loop.learn import Learned
from qiance.cli.loop.live import LiveLog
from qiance.cli.loop.measure import Measured
from qiance.cli.loop.optimise import Optimised, budget_minor
from qiance.cli.loop.prepare import Prepared
from qiance.cli.loop.world import World
from qiance.cli.stages import Stages
from qiance.domain import Action, Effect, Strategy
from qiance.evaluate.ope_result import Estimate
from qiance.ledger import Ledger
from qiance.market.market import ActionTable
from qiance.report import RunReport
from qiance.settings import Settings
from qiance.strategy.slots import bind, facts_for

TERMS = {
    "complete-journey": "The Complete Journey, provided by 84.51° for research and educational purposes",
}


@dataclass(frozen=True)
class Finished:
    """Everything the steps of the loop handed on."""

    prepared: Prepared
    world: World
    first: Learned
    redemption: Sequence[Any]
    second: Learned
    strategies: Sequence[Strategy]
    optimised: Optimised
    live: LiveLog
    measured: Measured
    brief_message: str
    actions: ActionTable


def loop_report(f: Finished, settings: Settings, stages: Stages, ledger: Ledger) -> RunReport:
    """The document of a run of the whole loop."""
    report = f.prepared.report
    document: dict[str, Any] = {
        **frame("loop", "The loop on Complete Journey", settings, stages),
        "simulated": True,
        "notes": _notes(f),
        "data": {
            "dataset": report.dataset,
            "source": report.source,
            "fingerprint": report.fingerprint,
            "terms": TERMS.get(settings.data.source, ""),
            "tables": [table.to_dict() for table in report.tables],
            "left_out": dict(report.left_out),
        },
        "models": {
            "effect": model_report(f.first, "Effect model, first round"),
            "round2": model_report(f.second, "Effect model, second round"),
            "redemption": {"scores": [plain(s) for s in f.redemption]},
        },
        "strategies": [_strategy(s, f, settings) for s in f.strategies],
        "policy": _policy(f, settings, ledger),
        "rl": plain(f.optimised.rl) if "returns" in f.optimised.rl else None,
        "offline": None,
    }
    return RunReport.model_validate(document)


def frame(kind: str, title: str, settings: Settings, stages: Stages) -> dict[str, Any]:
    """The part of the document that every kind of run has."""
    return {
        "kind": kind,
        "title": title,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "seed": settings.seed,
        "currency": settings.currency,
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "python": platform.python_version(),
            "ray": version("ray"),
            "torch": version("torch"),
        },
        "stages": stages.seconds(),
    }


def plain(value: Any) -> Any:
    """Dataclasses, arrays and NaN as JSON can hold them."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def model_report(learned: Learned, name: str) -> dict[str, Any]:
    """One trained model with its baselines."""
    test = learned.promotion
    return {
        "version": learned.version,
        "name": name,
        "rows": learned.rows,
        "parents": list(learned.parents),
        "seconds": learned.metrics.get("seconds"),
        "metrics": plain(dict(learned.metrics)),
        "scores": {label: [plain(s) for s in found] for label, found in learned.scores.items()},
        "segments": [plain(one) for one in learned.segments],
        "promotion": None if test is None else {"passed": test.passed, "reason": test.reason},
    }


def effect_report(effect: Effect | None) -> dict[str, Any] | None:
    """Effect as nested numbers."""
    return None if effect is None else plain(effect)


def _strategy(strategy: Strategy, f: Finished, settings: Settings) -> dict[str, Any]:
    return {
        "strategy_id": strategy.strategy_id,
        "kind": strategy.kind.value,
        "title": strategy.title,
        "state": strategy.state.value,
        "audience": {"name": strategy.audience.name, "rule": strategy.audience.describe()},
        "reach": strategy.reach,
        "actions": [_action(a, strategy, f, settings) for a in strategy.actions],
        "effect": effect_report(strategy.effect),
        "measured": _measured(strategy, f),
        "reasons": list(strategy.reasons),
        "provenance": dict(strategy.provenance),
    }


def _action(action: Action, strategy: Strategy, f: Finished, settings: Settings) -> dict[str, Any]:
    item = f.world.snapshot.catalogue[action.item_id] if action.item_id else None
    creative = action.creative
    if creative is not None and item is not None:
        creative = bind(
            creative, facts_for(action, item, strategy.ends, settings.currency), creative.language
        )
    return {
        "action_id": action.action_id,
        "item_id": action.item_id,
        "product": item.title if item else None,
        "offer": f"{action.offer.depth:.0%} off" if action.offer.depth else "no offer",
        "channel": action.channel.value,
        "creative": None
        if creative is None
        else {
            "headline": creative.headline,
            "body": creative.body,
            "call_to_action": creative.call_to_action,
            "language": creative.language,
            "source": creative.source,
        },
    }


def _measured(strategy: Strategy, f: Finished) -> dict[str, Any] | None:
    ids = {a.action_id for a in strategy.actions}
    mine = np.array([a in ids for a in f.measured.rows["action_id"].to_pylist()])
    if not mine.any():
        return None
    conversion = f.measured.rows["conversion"].to_numpy()[mine]
    return {
        "decisions": int(mine.sum()),
        "conversion": float(conversion.mean()),
        "margin": float(f.measured.reward[mine].mean()),
    }


def _policy(f: Finished, settings: Settings, ledger: Ledger) -> dict[str, Any]:
    o, m, live = f.optimised, f.measured, f.live
    cap = budget_minor(settings)
    return {
        "predicted": o.predicted.value,
        "predicted_low": o.predicted.low,
        "predicted_high": o.predicted.high,
        "estimator": o.predicted.estimator,
        "measured": m.policy.value,
        "low": m.policy.low,
        "high": m.policy.high,
        "contains": m.contains,
        "holdout": m.holdout.value,
        "holdout_low": m.holdout.low,
        "holdout_high": m.holdout.high,
        "uplift": {"value": m.uplift.effect, "low": m.uplift.low, "high": m.uplift.high},
        "sample_ratio_p": m.ratio.p_value,
        "oracle_share": m.policy_value / m.oracle_value if m.oracle_value > 0 else None,
        "oracle_value": m.oracle_value,
        "policy_value": m.policy_value,
        "overspend": max(0.0, (m.budget.spent - cap) / cap) if cap else 0.0,
        "budget": {
            "cap": cap,
            "spent": m.budget.spent,
            "reserved": m.budget.reserved,
            "unconstrained": o.unconstrained_cost,
        },
        "shadow_prices": _shadow_prices(ledger),
        "decisions": len(live.user),
        "outcomes_sent": live.events,
        "outcomes_accepted": live.accepted,
        "retries": live.retries,
        "latency_ms": {
            "p50": float(np.percentile(live.latency_ms, 50)),
            "p99": float(np.percentile(live.latency_ms, 99)),
        },
        "decisions_per_s": len(live.user) / live.seconds,
        "degraded": dict(live.degraded),
        "gate": {
            "passed": o.gate.passed,
            "reason": o.gate.reason,
            **_improvement(o.gate.improvement),
        },
        "comparisons": plain(m.comparisons),
    }


def _improvement(found: Estimate | None) -> dict[str, float | None]:
    return {name: getattr(found, name, None) for name in ("value", "low", "high")}


def _shadow_prices(ledger: Ledger) -> list[dict[str, Any]]:
    """The prices that pacing set, day by day."""
    lines = [
        line.detail["shadow_price"]
        for line in reversed(ledger.audit_lines(10_000))
        if line.event == "versions.changed" and line.by == "pacer" and "shadow_price" in line.detail
    ]
    return [{"day": day, "value": value} for day, value in enumerate(lines)]


def _notes(f: Finished) -> list[str]:
    notes = [] if ";" not in f.brief_message else [f.brief_message.split("; ", 1)[1]]
    if not f.optimised.gate.passed:
        notes.append(f"The gate did not open, so live users got control: {f.optimised.gate.reason}")
    if not f.measured.contains:
        notes.append("The off-policy interval made before the launch does not contain the measured value.")
    if not f.measured.ratio.ok:
        notes.append(
            "The split between policy and holdout is not the planned one: do not trust the comparison."
        )
    notes.extend(f"{count} answers lacked {part}" for part, count in f.live.degraded.items())
    return notes
