"""CUDA graphs as far as a processor has them: recordings with inputs and outputs of their own, replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qiance.artifacts import effect, runner
from qiance.artifacts.runner import Program, Runner


class Replay:
    """Computes into the outputs of the recording what follows from its inputs by now."""

    def __init__(self, program: Program, inputs: tuple[torch.Tensor, ...]) -> None:
        self._program, self._inputs = program, inputs
        self.outputs = program(*inputs)

    def replay(self) -> None:
        for own, new in zip(self.outputs, self._program(*self._inputs), strict=True):
            own.copy_(new)


class Recording(Runner):
    """Records on the processor, whatever it is asked for."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self._graphs = True


def record_here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Effect models that are loaded from now on are recorded here; (users, actions) of each recording."""
    recorded: list[tuple[int, int]] = []

    def record(program: Program, inputs: tuple[torch.Tensor, ...]) -> runner._Recording:
        recorded.append((inputs[-1].shape[1], inputs[-1].shape[2]))
        own = tuple(values.clone() for values in inputs)
        graph = Replay(program, own)
        return runner._Recording(graph, own, graph.outputs)

    monkeypatch.setattr(effect, "Runner", Recording)
    monkeypatch.setattr(runner, "_record", record)
    return recorded
