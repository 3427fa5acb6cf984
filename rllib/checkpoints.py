"""Checkpoints of planning runs, one at a time, and what a run must agree on to go on from one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKPOINT, STATE = "checkpoint", "training.json"


def latest(out: Path) -> Path | None:
    """The checkpoint to go on from."""
    found = {int(path.name.partition("-")[2]): path for path in out.glob(f"{CHECKPOINT}-*")}
    return found[max(found)].resolve() if found else None


def save_checkpoint(found: Any, out: Path, state: Mapping[str, Any]) -> None:
    """Write the new one, name it when it is whole, then drop the old one: a stop at any point leaves one."""
    before, fresh = latest(out), out / f".{CHECKPOINT}"
    shutil.rmtree(fresh, ignore_errors=True)
    found.save_to_path(str(fresh.resolve()))
    (fresh / STATE).write_text(json.dumps(state), encoding="utf-8")
    fresh.rename(out / f"{CHECKPOINT}-{len(state['history'])}")
    if before is not None:
        shutil.rmtree(before)


def history_of(out: Path, said: Mapping[str, Any], resume: bool) -> list[float]:
    """What the iterations that are done came to: empty for a new run.

    said: parts of what the run is made with, each a mapping, that must be those of the checkpoint.
    """
    checkpoint = latest(out)
    if not resume:
        if checkpoint is not None:
            raise ValueError(f"out: {out} holds a checkpoint; resume it, or name another folder")
        return []
    if checkpoint is None:
        raise ValueError(f"out: {out} holds no checkpoint to resume; leave resume off for a new run")
    found = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    for part in said:
        now, before = json.loads(json.dumps(said[part])), found.get(part, {})
        differing = [name for name in now if now[name] != before.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{part}.{name}: the checkpoint in {out} was made with {before.get(name)!r}, now it is "
                f"{now[name]!r}; use the same, or start in another folder"
            )
    return [float(x) for x in found["history"]]
