"""What compiling would save on a processor: a decision's pass as it was exported, and by `torch.compile`.

`python -m benchmarks.deciding.compiled [--smoke | --quick]` prints the median CPU time of a pass of both, in
turns on one thread, by users and actions, and what compiling took. It needs a C++ compiler.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import pair_pass
from benchmarks.harness import log, parse
from benchmarks.scorer_case import Case, users, write_model
from qiance.artifacts import EffectModel
from qiance.artifacts.runner import Runner

ACTIONS, ITEMS = 500, 1_000
SIZES = (1, 8, 32)
WARM_UP = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse(argv, "A decision's pass as it was exported, and compiled.")
    passes = args.pick(smoke=10, quick=200, full=1_000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_model(Path(folder))
        log(f"users x {ACTIONS}   exported us   compiled us   ratio of medians   compiling s")
        for count in args.pick(smoke=SIZES[:1], quick=SIZES, full=SIZES):
            exported, compiled, seconds = _compare(artifact, count, passes, args.seed)
            log(
                f"{count:>5} {exported * 1e6:>17.0f} {compiled * 1e6:>13.0f} "
                f"{compiled / exported:>18.3f} {seconds:>13.1f}"
            )


@torch.inference_mode()
def _compare(artifact: Path, count: int, passes: int, seed: int) -> tuple[float, float, float]:
    """Median seconds of both, and of the first compiled pass."""
    random = np.random.default_rng(seed)
    case = Case.draw(ITEMS, ACTIONS, random)
    encoded, asked = case.grid(EffectModel.load(artifact, threads=1)).encoded, users(count, random)
    program, inputs = pair_pass(
        Runner(), artifact, encoded.num, encoded.cat, encoded.user(asked), encoded.pair(asked)
    )
    started = time.perf_counter()
    compiled: Callable[..., Any] = torch.compile(program)
    for ours, theirs in zip(program(*inputs), compiled(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    seconds = time.perf_counter() - started
    return *_medians((program, compiled), inputs, passes), seconds


def _medians(programs: tuple[Any, Any], inputs: Sequence[torch.Tensor], passes: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(passes + WARM_UP):
        for program, taken in zip(programs, times, strict=True):
            started = time.thread_time()
            program(*inputs)
            if number >= WARM_UP:
                taken.append(time.thread_time() - started)
    return float(np.median(times[0])), float(np.median(times[1]))


if __name__ == "__main__":
    main()
