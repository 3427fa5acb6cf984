"""The writer of `benchmarks.copy`: tuned on half of the archive's stories, judged by what the others taught.

`python -m benchmarks.copying.tuning` (`make bench-train-copy`) tunes the embedded model by the product's own
code and leaves the adapter in .bench/copy/writer. It practises on products that no brief of the benchmark is
about. `judge_ctr_gain` is of the words that the same briefs get with and without the adapter, templates
included where the model's words fail. The judge is of another family than the reward and than the judge that
watched the tuning: boosted trees over a middle layer of a decoder, from stories that neither of them saw. It
knows headlines of a news site: what it expects of a shop's words is simulated.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.copying.generating import CACHE, Writing, distinct_pairs, violates_facts
from benchmarks.harness import ROOT, Args, log, parse
from benchmarks.linting.texts import guard
from benchmarks.targeting.world import catalogue_of, items_of
from qiance.artifacts.manifest import manifest_hash
from qiance.artifacts.writer import WriterAdapter, load_writer
from qiance.evaluate.inference import bootstrap_interval, units_of
from qiance.strategy.content import write_content
from qiance.strategy.content_ports import ContentRequest, Written
from qiance.strategy.wording import plain_name
from serve.generator.carried import SMOLLM2
from serve.generator.engine import TransformersEngine
from training.copy.calibration import Calibration
from training.copy.encode import load_text_encoder
from training.copy.features import features_of
from training.copy.headlines import CopyTests, read_tests
from training.copy.judge import judge
from training.writer.products import read_products
from training.writer.reward import fit_judges, split_stories
from training.writer.settings import Floats, WriterSettings
from training.writer.train import METRICS, train_writer
from training.writer.trees import TREES, deviations

FOLDER = ROOT / ".bench" / "copy" / "writer"
FINAL = 0.5  # share of the stories for the last judge
LAYER = 20
COMPONENTS = 100
TAU2 = 0.085  # as the reward model finds it on the archive
BATCH = 32
GAINS = ("judge_ctr_gain", "judge_ctr_low", "judge_ctr_high", "judge_ctr_gain_by_model", "tuned")


@dataclass(frozen=True)
class DecoderJudge:
    """Scores headlines by trees over the mean states of a layer of a decoder, and how they look."""

    engine: TransformersEngine
    components: Any
    trees: Any

    def __call__(self, texts: Sequence[str]) -> Floats:
        states = self.components.transform(states_of(self.engine, texts))
        return np.asarray(self.trees.predict(np.hstack([features_of(list(texts)), states])))


@torch.inference_mode()
def states_of(engine: TransformersEngine, texts: Sequence[str]) -> Floats:
    """`[n, d]`: mean state after layer `LAYER`."""
    model, tokenizer = engine._model, engine._tokenizer
    rows = [tokenizer.encode(text, add_special_tokens=False) or [0] for text in texts]
    order, found = np.argsort([len(row) for row in rows]), np.empty((len(rows), model.config.hidden_size))
    for start in range(0, len(rows), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(rows[place]) for place in part)
        ids = torch.tensor([rows[place] + [0] * (longest - len(rows[place])) for place in part])
        mask = torch.tensor([[1] * len(rows[place]) + [0] * (longest - len(rows[place])) for place in part])
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER]
        weight = mask[:, :, None].to(states.dtype)
        found[part] = ((states * weight).sum(1) / weight.sum(1)).float().numpy()
    return found


def fit_decoder_judge(tests: CopyTests, engine: TransformersEngine, seed: int) -> DecoderJudge:
    """From `tests` alone."""
    from lightgbm import LGBMRegressor
    from sklearn.decomposition import PCA

    names, code = np.unique(tests.texts.astype(str), return_inverse=True)
    texts = [str(name) for name in names]
    states = states_of(engine, texts)
    components = PCA(min(COMPONENTS, *states.shape), whiten=True, random_state=seed).fit(states)
    known = np.hstack([features_of(texts), components.transform(states)])[code]
    deviation, weight = deviations(tests, TAU2)
    trees = LGBMRegressor(**TREES, random_state=seed).fit(known, deviation, sample_weight=weight)
    return DecoderJudge(engine, components, trees)


def split_archive(tests: CopyTests, seed: int) -> tuple[CopyTests, CopyTests]:
    """Stories for the tuning, and for the last judge."""
    return split_stories(tests, FINAL, 7_919 + seed)


def load_adapter() -> WriterAdapter | None:
    """What `make bench-train-copy` left; None where it was not run."""
    path = FOLDER / METRICS
    name = json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else None
    return None if name is None else load_writer(FOLDER / name)


def gain(
    asked: Sequence[ContentRequest],
    before: Sequence[Written],
    after: Sequence[Written],
    scorer: Any,
    seed: int,
) -> dict[str, Any]:
    """What the judge expects of the headlines after, ÷ before, less 1; 95 % interval over products."""
    scores = [scorer([one.creative.headline for one in written]) for written in (before, after)]
    difference = scores[1] - scores[0]
    by_model = np.array(
        [a.creative.source == b.creative.source == "llm" for a, b in zip(before, after, strict=True)]
    )
    _, product = np.unique([plain_name(one.item) for one in asked], return_inverse=True)
    _, low, high = bootstrap_interval(difference, units_of("product", product, len(product)), 0.95, seed)
    return {
        "judge_ctr_gain": float(np.expm1(difference.mean())),
        "judge_ctr_low": float(np.expm1(low)),
        "judge_ctr_high": float(np.expm1(high)),
        "judge_ctr_gain_by_model": float(np.expm1(difference[by_model].mean())) if by_model.any() else None,
    }


def measure_gain(
    writing: Writing, adapter: WriterAdapter, tests: CopyTests, args: Args
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same briefs with the tuned writer, and what the last judge expects of it: figures and protocol."""
    _, others = split_archive(tests, args.seed)
    log(f"fitting the judge on {others.tests:,} tests that the tuning did not see")
    last, probe = split_stories(others, 0.25, args.seed)
    right = accuracy(fit_decoder_judge(last, writing.engine, args.seed), probe)
    scorer = fit_decoder_judge(others, writing.engine, args.seed)
    tuned = TransformersEngine.load("embedded", CACHE, threads=1, adapter=adapter)
    log(f"writing words for {len(writing.asked)} briefs with the adapter")
    after = write_content(writing.asked, tuned, guard(), samples=writing.samples, seed=args.seed)
    figures = gain(writing.asked, writing.written, after, scorer, args.seed)
    pairs = zip(writing.asked, after, strict=True)
    figures["tuned"] = {
        "written_by_model": sum(one.creative.source == "llm" for one in after) / len(after),
        "diversity": distinct_pairs(after),
        "fact_violations": sum(violates_facts(request, one) for request, one in pairs),
    }
    card = json.loads((FOLDER / METRICS).read_text(encoding="utf-8"))
    return figures, {
        "manifest": manifest_hash(adapter.folder),
        "training_s": card["seconds"],
        "stages": [one["stage"] for one in card["history"] if one["kept"]],
        "ended": card["ended"],
        "practised_on": card["data"],
        "judge": f"trees over layer {LAYER} of {writing.engine.weights}; tests {others.tests}",
        "judge_pair_accuracy": right,
        "simulated": "nobody was shown these words",
    }


def practice(most: int, folder: Path) -> list[ContentRequest]:
    """Products with names that no brief of the benchmark is about."""
    path = folder / "items.parquet"
    items_of(folder)
    taken = {plain_name(item) for item in catalogue_of()}
    found = read_products(path, "en", 4 * most)
    return [one for one in found if plain_name(one.item) not in taken][:most]


def accuracy(scorer: Any, others: CopyTests) -> float:
    """Share of the pairs of `others` whose better text is named."""
    scores = scorer([str(text) for text in others.texts])
    return float(judge(others, scores, Calibration(1.0, 1.0)).right.mean())


def tune(tests: CopyTests, args: Args) -> None:
    """Fit the judges of the tuning, tune, and leave the adapter in `FOLDER`."""
    import ray

    mine, _ = split_archive(tests, args.seed)
    tell = _Told()
    judges = fit_judges(mine, load_text_encoder(), args.seed, tell=tell)
    log(f"judges: {judges.accuracy} from {judges.tests}")
    samples, rounds = args.pick(smoke=3, quick=4, full=5), args.pick(smoke=1, quick=1, full=2)
    settings = WriterSettings(samples=samples, rounds=rounds, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        requests = practice(args.pick(smoke=24, quick=60, full=150), Path(folder))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        trained = train_writer(
            requests, judges, _engine, FOLDER, mine.fingerprint, settings=settings, tell=tell
        )
    finally:
        ray.shutdown()
    for one in trained.tuned.history:
        log(f"  {one}")
    written = trained.artifact
    said = "nothing is kept" if written is None else f"{written.path.name}, manifest {written.hash}"
    log(f"{trained.tuned.ended}; {said}")


class _Told:
    """Progress on stderr, at most every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, share: float, text: str) -> None:
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            log(f"  {share:4.0%} {text}")


def _engine(adapter: Path | None) -> TransformersEngine:
    own = None if adapter is None else WriterAdapter(adapter, SMOLLM2.name, frozenset({"en"}), "in tuning")
    return TransformersEngine.load("embedded", CACHE, threads=1, adapter=own)


def main(argv: Sequence[str] | None = None) -> None:
    """Tune and leave the adapter."""
    from benchmarks.copy import find_data

    args = parse(argv, "Tunes the embedded writer on half of the stories of the Upworthy archive.")
    path = find_data()
    if path is None:
        raise SystemExit("the archive is not here; `python -m benchmarks.copy --smoke` says where to put it")
    tune(read_tests(path), args)


if __name__ == "__main__":
    main()
