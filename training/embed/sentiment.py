"""Whether a review is positive: logistic models over words and over an encoder's layers, and their blend.

The word model reads tf-idf of words and word pairs. The layer model reads the mean token state after every
layer of the frozen encoder: the middle layers hold tone that the last one, trained for topic, has lost. A
third logistic model on held-out scores of both weighs them. All three are convex, so a fit is repeatable,
and the artifact holds plain arrays only. docs/embeddings.md has the comparison that led here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.encoder_weights import Weights
from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact

KIND = "sentiment"
ARRAYS, WORDS = "arrays.safetensors", "words.json"
NGRAMS = (1, 2)
MIN_DOCUMENTS = 2
FOLDS = 4
WORD_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
LAYER_STRENGTHS = (1.0, 2.0, 4.0, 8.0)
MIN_REVIEWS, MIN_PRODUCTS = 100, 8
_ITERATIONS = 500
# Added to the spread of a layer's dimension: some dimensions never move.
_LEAST_SPREAD = 1e-4

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Score = Callable[[Ints, Ints, float], Floats]


@dataclass(frozen=True, slots=True)
class WordModel:
    """Logistic regression on tf-idf: `terms` `[V]`, their idf and weight `[V]`, and the intercept."""

    terms: tuple[str, ...]
    idf: Floats
    weight: Floats
    intercept: float
    _vectorizer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=NGRAMS, vocabulary={term: i for i, term in enumerate(self.terms)}
        )
        vectorizer.idf_ = self.idf
        object.__setattr__(self, "_vectorizer", vectorizer)

    def logit(self, texts: Sequence[str]) -> Floats:
        """`[n]`."""
        return np.asarray(self._vectorizer.transform(texts) @ self.weight + self.intercept)


@dataclass(frozen=True, slots=True)
class LayerModel:
    """Logistic regression on standardised layer means: centre, scale, weight `[k]`, and the intercept."""

    centre: Floats
    scale: Floats
    weight: Floats
    intercept: float

    def logit(self, layers: NDArray[np.float32]) -> Floats:
        """`[n]` from `[n, k]`."""
        return np.asarray(((layers - self.centre) / self.scale) @ self.weight + self.intercept)


@dataclass(frozen=True, slots=True)
class Sentiment:
    """The fitted model. blend: weight of the word logit, of the layer logit, and the intercept."""

    words: WordModel
    layers: LayerModel
    blend: tuple[float, float, float]
    encoder: str

    def probability(self, texts: Sequence[str], layers: NDArray[np.float32]) -> Floats:
        """Probability `[n]` that each review is positive; layers `[n, k]` from `Encoder.encode`."""
        word, layer, intercept = self.blend
        logit = word * self.words.logit(texts) + layer * self.layers.logit(layers) + intercept
        return sigmoid(logit)


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(-logit)) without overflow."""
    from scipy.special import expit

    return np.asarray(expit(logit), dtype=np.float64)


def fit_sentiment(
    texts: Sequence[str],
    layers: NDArray[np.float32],
    positive: NDArray[np.bool_],
    products: Sequence[str],
    encoder: str,
    tell: Callable[[float, str], None] | None = None,
) -> tuple[Sentiment, dict[str, float]]:
    """Fit on n labelled reviews; also the metrics of held-out scores.

    layers: `[n, k]`; positive: `[n]`; products: `[n]`, folds never split a product's reviews; encoder:
    fingerprint of the weights behind `layers`. Raises ValueError when there is too little to learn from.
    """
    labels = np.asarray(positive, dtype=bool)
    folds = _folds(labels, products)
    told = tell or (lambda _done, _what: None)
    words = np.array(texts, dtype=object)
    kinds: tuple[tuple[str, Score, tuple[float, ...]], ...] = (
        ("words", _word_score(words, labels), WORD_STRENGTHS),
        ("layers", _layer_score(layers, labels), LAYER_STRENGTHS),
    )
    chosen, held_out = [], []
    for step, (name, score, strengths) in enumerate(kinds):
        told(0.1 + 0.4 * step, f"choosing the strength of {name}")
        best, logits = _best(score, strengths, labels, folds)
        chosen.append(best)
        held_out.append(logits)
    blend = _blend(np.column_stack(held_out), labels)
    told(0.9, "fitting on all reviews")
    model = Sentiment(
        fit_words(texts, labels, chosen[0]), fit_layers(layers, labels, chosen[1]), blend, encoder
    )
    blended = sigmoid(blend[0] * held_out[0] + blend[1] * held_out[1] + blend[2])
    scores = {"words": sigmoid(held_out[0]), "layers": sigmoid(held_out[1]), "blend": blended}
    metrics = {f"{measure}_{n}": v for n, p in scores.items() for measure, v in quality(labels, p).items()}
    return model, metrics | {"reviews": float(len(labels)), "positive": float(labels.mean())}


def quality(labels: NDArray[np.bool_], probability: Floats) -> dict[str, float]:
    """AUC and log loss (nats per review)."""
    from sklearn.metrics import log_loss, roc_auc_score

    return {
        "auc": float(roc_auc_score(labels, probability)),
        "log_loss": float(log_loss(labels, probability, labels=[False, True])),
    }


def _folds(labels: NDArray[np.bool_], products: Sequence[str]) -> list[tuple[Ints, Ints]]:
    from sklearn.model_selection import GroupKFold

    if len(labels) < MIN_REVIEWS or len(set(products)) < MIN_PRODUCTS:
        raise ValueError(
            f"reviews: {len(labels)} labelled ones of {len(set(products))} products are too few to fit "
            f"sentiment; give at least {MIN_REVIEWS} of {MIN_PRODUCTS}, or the public set"
        )
    folds = list(GroupKFold(FOLDS).split(labels, labels, np.array(products, dtype=object)))
    for fit, held in folds:
        if len(set(labels[fit])) < 2 or len(set(labels[held])) < 2:
            raise ValueError(
                "reviews: some products have only one kind of label, so held-out quality cannot be told; "
                "give reviews of more products, positive and negative"
            )
    return folds


def _best(
    score: Score, strengths: Sequence[float], labels: NDArray[np.bool_], folds: Sequence[tuple[Ints, Ints]]
) -> tuple[float, Floats]:
    """The strength of least log loss over the folds, and its held-out logits `[n]`."""
    found: list[tuple[float, float, Floats]] = []
    for strength in strengths:
        logits = np.empty(len(labels))
        for fit, held in folds:
            logits[held] = score(fit, held, strength)
        found.append((quality(labels, sigmoid(logits))["log_loss"], strength, logits))
    _, strength, logits = min(found, key=lambda one: one[:2])
    return strength, logits


def _word_score(texts: NDArray[np.object_], labels: NDArray[np.bool_]) -> Score:
    def score(fit: Ints, held: Ints, strength: float) -> Floats:
        return fit_words(list(texts[fit]), labels[fit], strength).logit(list(texts[held]))

    return score


def _layer_score(layers: NDArray[np.float32], labels: NDArray[np.bool_]) -> Score:
    def score(fit: Ints, held: Ints, strength: float) -> Floats:
        return fit_layers(layers[fit], labels[fit], strength).logit(layers[held])

    return score


def fit_words(texts: Sequence[str], labels: NDArray[np.bool_], strength: float) -> WordModel:
    """Logistic regression on tf-idf of words and word pairs; strength: scikit-learn's C."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=NGRAMS, min_df=MIN_DOCUMENTS)
    try:
        found = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"reviews: share no words ({error}); give more of them in one language") from None
    model = _logistic(found, labels, strength)
    terms = tuple(str(term) for term in vectorizer.get_feature_names_out())
    return WordModel(terms, np.asarray(vectorizer.idf_), model.coef_[0], float(model.intercept_[0]))


def fit_layers(layers: NDArray[np.float32], labels: NDArray[np.bool_], strength: float) -> LayerModel:
    """Logistic regression on layer means, standardised and divided by √k; strength: scikit-learn's C."""
    centre = layers.mean(0, dtype=np.float64)
    scale = (layers.std(0, dtype=np.float64) + _LEAST_SPREAD) * np.sqrt(layers.shape[1])
    model = _logistic((layers - centre) / scale, labels, strength)
    return LayerModel(centre, scale, model.coef_[0], float(model.intercept_[0]))


def _blend(logits: Floats, labels: NDArray[np.bool_]) -> tuple[float, float, float]:
    model = _logistic(logits, labels, 100.0)
    return float(model.coef_[0][0]), float(model.coef_[0][1]), float(model.intercept_[0])


def _logistic(found: Any, labels: NDArray[np.bool_], strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(found, labels)


def write_sentiment(
    root: Path, model: Sentiment, metrics: Mapping[str, float], view: str, data_fingerprint: str
) -> Artifact:
    """The artifact `root/sentiment-VERSION`: arrays as safetensors, words as JSON."""
    from safetensors.numpy import save_file

    words, layers = model.words, model.layers
    arrays = {
        "idf": words.idf,
        "word_weight": words.weight,
        "centre": layers.centre,
        "scale": layers.scale,
        "layer_weight": layers.weight,
        "intercepts": np.array([words.intercept, layers.intercept]),
        "blend": np.array(model.blend),
    }
    document = json.dumps({"encoder": model.encoder, "terms": words.terms}, ensure_ascii=False)
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    return write_artifact(
        root,
        KIND,
        {
            ARRAYS: lambda path: save_file(contiguous, path),
            WORDS: lambda path: _write_text(path, document),
        },
        metrics=metrics,
        feature_service=view,
        schema_hash=hashlib.sha256(model.encoder.encode()).hexdigest(),
        data_fingerprint=data_fingerprint,
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load_sentiment(path: Path, weights: Weights | None = None) -> Sentiment:
    """Read what `write_sentiment` wrote; ArtifactError if it is damaged, or fitted on other weights."""
    from safetensors.numpy import load_file

    load_manifest(path, KIND, "qiance embeddings fit-sentiment")
    arrays = load_file(path / ARRAYS)
    document = json.loads((path / WORDS).read_text(encoding="utf-8"))
    if weights is not None and document["encoder"] != weights.fingerprint:
        raise ArtifactError(
            f"{path}: was fitted on another encoder than {weights.name!r}; run `qiance embeddings "
            "fit-sentiment` again with the model that the YAML names"
        )
    word_intercept, layer_intercept = arrays["intercepts"]
    first, second, intercept = (float(value) for value in arrays["blend"])
    return Sentiment(
        WordModel(tuple(document["terms"]), arrays["idf"], arrays["word_weight"], float(word_intercept)),
        LayerModel(arrays["centre"], arrays["scale"], arrays["layer_weight"], float(layer_intercept)),
        (first, second, intercept),
        document["encoder"],
    )
