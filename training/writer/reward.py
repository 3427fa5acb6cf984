"""The two judges of a tuning, from one file of headline tests: one gives the reward, the other watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qiance.data.errors import DataError
from training.copy.encode import TextEncoder
from training.copy.fit import CopySettings, fit_copy
from training.copy.headlines import CopyTests
from training.copy.judge import judge
from training.copy.model import CopyModel
from training.copy.train import layers_of
from training.writer.settings import Floats, Scorer, Tell
from training.writer.trees import fit_trees

LEAST_TESTS = 40
WATCHING = 1 / 3


@dataclass(frozen=True)
class Judges:
    """reward and watch score headlines. accuracy: share of pairs of the other one's tests that each names
    right; tests: how many each learned from."""

    reward: Scorer
    watch: Scorer
    accuracy: dict[str, float]
    tests: dict[str, int]


@dataclass(frozen=True)
class CopyScorer:
    """A reward model of texts with its encoder."""

    model: CopyModel
    encoder: TextEncoder

    def __call__(self, texts: Sequence[str]) -> Floats:
        names, code = np.unique(np.array(texts, dtype=str), return_inverse=True)
        known = [str(name) for name in names]
        return self.model.score(known, self.encoder.layers(known))[code]


def fit_judges(
    tests: CopyTests,
    encoder: TextEncoder,
    seed: int,
    settings: CopySettings | None = None,
    tell: Tell | None = None,
) -> Judges:
    """Two thirds of the stories give the reward model, the rest the judge that watches.

    DataError for too few tests.
    """
    told = tell or (lambda _share, _text: None)
    mine, other = split_stories(tests, WATCHING, seed)
    for part in (mine, other):
        if part.tests < LEAST_TESTS:
            raise DataError(
                "the tests",
                f"leave {part.tests} for one of the two judges; at least {LEAST_TESTS} are needed",
                "collect more headline tests before a writer is tuned on them",
            )
    names = (encoder.fingerprint, encoder.model)
    layers = layers_of(mine, encoder, lambda share, text: told(0.4 * share, text))
    chosen = settings or CopySettings(seed=seed)
    fitted = fit_copy(mine, layers, encoder.width, names, chosen, lambda s, t: told(0.4 + 0.5 * s, t))
    told(0.9, "fitting the judge that watches")
    reward, watch = CopyScorer(fitted.model, encoder), fit_trees(other, fitted.choice.tau2, seed)
    calibration = fitted.model.calibration
    accuracy = {
        name: float(judge(part, scorer([str(text) for text in part.texts]), calibration).right.mean())
        for name, scorer, part in (("reward", reward, other), ("watch", watch, mine))
    }
    return Judges(reward, watch, accuracy, {"reward": mine.tests, "watch": other.tests})


def split_stories(tests: CopyTests, share: float, seed: int) -> tuple[CopyTests, CopyTests]:
    """The tests of some stories, and of `share` of them; no story is in both."""
    stories = np.random.default_rng(seed).permutation(np.unique(tests.story))
    aside = np.isin(tests.story, stories[: round(share * len(stories))])
    return tests.take(~aside), tests.take(aside)
