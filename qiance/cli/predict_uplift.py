"""`qiance predict` with an uplift model: what each arm would add for each row, and which to give."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts.uplift import Effects, UpliftModel
from qiance.cli.stages import Stages
from qiance.data.errors import DataError


def predict_uplift(
    artifact: Path, data: Path, mapping: Path, out: Path, explain: str, explain_rows: int, stages: Stages
) -> None:
    """Write OUT, explain the first rows where asked, and print the mean effect of each arm on all rows."""
    with stages.stage(f"reading {data.name}") as stage:
        model = UpliftModel.load(artifact)
        responses, note = _read(data, mapping, out)
        stage.note(note)
        columns = model.schema.columns(responses.table)
        ids = responses.table["row_id"].to_pylist()
    with stages.stage("predicting") as stage:
        effects = model.predict(columns)
        best = effects.best(model.info.costs)
        _write(out, ids, model, effects, best)
        if explain != "none":
            _explain(
                out, ids, model, columns, explain, explain_rows, _worth_explaining(model, effects), stage
            )
    for line in _summary(model, effects, best):
        stages.console.print(line, highlight=False)
    stages.console.print(f"by row in [bold]{out}[/]", highlight=False)


def _read(data: Path, mapping: Path, out: Path) -> tuple[Any, str]:
    """Rows and what to say of them; the arm is not read: it is what is asked for."""
    from qiance.data.mapped import read_mapped
    from qiance.data.mapping import load_mapping

    if not data.exists():
        raise DataError(data, "does not exist", "pass the path of the rows to predict with --data")
    found = load_mapping(mapping)
    columns = {name: spec for name, spec in found.columns.items() if name not in ("arm", "propensity")}
    without = found.model_copy(update={"columns": columns, "constants": {}})
    result = read_mapped(data, without, quarantine=out.parent / "quarantine", outcomes=False)
    if result.responses is None:
        raise DataError(mapping, "does not map responses", "use the mapping that the model was trained with")
    return result.responses, f"{result.report.rows_read:,} rows, {result.report.quarantined:,} in quarantine"


def _write(out: Path, ids: list[str], model: UpliftModel, effects: Effects, best: Any) -> None:
    """row_id, best_arm, gain (its effect net of cost), then per arm effect, low and high."""
    arms = [arm for arm in model.info.arms if arm != model.info.control]
    places = [model.info.arms.index(arm) for arm in arms]
    half, net = effects.half_width(), effects.value - model.info.costs
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        heads = [f"{name}:{arm}" for arm in arms for name in ("effect", "low", "high")]
        writer.writerow(["row_id", "best_arm", "gain", *heads])
        for row, name in enumerate(ids):
            figures = [net[row, best[row]]]
            for arm in places:
                value, width = effects.value[row, arm], half[row, arm]
                figures += [value, value - width, value + width]
            writer.writerow([name, model.info.arms[best[row]], *(f"{one:.6f}" for one in figures)])


def _worth_explaining(model: UpliftModel, effects: Effects) -> Any:
    """`[N]` number of the arm that is explained: the best one that is not control."""
    net = effects.value - model.info.costs
    net[:, model.info.arms.index(model.info.control)] = -np.inf
    return net.argmax(axis=1)


def _explain(
    out: Path, ids: list[str], model: UpliftModel, columns: Any, method: Any, most: int, arms: Any, stage: Any
) -> None:
    from qiance.cli.predict import write_explanations

    def one(row: Any, place: int) -> dict[str, Any]:
        arm = model.info.arms[arms[place]]
        return {"arm": arm, **asdict(model.explain(row, arm, method))}

    write_explanations(out, ids, columns, one, most, stage)


def _summary(model: UpliftModel, effects: Effects, best: Any) -> Iterator[str]:
    value, half = effects.mean()
    for arm, name in enumerate(model.info.arms):
        share = f"best for {float((best == arm).mean()):.1%} of {len(best):,} rows"
        if name == model.info.control:
            yield f"{name}: {share}"
            continue
        low, high = value[arm] - half[arm], value[arm] + half[arm]
        yield (
            f"{name}: {value[arm]:+.2%} {model.info.label} over {model.info.control}, "
            f"90 % interval {low:+.2%} to {high:+.2%}; {share}"
        )
