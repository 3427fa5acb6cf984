"""The reward model, fitted: strengths of the views chosen on held-out stories, weights by ridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.copy.calibration import Calibration, fit_calibration
from training.copy.features import features_of
from training.copy.headlines import CopyTests, Floats, Ints, Pairs, folds_of, pairs_of
from training.copy.model import VIEWS, CopyModel, layer_of
from training.copy.ridge import Within, fit_views, log_rate
from training.embed.sentiment import LayerModel, WordModel

Tell = Callable[[float, str], None]
NGRAMS = (1, 2)
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True, slots=True)
class CopySettings:
    """folds: of the cross-validation that chooses strengths and calibrates. min_documents: texts that a word
    or pair of words is in. scales: tried for each view, the standard deviation of what it adds to the
    logarithm of a click rate. layers: of the encoder that are tried, None for all."""

    folds: int = 4
    min_documents: int = 2
    scales: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {
            "layer": (0.05, 0.1, 0.2, 0.4),
            "words": (0.0, 0.05, 0.1, 0.2),
            "shape": (0.0, 0.025, 0.05, 0.1),
        }
    )
    layers: tuple[int, ...] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What the folds chose: the layer, the scale of each view, and τ², the variance that no text explains.

    tried: the loss of everything that was tried.
    """

    layer: int
    scales: Mapping[str, float]
    tau2: float
    tried: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedCopy:
    """held_out: `[n]` score of each text by a model that had not seen its story."""

    model: CopyModel
    choice: Choice
    held_out: Floats


def fit_copy(
    tests: CopyTests,
    layers: NDArray[np.float32],
    width: int,
    encoder: tuple[str, str],
    settings: CopySettings,
    tell: Tell | None = None,
) -> FittedCopy:
    """Fit on all of `tests`. layers: `[n, (L+1)·width]`; encoder: fingerprint and name of what gave them."""
    told = tell or (lambda _share, _text: None)
    fold = folds_of(tests, settings.folds, settings.seed)
    look, least = features_of(list(tests.texts)), settings.min_documents
    folds = [_Fold(tests, look, fold != number, least) for number in range(settings.folds)]
    bench = _Bench(tests, layers, width, folds)
    choice = _choose(bench, layers.shape[1] // width, settings, told)
    held_out = bench.held_out(choice)
    told(0.95, "fitting on all tests")
    known = _Prepared(tests, look, np.arange(len(tests)), least)
    words, layer, shape = known.fit(layer_of(layers, choice.layer, width), choice)
    calibration = calibrated(tests, held_out)
    model = CopyModel(words, layer, shape, choice.layer, calibration, *encoder)
    return FittedCopy(model, choice, held_out)


def _tau2(tests: CopyTests) -> float:
    """Half the variance of differences within a group beyond that of counting, by moments."""
    pairs = pairs_of(tests)
    rate, variance = log_rate(tests.clicks, tests.impressions)
    beyond = (rate[pairs.first] - rate[pairs.second]) ** 2 - variance[pairs.first] - variance[pairs.second]
    return max(float(beyond.mean()) / 2, 1e-3)


class _Prepared:
    """Texts to learn from, read once; look: `[N, F]` of all texts, of which `rows` are learned from."""

    def __init__(self, tests: CopyTests, look: Floats, rows: Ints, min_documents: int) -> None:
        texts = list(tests.texts[rows])
        self.tests, self.rows = tests.take(rows), rows
        self.vectorizer = _vectorizer(texts, min_documents)
        self.words = self.vectorizer.transform(texts)
        self.shape = _standard(look[rows])
        self.look = (look[rows] - self.shape.centre) / self.shape.scale

    def fit(self, states: NDArray[np.float32], choice: Choice) -> tuple[WordModel, LayerModel, LayerModel]:
        """The three views; states: `[N, width]` of all texts, `rows` of which are learned from."""
        layer = _standard(states[self.rows])
        views = {
            "layer": ((states[self.rows] - layer.centre) / layer.scale).astype(np.float32),
            "words": self.words,
            "shape": self.look,
        }
        rate, variance = log_rate(self.tests.clicks, self.tests.impressions)
        found = fit_views(views, choice.scales, rate, self.tests.group, choice.tau2 + variance)
        terms = tuple(str(term) for term in self.vectorizer.get_feature_names_out())
        return (
            WordModel(terms, np.asarray(self.vectorizer.idf_), found["words"], 0.0),
            replace(layer, weight=found["layer"]),
            replace(self.shape, weight=found["shape"]),
        )


class _Fold:
    """One part of the stories held out from the others."""

    def __init__(self, tests: CopyTests, look: Floats, known: NDArray[np.bool_], min_documents: int) -> None:
        self.held = np.flatnonzero(~known)
        self._known = _Prepared(tests, look, np.flatnonzero(known), min_documents)
        self._words = self._known.vectorizer.transform(list(tests.texts[self.held]))
        self._look = look[self.held]

    def scores(self, states: NDArray[np.float32], choice: Choice) -> Floats:
        """Of the texts held out."""
        words, layer, shape = self._known.fit(states, choice)
        return np.asarray(
            self._words @ words.weight + layer.logit(states[self.held]) + shape.logit(self._look)
        )


@dataclass(frozen=True)
class _Bench:
    """Scores of held-out stories for any choice."""

    tests: CopyTests
    layers: NDArray[np.float32]
    width: int
    folds: Sequence[_Fold]

    def held_out(self, choice: Choice) -> Floats:
        """`[n]`."""
        scores, states = np.zeros(len(self.tests)), layer_of(self.layers, choice.layer, self.width)
        for fold in self.folds:
            scores[fold.held] = fold.scores(states, choice)
        return scores

    def loss(self, choice: Choice) -> float:
        """Weighted squared error within groups: what the fit makes small, on stories that it did not see."""
        rate, variance = log_rate(self.tests.clicks, self.tests.impressions)
        left = Within(self.tests.group, 1 / (choice.tau2 + variance)).scaled(rate - self.held_out(choice))
        return float(np.mean(left**2))


def _choose(bench: _Bench, layers: int, settings: CopySettings, told: Tell) -> Choice:
    """First the layer, then one strength after the other, with the others as they stand."""
    numbers = settings.layers or tuple(range(layers))
    middle = {view: settings.scales[view][len(settings.scales[view]) // 2] for view in VIEWS}
    start, tried = Choice(0, middle, _tau2(bench.tests)), dict[str, float]()
    steps = len(numbers) + sum(len(settings.scales[view]) for view in VIEWS)

    def loss(name: str, choice: Choice) -> float:
        told(0.9 * len(tried) / steps, f"trying {name}")
        tried[name] = bench.loss(choice)
        return tried[name]

    layer = min(numbers, key=lambda number: loss(f"layer {number}", replace(start, layer=number)))
    chosen = replace(start, layer=layer)
    for view in VIEWS:
        options = {s: replace(chosen, scales={**chosen.scales, view: s}) for s in settings.scales[view]}
        chosen = options[min(options, key=lambda s, view=view, own=options: loss(f"{view} {s:g}", own[s]))]
    return replace(chosen, tried=tried)


def _vectorizer(texts: list[str], min_documents: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(ngram_range=NGRAMS, min_df=min_documents).fit(texts)
    except ValueError as error:
        raise ValueError(f"tests: their texts share no words ({error}); give more of one language") from None


def _standard(values: NDArray[Any]) -> LayerModel:
    """Centre and scale, so that k numbers together vary by 1; no weights yet."""
    scale = (values.std(0, dtype=np.float64) + _LEAST_SPREAD) * np.sqrt(values.shape[1])
    return LayerModel(values.mean(0, dtype=np.float64), scale, np.zeros(values.shape[1]), 0.0)


def calibrated(tests: CopyTests, scores: Floats) -> Calibration:
    """From scores of texts by models that had not seen them; every text counts alike."""
    pairs = pairs_of(tests)
    rate, variance = log_rate(tests.clicks, tests.impressions)
    return fit_calibration(
        scores[pairs.first] - scores[pairs.second],
        rate[pairs.first] - rate[pairs.second],
        variance[pairs.first] + variance[pairs.second],
        pair_weight(tests, pairs),
    )


def pair_weight(tests: CopyTests, pairs: Pairs) -> Floats:
    """`[m]` 1 over the number of pairs that each text of the pair is in."""
    size = np.bincount(tests.group)[tests.group[pairs.first]]
    return np.asarray(1.0 / (size - 1))
