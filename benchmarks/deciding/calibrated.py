"""What calibration costs a decision: the scorer with it and without it, in turns.

`python -m benchmarks.deciding.calibrated [--smoke | --quick]` prints the median CPU time of a pass of both
and their ratio, by users and actions. The networks are the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import log, parse
from benchmarks.scorer_case import CALIBRATION, Case, users, write_model
from qiance.artifacts import EffectModel

SIZES = ((1, 20), (1, 200), (8, 200), (32, 200))
ITEMS = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse(argv, "The scorer of a decision with calibration and without.")
    passes = args.pick(smoke=20, quick=200, full=1_000)
    with tempfile.TemporaryDirectory() as folder:
        models = [
            EffectModel.load(write_model(Path(folder), calibration=found)) for found in (None, CALIBRATION)
        ]
        log("users x actions   plain us   calibrated us   ratio of medians")
        for count, actions in SIZES:
            plain, calibrated = _medians(models, count, actions, passes, args.seed)
            ratio = calibrated / plain
            log(f"{count:>5} x {actions:<8} {plain * 1e6:>9.0f} {calibrated * 1e6:>15.0f} {ratio:>18.3f}")


def _medians(
    models: Sequence[EffectModel], count: int, actions: int, passes: int, seed: int
) -> tuple[float, ...]:
    random = np.random.default_rng(seed)
    case, asked = Case.draw(ITEMS, actions, random), users(count, random)
    prepared = [case.prepared(model) for model in models]
    encoded = prepared[0][1]
    user, pair = encoded.user(asked), encoded.pair(asked)
    times = [list[float]() for _ in models]
    for number in range(passes + 5):
        for (one, _), taken in zip(prepared, times, strict=True):
            started = time.thread_time()
            one.predict(user, pair)
            if number >= 5:
                taken.append(time.thread_time() - started)
    return tuple(float(np.median(taken)) for taken in times)


if __name__ == "__main__":
    main()
