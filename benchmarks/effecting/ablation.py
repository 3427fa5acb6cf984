"""What each part of the response model brings: `python -m benchmarks.effecting.ablation [--smoke | --quick]`.

Prints a table: normalised entropy on users that nobody learned from (smaller is better), mean over the seeds,
of the whole model, of its parts, and of networks with something left out or made larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.effecting.runs import split_of
from benchmarks.effecting.sets import SETS, VALUE_ONLY, load_sets
from benchmarks.harness import log, parse
from qiance.evaluate.calibration import Calibrator
from qiance.evaluate.prediction import normalised_entropy
from qiance.features.encoder import Encoder
from training.effect.network import EffectNetwork
from training.response.members import Inputs, Networks, ResponseSettings, fit_network, run_networks
from training.response.rows import ResponseRows, folds_of, held_out
from training.response.stack import Stack, fit_stack

SEED = 700  # not the benchmark's
Floats = NDArray[np.float64]


def parts_of(stack: Stack, rows: ResponseRows) -> dict[str, Floats]:
    """The model's prediction `[n]`, and that of what it is put together from."""
    scorer = stack.scorer
    plain = replace(scorer, calibrator=Calibrator())
    variants = {
        "the model": scorer,
        "the model, not calibrated": plain,
        "its networks alone, not calibrated": replace(plain, weight=1.0),
        "its trees alone, not calibrated": replace(plain, weight=0.0),
    }
    return {name: own.predict(rows.columns).mean(axis=1) for name, own in variants.items()}


def networks_of(rows: ResponseRows, judged: ResponseRows, settings: ResponseSettings) -> Floats:
    """What networks alone say, `[n]`, fitted fold by fold as in the model, not calibrated."""
    encoder = Encoder.fit(rows.schema, rows.columns, min_count=settings.network.min_count)
    inputs = Inputs.of(rows, encoder, settings)
    fold = folds_of(rows, settings.members, settings.seed)
    fitted = [
        fit_network(inputs, rows.label, train, held, settings.network, lambda _metrics: None)[0]
        for train, held in held_out(fold)
    ]
    num, cat = encoder.encode(judged.columns)
    return run_networks(Networks(fitted).eval(), num, cat).mean(axis=(1, 2), dtype=np.float64)


@contextmanager
def without_crosses() -> Iterator[None]:
    """Networks made meanwhile have no cross layer: what it would add to their inputs is nothing."""
    original: Callable[..., None] = EffectNetwork.__init__

    def made(self: EffectNetwork, *args: object) -> None:
        original(self, *args)
        for weight in self.cross.parameters():
            nn.init.zeros_(weight)
            weight.requires_grad = False

    EffectNetwork.__init__ = made  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        EffectNetwork.__init__ = original  # type: ignore[method-assign]


def variants(settings: ResponseSettings) -> dict[str, ResponseSettings]:
    """Networks with other settings, by name."""

    def own(**changes: object) -> ResponseSettings:
        return replace(settings, network=replace(settings.network, **changes))  # type: ignore[arg-type]

    return {
        "two heads": own(heads=2),
        "every category its own vector": own(min_count=1),
        "vectors of 4 numbers at most": own(embedding=4),
        "no dropout": own(dropout=0.0),
        "hidden layers of 16": own(hidden=(16,)),
        "hidden layers of 256 and 128": own(hidden=(256, 128)),
    }


def judge(rows: ResponseRows, seed: int, members: int) -> dict[str, float]:
    """NE of every variant on the users held out."""
    split = split_of(rows, seed)
    learned, judged = rows.take(~split.test), rows.take(split.test)
    settings = replace(ResponseSettings.for_rows(len(learned), seed), members=members)
    said = parts_of(fit_stack(learned, settings, lambda _share, _text: None), judged)
    with without_crosses():
        said["networks: no crosses"] = networks_of(learned, judged, settings)
    for name, other in variants(settings).items():
        said[f"networks: {name}"] = networks_of(learned, judged, other)
    return {name: normalised_entropy(judged.target, np.clip(p, 0.0, 1.0)) for name, p in said.items()}


def table_of(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Lines of Markdown: a row per variant, a column per set."""
    names = list(next(iter(found.values()))[0])
    lines = [f"| variant | {' | '.join(found)} |", f"|{' --- |' * (1 + len(found))}"]
    for name in names:
        cells = [f"{np.mean([run[name] for run in runs]):.4f}" for runs in found.values()]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse(argv, "What each part of the response model brings.")
    sets, missing = load_sets([name for name in SETS if name not in VALUE_ONLY])
    for name, reason in missing.items():
        log(f"{name} is left out: {reason}")
    if not sets:
        raise SystemExit("none of the sets is here; see python -m benchmarks.effect")
    most = args.pick(smoke=2_000, quick=20_000, full=10**9)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
    for name, rows in sets.items():
        some = rows.take(np.arange(min(most, len(rows))))
        for seed in range(args.pick(smoke=1, quick=2, full=5)):
            log(f"{name}, seed {seed}")
            found[name].append(judge(some, SEED + seed, args.pick(smoke=2, quick=3, full=5)))
    print("\n".join(table_of(found)))


if __name__ == "__main__":
    main()
