"""Which headline of a test was clicked more, on tests that nothing was learned from: the Upworthy archive.

Tests of the weeks that were probably not randomised are left out; significance and winner, which are known
only afterwards, are not read. The later stories are judged, and no story is on both sides. Two headlines are
a pair where they were shown with the same image. Every pair counts, also those whose winner may be chance:
`clear_pair_accuracy` is of those with |z| > 1.96. How words are written is `benchmarks.copying.generating`'s,
and what tuning on clicks gains `benchmarks.copying.tuning`'s, after `make bench-train-copy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.copying.baselines import BOW_GRID, bow_scores, length_scores
from benchmarks.copying.generating import NO_LLAMACPP, measure_writing
from benchmarks.copying.tuning import GAINS, load_adapter, measure_gain
from benchmarks.harness import ROOT, Args, Mode, emit, log, parse
from qiance.artifacts.manifest import file_hash
from training.copy.encode import load_text_encoder
from training.copy.fit import CopySettings, FittedCopy, fit_copy
from training.copy.headlines import CopyTests, Floats, read_tests, split_by_story
from training.copy.judge import Judged, judge
from training.copy.train import layers_of

PLACES = (
    ROOT / ".bench" / "copy" / "exploratory_packages.parquet",
    ROOT.parent / "shared" / "data" / "upworthy" / "exploratory_packages.parquet",
)
SHA256 = "91d1d583e267dbd9b4bb3641eb764245e61013deea99a651bdd129376df24782"
PEERS = ("length", "bow")
RANKED = ("pair_accuracy", "pair_low", "pair_high", "vs_length", "vs_bow")
NOT_TUNED = "there is no tuned writer: run `make bench-train-copy`"
HELD_OUT = 0.3


def find_data() -> Path | None:
    """The archive's file where it is kept, None where it is not there."""
    return next((place for place in PLACES if place.exists()), None)


def some_tests(tests: CopyTests, count: int | None, seed: int) -> CopyTests:
    """At most `count` tests, at random."""
    names = np.unique(tests.test)
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    return tests.take(np.isin(tests.test, chosen))


def against(ours: Judged, theirs: Judged, seed: int) -> dict[str, float]:
    """Gain in pair accuracy over another model, with the interval of the paired difference."""
    gain = ours.right - theirs.right
    _, low, high = ours.interval(gain, seed)
    return {"gain": float(gain.mean()), "low": low, "high": high}


def measure(path: Path, args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, the baselines' own, protocol."""
    tests = some_tests(read_tests(path), args.pick(smoke=40, quick=700, full=None), args.seed)
    rows, held = split_by_story(tests, HELD_OUT, args.seed)
    fit, judged = tests.take(rows), tests.take(held)
    log(f"{fit.tests:,} tests to learn from, {judged.tests:,} later ones to judge by")
    encoder = load_text_encoder()
    layers = layers_of(tests, encoder)
    log(f"{len(tests):,} headlines embedded")
    settings = CopySettings(seed=args.seed, layers=args.pick(smoke=(4,), quick=None, full=None))
    names = (encoder.fingerprint, encoder.model)
    fitted = fit_copy(
        fit, layers[rows], encoder.width, names, settings, lambda _share, what: log(f"  {what}")
    )
    ours, by_view = judge_ours(fitted, judged, layers[held])
    figures: dict[str, Any] = {**ours.figures(args.seed), "by_view": by_view}
    beside = {}
    for name, (scores, chosen) in baselines(fit, judged, args).items():
        theirs = judge(judged, scores, fitted.model.calibration)
        figures[f"vs_{name}"] = float(ours.right.mean() / theirs.right.mean())
        figures[f"gain_{name}"] = against(ours, theirs, args.seed)
        beside[name] = {**accuracies(theirs), **chosen}
    choice = fitted.choice
    protocol = {
        "tests": [fit.tests, judged.tests],
        "headlines": [len(fit), len(judged)],
        "held_out": "the later stories; a story is tests that share a headline or an image",
        "left_out": dict(tests.dropped),
        "interval": "95 % by bootstrap draws of tests, paired between models",
        "chosen": {"layer": choice.layer, "scales": dict(choice.scales), "tau2": choice.tau2},
        "tried": dict(choice.tried),
    }
    return figures, beside, protocol


def judge_ours(fitted: FittedCopy, tests: CopyTests, layers: Any) -> tuple[Judged, dict[str, float]]:
    """The reward model on `tests`, and the pair accuracy of each of its parts alone."""
    texts, calibration = list(tests.texts), fitted.model.calibration
    parts = fitted.model.parts(texts, layers)
    alone = {name: float(judge(tests, own, calibration).right.mean()) for name, own in parts.items()}
    return judge(tests, fitted.model.score(texts, layers), calibration), alone


def baselines(fit: CopyTests, judged: CopyTests, args: Args) -> dict[str, tuple[Floats, dict[str, Any]]]:
    """Scores of the texts of `judged`, and what was chosen on `fit`."""
    log("tuning the bag of words")
    grid = BOW_GRID[:2] if args.mode is Mode.SMOKE else BOW_GRID
    return {"length": length_scores(fit, judged), "bow": bow_scores(fit, judged, grid, args.seed)}


def accuracies(judged: Judged) -> dict[str, float | None]:
    """Of all pairs, and of the clear ones."""
    clear = float(judged.right[judged.clear].mean()) if judged.clear.any() else None
    return {"pair_accuracy": float(judged.right.mean()), "clear_pair_accuracy": clear}


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Which headline is clicked more, on later tests, against length and a bag of words.")
    path = find_data()
    reason = ""
    if path is None:
        reason = f"the archive is not here; put {PLACES[0].name} into {PLACES[0].parent.relative_to(ROOT)}"
    elif file_hash(path) != SHA256:
        reason = f"{path.name} is not the published file"
    writing, adapter = measure_writing(args), load_adapter()
    missing = {"vs_llamacpp": NO_LLAMACPP, "llamacpp": NO_LLAMACPP}
    gains, how = dict[str, Any].fromkeys(GAINS), dict[str, Any]()
    if path is None or reason:
        log(reason)
        figures, beside, protocol = dict.fromkeys(RANKED), dict.fromkeys(PEERS), dict[str, Any]()
        missing |= dict.fromkeys((*RANKED, *PEERS, *GAINS), reason)
    else:
        figures, beside, protocol = measure(path, args)
        if adapter is None:
            missing |= dict.fromkeys(GAINS, NOT_TUNED)
        else:
            gains, how = measure_gain(writing, adapter, read_tests(path), args)
    emit(
        "copy",
        args,
        {**figures, **writing.figures, **gains},
        {**beside, **writing.peers, "llamacpp": None},
        {**protocol, "writing": writing.protocol, "tuning": how, "missing": missing},
    )


if __name__ == "__main__":
    main()
