"""From products and headline tests to a folder with a tuned writer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact
from qiance.artifacts.writer import write_writer
from qiance.guard import Guard
from qiance.strategy.content_ports import ContentRequest
from training.writer.reward import Judges
from training.writer.settings import MakeEngine, Tell, WriterSettings
from training.writer.tune import Tuned, Tuning, figures_of

METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainedWriter:
    """The artifact, None where the writer fails more checks than before, and what metrics.json holds."""

    artifact: Artifact | None
    tuned: Tuned
    metrics: Mapping[str, Any]


def train_writer(
    requests: Sequence[ContentRequest],
    judges: Judges,
    make: MakeEngine,
    out: Path,
    data_fingerprint: str,
    guard: Guard | None = None,
    settings: WriterSettings | None = None,
    tell: Tell | None = None,
) -> TrainedWriter:
    """Tune the model that `make` gives to write for `requests`, one per product and all of one language.

    Writes the artifact and metrics.json into `out`. DataError for too few products, or for words of which too
    few pass the checks.
    """
    chosen, told = settings or WriterSettings(), tell or (lambda _share, _text: None)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writer-", dir=out) as folder:
        tuning = Tuning(make, judges.reward, judges.watch, guard or Guard.load(), Path(folder), chosen, told)
        tuned = tuning.run(requests)
        base = make(None).weights
        card = model_card(requests, judges, base, tuned, chosen)
        last = tuned.last
        known = {"pass_share": last.pass_share, "reward": last.reward, "judge": last.judge}
        numbers = {name: value for name, value in known.items() if math.isfinite(value)}
        languages = frozenset({requests[0].language})
        artifact = None
        if tuned.passes:
            artifact = write_writer(out, tuned.adapter, base, languages, card, numbers, data_fingerprint)
    metrics = {
        "model": artifact and artifact.path.name,
        **card,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"writer {artifact.version} written" if artifact else "no writer written")
    return TrainedWriter(artifact, tuned, metrics)


def model_card(
    requests: Sequence[ContentRequest],
    judges: Judges,
    base: str,
    tuned: Tuned,
    settings: WriterSettings,
) -> dict[str, Any]:
    """What the writer is, what it learned from, how it was watched and what it is not for."""
    return {
        "purpose": "writes texts for products, in the form of qiance.strategy.prompts, without examples",
        "base": base,
        "data": {"products": len(requests), "language": requests[0].language, "tests": dict(judges.tests)},
        "method": {
            "imitation": "cross entropy on its own answers that passed every check",
            "preference": "direct preference optimisation: expected log click rate less failed checks",
            "settings": asdict(settings),
        },
        "pair_accuracy": dict(judges.accuracy),
        "history": figures_of(tuned.history),
        "ended": tuned.ended,
        "limits": [
            "what the judges expect is simulated: nobody was shown these texts",
            "the judges learned from the given tests, whose texts may be of another kind than product texts",
            "what it writes is checked as any model's words are",
        ],
    }
