"""From a file of headline tests to a folder with a judged reward model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact
from training.copy.encode import TextEncoder
from training.copy.fit import CopySettings, FittedCopy, Tell, fit_copy
from training.copy.headlines import CopyTests, split_by_story
from training.copy.judge import judge
from training.copy.model import write_copy

METRICS = "metrics.json"
HELD_OUT = 0.25


@dataclass(frozen=True)
class TrainedCopy:
    """The artifact, fitted on all tests, and what metrics.json holds of how an earlier fit was judged."""

    artifact: Artifact
    fitted: FittedCopy
    metrics: Mapping[str, Any]


def train_copy(
    tests: CopyTests,
    out: Path,
    encoder: TextEncoder,
    settings: CopySettings | None = None,
    tell: Tell | None = None,
) -> TrainedCopy:
    """Judge a model of the earlier stories on the later ones (at random without times); fit one on all.

    Writes the artifact and metrics.json into `out`. DataError for too few tests.
    """
    chosen, told = settings or CopySettings(), tell or (lambda _share, _text: None)
    started = time.monotonic()
    layers = layers_of(tests, encoder, lambda share, text: told(0.5 * share, text))
    names = (encoder.fingerprint, encoder.model)
    rows, held = split_by_story(tests, HELD_OUT, chosen.seed)
    early, late = tests.take(rows), tests.take(held)
    told(0.5, "judging")
    first = fit_copy(
        early, layers[rows], encoder.width, names, chosen, lambda s, t: told(0.5 + 0.2 * s, f"judging: {t}")
    )
    figures = held_out_figures(first, late, layers[held], chosen.seed)
    fitted = fit_copy(tests, layers, encoder.width, names, chosen, lambda s, t: told(0.7 + 0.29 * s, t))
    card = model_card(tests, early, fitted, figures)
    out.mkdir(parents=True, exist_ok=True)
    numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
    artifact = write_copy(out, fitted.model, numbers, card, tests.fingerprint)
    metrics = {
        **figures,
        "model": artifact.path.name,
        "card": card,
        "settings": asdict(chosen),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"copy model {artifact.version} written")
    return TrainedCopy(artifact, fitted, metrics)


def layers_of(tests: CopyTests, encoder: TextEncoder, tell: Tell | None = None) -> NDArray[np.float32]:
    """`[n, (L+1)·d]`; a text that is in several groups is read once."""
    names, code = np.unique(tests.texts.astype(str), return_inverse=True)
    return encoder.layers([str(name) for name in names], tell)[code]


def held_out_figures(
    fitted: FittedCopy, tests: CopyTests, layers: NDArray[np.float32], seed: int
) -> dict[str, Any]:
    """Figures of the model, of each of its views alone, and of the shorter text, on tests it has not seen."""
    texts, calibration = list(tests.texts), fitted.model.calibration
    parts = fitted.model.parts(texts, layers) | {"shorter": -np.array([float(len(text)) for text in texts])}
    alone = {name: float(judge(tests, own, calibration).right.mean()) for name, own in parts.items()}
    own = judge(tests, fitted.model.score(texts, layers), calibration).figures(seed)
    return {**own, "pair_accuracy_alone": alone}


def model_card(
    tests: CopyTests, early: CopyTests, fitted: FittedCopy, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model is, what it learned from, how it was judged and what it is not for."""
    model, choice = fitted.model, fitted.choice
    return {
        "purpose": "ranks texts of one offer by expected click rate; the chances are calibrated",
        "data": {
            "fingerprint": tests.fingerprint,
            "tests": tests.tests,
            "texts": len(tests),
            "impressions": float(tests.impressions.sum()),
            "clicks": float(tests.clicks.sum()),
            "left_out": dict(tests.dropped),
        },
        "method": {
            "loss": "squared error of log click rates within a group, weighted by 1 / (tau2 + 1 / clicks)",
            "encoder": {"model": model.model, "fingerprint": model.encoder, "layer": model.layer_number},
            "scales": dict(choice.scales),
            "tau2": choice.tau2,
            "tried": dict(choice.tried),
            "calibration": asdict(model.calibration),
        },
        "judged_on": {
            "held_out": "stories that no text of was learned from, the later ones where times are known",
            "learned_from_tests": early.tests,
            **figures,
        },
        "limits": [
            "learned from what people click, not from what they buy",
            "texts of another language or kind than those of the tests were not judged",
            "says nothing of whether a text is true or allowed: lint it",
        ],
    }
