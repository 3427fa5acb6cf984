"""The peer: Open Bandit Pipeline in its own environment, asked through a pipe while our side works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.deciding.environments import pins
from benchmarks.harness import PeerEnvironment, peer_environment
from benchmarks.opeval.problem import Floats, Sample

# OBP 0.4.1 imports torch for its tensor methods; the pinned build is the small one.
REQUIREMENTS = ("obp==0.4.1", "numpy<2", "pandas<2", "scikit-learn<1.4")


def environment() -> PeerEnvironment:
    """OBP's environment, made once."""
    return peer_environment("ope", [*REQUIREMENTS, *pins(("torch",))])


class Obp:
    """A running OBP; `ask` hands a log over, `answer` waits for what it says."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._file = folder / "log.npz"
        script = Path(__file__).with_name("obp_peer.py")
        self._process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self._read()

    def __enter__(self) -> Obp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def ask(self, sample: Sample, models: dict[str, Floats]) -> None:
        """Hand over a log with its policy and reward models."""
        arrays: dict[str, Any] = {f"model_{form}": model for form, model in models.items()}
        np.savez(
            self._file,
            action=sample.action,
            reward=sample.reward,
            propensity=sample.propensity,
            policy=sample.policy,
            **arrays,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"file": str(self._file)}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """{form: {"values", "interval"}, "mrdr": value} of the log handed over last."""
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"OBP ended with {self._process.wait()}; see its messages above")
        found: dict[str, Any] = json.loads(line)
        return found
