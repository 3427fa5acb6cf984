"""`qiance copy`: which of several texts is expected to be clicked most."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qiance.cli.predict import trained_model
from qiance.data.errors import DataError

app = typer.Typer(help="Rank texts by the click rate that a model of `qiance train copy` expects.")
MOST_PAIRED = 50


@app.callback()
def root() -> None:
    """Rank texts by the click rate that a model of `qiance train copy` expects."""


@app.command("rank")
def rank(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Two texts or more.")] = None,
    model: Annotated[
        Path, typer.Option("--model", help="Folder that `qiance train copy` wrote, or its artifact.")
    ] = Path("copy"),
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE|-", help="One text a line; -: stdin.")
    ] = None,
) -> None:
    """Rank texts of one offer; prints one JSON object.

    `chance_best`: that the text has the highest click rate of all given. `beats`: for at most 50 texts, in
    the order of rank, the chance that the text of the row has a higher click rate than that of the column.
    `score`: logarithm of the click rate, 0 for the mean of the texts given. Whether a text is true or allowed
    is another question: see `qiance lint`.
    """
    chosen = _texts(texts or [], file)
    from training.copy.encode import load_text_encoder
    from training.copy.model import load_copy

    path = trained_model(model)
    loaded = load_copy(path)
    encoder = load_text_encoder(loaded.model)
    if encoder.fingerprint != loaded.encoder:
        raise DataError(model, "was fitted on other weights of its encoder", "train it again with these")
    scores = loaded.score(chosen, encoder.layers(chosen))
    print(json.dumps(_document(path.name, chosen, scores, loaded.calibration), ensure_ascii=False, indent=1))


def _texts(given: list[str], file: str | None) -> list[str]:
    """Of the arguments or the file, each once, white space normalised as in training."""
    lines = list(given)
    if file is not None:
        try:
            lines += (
                sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
            ).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--file: {file} cannot be read ({error}); name a UTF-8 text file") from None
    found = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if len(found) < 2:
        raise ValueError(f"texts: {len(found)} different ones cannot be ranked; give two or more")
    return found


def _document(version: str, texts: list[str], scores: Any, calibration: Any) -> dict[str, Any]:
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    ranked, mean = scores[order], scores.mean()
    best = calibration.best(ranked)
    rows = [
        {
            "rank": number + 1,
            "text": texts[place],
            "score": round(float(scores[place] - mean), 6),
            "chance_best": round(float(best[number]), 6),
        }
        for number, place in enumerate(order)
    ]
    document: dict[str, Any] = {"model": version, "texts": rows}
    if len(texts) <= MOST_PAIRED:
        beats = calibration.beats(ranked[:, None] - ranked[None, :])
        document["beats"] = [[round(float(chance), 6) for chance in row] for row in beats]
    return document
