"""What words' embedding brings the effect model: `python -m benchmarks.effecting.words [--smoke | --quick]`.

Headlines of the Upworthy archive, shown at random within a test, of later stories than those learned from.
The effect model predicts clicks by the surface numbers of a creative alone, and with k components of its
vector; beside it by components alone. It learns from few texts, as a shop has, and from many. Every line has
the normalised entropy over all impressions (smaller is better; 1 is what the mean rate of the judged would
give) and the share of pairs of one test whose better headline is told, each with its difference to the
surface numbers and the 95 % interval of that, by a bootstrap over stories.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.copy import HELD_OUT, SHA256, find_data, some_tests
from benchmarks.harness import Mode, log, parse
from qiance.artifacts.effect import EffectModel
from qiance.artifacts.manifest import file_hash
from qiance.artifacts.word_vectors import load_encode
from qiance.domain import Channel, Creative
from qiance.features.projection import vector_column
from qiance.features.schema import Columns, FeatureSchema
from qiance.features.words import CREATIVE_FEATURES, TEXT_VECTOR, creative_features, creative_text
from training.copy.headlines import CopyTests, pairs_of, read_tests, split_by_story
from training.effect.fit import TrainSettings, train_effect
from training.effect.split import split_by_unit

DRAWS = 1_000  # of the bootstrap
SURFACE, COMPONENTS = "surface numbers", (2, 4, 8, 16)
ALONE = 4  # components without the surface numbers
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """n texts with their features, as the effect model reads them."""

    tests: CopyTests
    columns: Columns

    def take(self, rows: NDArray[Any]) -> Texts:
        """The rows by mask or index."""
        return Texts(self.tests.take(rows), {name: values[rows] for name, values in self.columns.items()})


@dataclass(frozen=True)
class Said:
    """Per judged text, mean over the seeds: loss `[n]` of all its impressions; per pair: told `[m]`."""

    loss: Floats
    told: Floats


def read_texts(tests: CopyTests) -> Texts:
    """Surface numbers and vectors of the headlines."""
    creatives = [Creative(Channel.DISPLAY, "en", text, "", "") for text in tests.texts]
    surface = [creative_features(creative) for creative in creatives]
    columns: dict[str, NDArray[Any]] = {n: np.array([one[n] for one in surface]) for n in CREATIVE_FEATURES}
    columns[TEXT_VECTOR] = np.empty(len(tests), dtype=object)
    columns[TEXT_VECTOR][:] = load_encode()([creative_text(creative) for creative in creatives])
    return Texts(tests, columns)


def impressions_of(texts: Texts, rows: int, rng: np.random.Generator) -> pa.Table:
    """About `rows` with a click or none, as many of each text, drawn from those that it really had."""
    tests = texts.tests
    shown = np.minimum(tests.impressions, max(rows // len(tests), 1)).astype(np.int64)
    clicks = rng.hypergeometric(
        tests.clicks.astype(np.int64), (tests.impressions - tests.clicks).astype(np.int64), shown
    )
    row = np.repeat(np.arange(len(tests)), shown)
    place = np.arange(len(row)) - np.repeat(np.cumsum(shown) - shown, shown)
    numbers = {name: pa.array(texts.columns[name][row]) for name in CREATIVE_FEATURES}
    return pa.table(
        {
            **numbers,
            TEXT_VECTOR: vector_column(texts.columns[TEXT_VECTOR][row]),
            "click": pa.array((place < clicks[row]).astype(np.int64)),
            "story": pa.array(tests.story[row]),
        }
    )


def predict(table: pa.Table, judged: Texts, surface: bool, components: int, seed: int) -> Floats:
    """`[n]` click probability of the judged texts by an effect model that learned from `table`."""
    # The constant stands in where surface numbers are left out: a schema has to have one.
    numeric = CREATIVE_FEATURES if surface else ("language_zh",)
    schema = FeatureSchema("headlines", numeric, vectors=(TEXT_VECTOR,))
    story = table["story"].to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        trained = train_effect(
            table,
            schema,
            labels=("click",),
            split=split_by_unit(story, seed),
            settings=TrainSettings(workers=0, seed=seed, text_components=components),
            out=Path(folder) / "artifacts",
            storage=Path(folder) / "training",
            data_fingerprint=f"headlines-{seed}",
            units=story,
        )
        model = EffectModel.load(trained.artifact.path, schema)
        return np.asarray(model.predict(judged.columns).click.mean(axis=1, dtype=np.float64))


def said_of(predictions: Sequence[Floats], judged: Texts) -> Said:
    """Of the mean prediction over the seeds."""
    tests = judged.tests
    p = np.clip(np.mean(predictions, axis=0), 1e-9, 1 - 1e-9)
    loss = -(tests.clicks * np.log(p) + (tests.impressions - tests.clicks) * np.log1p(-p))
    pairs = pairs_of(tests)
    ahead = np.sign(p[pairs.first] - p[pairs.second])
    return Said(loss, np.where(ahead == 0, 0.5, (ahead > 0) == pairs.won))


class Judge:
    """Figures of what was said, with paired intervals over stories."""

    def __init__(self, judged: Texts, seed: int) -> None:
        tests = judged.tests
        rate = tests.clicks.sum() / tests.impressions.sum()
        self._entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        _, story = np.unique(tests.story, return_inverse=True)
        self._story, self._count = story, int(story.max()) + 1
        self._of_pair = story[pairs_of(tests).first]
        self._shown = self._sum(tests.impressions, story)
        rng = np.random.default_rng(seed)
        self._times = rng.multinomial(self._count, np.full(self._count, 1 / self._count), size=DRAWS)

    def _sum(self, values: Floats, story: NDArray[Any]) -> Floats:
        return np.asarray(np.bincount(story, weights=values, minlength=self._count), dtype=np.float64)

    def entropy(self, loss: Floats) -> tuple[float, float, float]:
        """Normalised entropy, or a difference of two; 95 % interval."""
        return self._ratio(self._sum(loss, self._story), self._shown * self._entropy)

    def told(self, told: Floats) -> tuple[float, float, float]:
        """Share of pairs, or a difference of two; 95 % interval."""
        return self._ratio(self._sum(told, self._of_pair), self._sum(np.ones_like(told), self._of_pair))

    def _ratio(self, above: Floats, below: Floats) -> tuple[float, float, float]:
        drawn = (self._times @ above) / (self._times @ below)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(above.sum() / below.sum()), float(low), float(high)


def variants() -> dict[str, tuple[bool, int]]:
    """Name → whether the surface numbers are read, and components of the vector."""
    found = {SURFACE: (True, 0)} | {f"and {k} components": (True, k) for k in COMPONENTS}
    return found | {f"{ALONE} components alone": (False, ALONE)}


def lines_of(name: str, said: Said, base: Said, judge: Judge) -> str:
    """A line of Markdown."""
    ne, told = judge.entropy(said.loss)[0], judge.told(said.told)[0]
    if said is base:
        return f"| {name} | {ne:.4f} | – | {told:.1%} | – |"
    gap, low, high = judge.entropy(said.loss - base.loss)
    more, least, most = judge.told(said.told - base.told)
    return (
        f"| {name} | {ne:.4f} | {gap:+.4f} [{low:+.4f}, {high:+.4f}] | {told:.1%} "
        f"| {100 * more:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}] |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table per number of texts that were learned from."""
    args = parse(argv, "What the text embedding of a creative brings to the effect model.")
    path = find_data()
    if path is None or file_hash(path) != SHA256:
        raise SystemExit(
            "the Upworthy archive is not here, or is another; `python -m benchmarks.copy` has where"
        )
    tests = read_tests(path)
    if args.mode is not Mode.FULL:
        tests = some_tests(tests, args.pick(smoke=200, quick=2_000, full=None), args.seed)
    log(f"reading {len(tests):,} headlines of {tests.tests:,} tests")
    texts = read_texts(tests)
    learned, held = (texts.take(rows) for rows in split_by_story(tests, HELD_OUT, args.seed))
    judge, seeds = Judge(held, args.seed), args.pick(smoke=1, quick=2, full=5)
    rows = args.pick(smoke=4_000, quick=60_000, full=200_000)
    for size in args.pick(smoke=(30,), quick=(30, 300, 1_000), full=(15, 30, 100, 300, 1_000, 2_500)):
        some = [learned_from(learned, size, args.seed + n) for n in range(seeds)]
        tables = [
            impressions_of(few, rows, np.random.default_rng(args.seed + n)) for n, few in enumerate(some)
        ]
        said = {}
        for name, (surface, components) in variants().items():
            log(f"{size:,} tests, {name}")
            told = [predict(t, held, surface, components, args.seed + n) for n, t in enumerate(tables)]
            said[name] = said_of(told, held)
        count = int(np.mean([len(few.tests) for few in some]))
        print(f"\nlearned from {count:,} texts of {size:,} tests, judged on {len(held.tests):,}\n")
        print("| read | NE | difference | pairs told | difference, points |\n| --- | --- | --- | --- | --- |")
        lines = [lines_of(name, own, said[SURFACE], judge) for name, own in said.items()]
        print("\n".join(lines), flush=True)


def learned_from(texts: Texts, count: int, seed: int) -> Texts:
    """The texts of at most `count` tests, at random."""
    names = np.unique(texts.tests.test)
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    return texts.take(np.isin(texts.tests.test, chosen))


if __name__ == "__main__":
    main()
