"""`qiance replay`: make a logged decision again, and say what differs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qiance.ledger import ErasedDecisionError, Ledger, LedgerUnavailableError
from qiance.settings import load_settings
from qiance.workspace import Workspace

if TYPE_CHECKING:
    from qiance.decide.replay import Replayed, Replayer

SAME, DIFFERS, ERASED = "same", "differs", "erased"
FLOAT32 = "float32"


def replay_command(
    decision_id: str, config: Path | None, workspace: Path, as_json: bool, dtype: str = FLOAT32
) -> None:
    """Replays one decision and tells it; exits with 1 if something differs or cannot be found."""
    try:
        found = replay_of(decision_id, config, workspace, dtype)
    except (ValueError, OSError, LedgerUnavailableError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(found, ensure_ascii=False, indent=1) if as_json else _told(found))
    if found["status"] == DIFFERS:
        raise typer.Exit(1)


def replay_of(decision_id: str, config: Path | None, workspace: Path, dtype: str = FLOAT32) -> dict[str, Any]:
    """What a replay found, as plain JSON; ValueError for what cannot be replayed."""
    settings, place = load_settings(config, os.environ), Workspace(workspace.resolve())
    if not place.root.is_dir():
        raise ValueError(f"workspace: {workspace} does not exist; name the folder of a run")
    ledger = Ledger.from_settings(settings, place.root)
    try:
        decision = ledger.decision(decision_id)
        if decision is None:
            raise ValueError(f"decision_id: {decision_id!r} is not a logged decision of {settings.tenant!r}")
        return _document(replayer(place, ledger, dtype).replay(decision), dtype)
    except ErasedDecisionError:
        return {"decision_id": decision_id, "status": ERASED}
    finally:
        ledger.close()


def replayer(workspace: Workspace, ledger: Ledger, dtype: str = FLOAT32) -> Replayer:
    """Replays decisions with models, item values and snapshot of `workspace`; dtype: see `open_rescorer`."""
    from qiance.decide.replay import TOLERANCES, Replayer
    from qiance.launch.scoring import open_rescorer

    if dtype not in TOLERANCES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(TOLERANCES)}")
    return Replayer(open_rescorer(workspace, ledger, dtype), TOLERANCES[dtype])


def _document(found: Replayed, dtype: str) -> dict[str, Any]:
    decision = found.decision
    document: dict[str, Any] = {
        "decision_id": decision.decision_id,
        "status": DIFFERS if found.differs else SAME,
        "differs": list(found.differs),
        "model_version": decision.model_version,
        "policy_version": decision.policy_version,
        "candidates": len(decision.candidates),
        "admissible": int(decision.mask().sum()),
        "choice": {"logged": decision.action_id, "replayed": found.action_id},
        "propensity": {"logged": decision.propensity, "replayed": found.propensity},
    }
    if found.unscored:
        return document | {"scores": {"recomputed": False, "reason": found.unscored}}
    score = float(decision.score_row()[decision.chosen])
    return document | {
        "scores": {
            "recomputed": True,
            "dtype": dtype,
            "tolerance": found.tolerance,
            "largest_difference": found.difference,
            "largest_relative_difference": found.relative,
        },
        "chosen": {"score_logged": score, "value": found.value, "cost": found.cost},
    }


def _told(found: Mapping[str, Any]) -> str:
    if found["status"] == ERASED:
        return f"{found['decision_id']}: erased"
    lines = [
        f"{found['decision_id']}: {_status(found['status'], found['differs'])}",
        f"  model {found['model_version']}, policy {found['policy_version']}, "
        f"{found['admissible']} of {found['candidates']} candidates admissible",
        *(f"  {name}: {_pair(found[name])}" for name in ("choice", "propensity")),
    ]
    scores = found["scores"]
    if not scores["recomputed"]:
        return "\n".join([*lines, f"  scores: not made again, {scores['reason']}"])
    chosen, hint = found["chosen"], list[str]()
    if _may_be_rough(found["differs"], scores):
        hint = ["  no more than bfloat16 rounds: if `predictor.dtype` was bfloat16, add --dtype bfloat16"]
    return "\n".join(
        [
            *lines,
            f"  scores: largest difference {scores['largest_difference']:.3g} minor units, "
            f"relative {scores['largest_relative_difference']:.3g} (products in {scores['dtype']}, "
            f"{scores['tolerance']:.3g} is allowed)",
            *hint,
            f"  chosen: value {chosen['value']:.4f}, cost {chosen['cost']:.4f}, "
            f"score {chosen['score_logged']:.4f}",
        ]
    )


def _may_be_rough(differs: Sequence[str], scores: Mapping[str, Any]) -> bool:
    """Whether scores differ, and by no more than they would by the other precision."""
    from qiance.decide.replay import TOLERANCES

    rough = scores["largest_relative_difference"] <= TOLERANCES["bfloat16"]
    return "scores" in differs and rough


def _status(status: str, differs: Sequence[str]) -> str:
    return status if not differs else f"{status}: {', '.join(differs)}"


def _pair(pair: Mapping[str, Any]) -> str:
    same = pair["logged"] == pair["replayed"]
    return f"{pair['logged']}" if same else f"logged {pair['logged']}, replayed {pair['replayed']}"
