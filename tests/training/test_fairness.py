"""The audit by group: what it measures, when it blocks, and which models may not be compared at all."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from response_cases import Log, write_log
from typer.testing import CliRunner

from qiance.cli.contest import register_response
from qiance.cli.main import app
from qiance.data.errors import DataError
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from training.effect.fit import TrainSettings
from training.response.fairness import TOP, Thresholds, audit
from training.response.fit import TrainedResponse, train_response
from training.response.members import ResponseSettings, TreeSettings
from training.response.rows import response_rows

SMALL = ResponseSettings(
    members=2,
    network=TrainSettings(epochs=2, batch_size=256, heads=2),
    trees=TreeSettings(rounds=20, leaves=(4,), threads=1),
)


def population(n: int = 4_000, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Outcome, prediction, group and depth: b is chosen less often, and its chosen get deeper offers."""
    random = np.random.default_rng(seed)
    group = random.choice(["a", "b"], n, p=[0.7, 0.3])
    p = random.beta(2, 5, n) * np.where(group == "b", 0.85, 1.0)
    y = (random.random(n) < p).astype(float)
    depth = np.where((group == "b") & (random.random(n) < 0.5), 0.3, 0.1)
    return y, p, group, depth


def test_exposure_and_depth_are_their_definitions() -> None:
    y, p, group, depth = population()
    depth[:200] = np.nan
    group[:50] = "rare"
    found = audit(y, p, {"group": group}, depth=depth)
    chosen = p >= np.quantile(p, 1 - TOP)
    known = np.isfinite(depth)
    assert found.exposure == pytest.approx(chosen.mean())
    assert found.depth == pytest.approx(depth[chosen & known].mean())
    assert found.offered == pytest.approx(depth[known].mean())
    assert [one.group for one in found.groups["group"]] == ["a", "b"], "of fifty rows nothing is claimed"
    for one in found.groups["group"]:
        here = group == one.group
        for name, whole, values, rows in (
            ("exposure", found.exposure, chosen.astype(float), np.ones(y.size, dtype=bool)),
            ("depth", found.depth, depth, chosen & known),
            ("offered", found.offered, depth, known),
        ):
            value, gap, low, high = (
                getattr(one, f"{name}{end}") for end in ("", "_gap", "_gap_low", "_gap_high")
            )
            assert value == pytest.approx(values[here & rows].mean())
            assert gap == pytest.approx(value - whole)
            assert low < gap < high
            # The gap is (1 − share) · (mean of the group − mean of the others), of which all three vary.
            share = (here & rows).mean() / rows.mean()
            parts = [values[part & rows] for part in (here, ~here)]
            variance = (1 - share) ** 2 * sum(part.var() / part.size for part in parts)
            variance += (parts[0].mean() - parts[1].mean()) ** 2 * share * (1 - share) / rows.sum()
            assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.15)


def test_a_threshold_blocks_only_what_is_surely_beyond_it() -> None:
    y, p, group, depth = population()
    free = audit(y, p, {"group": group}, Thresholds(1.0), depth=depth)
    assert free.broken == (), "what has no threshold is let through"
    a, b = free.groups["group"]
    assert a.exposure > free.exposure > b.exposure
    for allowed, expected in ((0.99, True), (1.01, False)):
        limits = Thresholds(1.0, max_exposure_gap=-b.exposure_gap_high * allowed)
        broken = audit(y, p, {"group": group}, limits, depth=depth).broken
        assert [text.split(" 2")[0][:19] for text in broken] == (["group 'b': exposure"] if expected else [])
    (sentence,) = audit(y, p, {"group": group}, Thresholds(1.0, max_depth_gap=0.03), depth=depth).broken
    assert sentence.startswith(f"group 'b': offer depth {b.depth:.3g} where it is {free.depth:.3g}")
    assert audit(y, p, {"group": group}, Thresholds(1.0, max_depth_gap=0.3), depth=depth).broken == ()


def test_users_with_many_rows_count_once() -> None:
    four = [np.repeat(values, 4) for values in population(2_000)]
    y, p, group, depth = four
    users = np.repeat(np.arange(2_000), 4)
    apart = audit(y, p, {"group": group}, depth=depth).groups["group"][1]
    whole = audit(y, p, {"group": group}, units=users, depth=depth).groups["group"][1]
    for name in ("gap", "exposure_gap", "depth_gap", "offered_gap"):
        widths = [getattr(one, f"{name}_high") - getattr(one, f"{name}_low") for one in (apart, whole)]
        assert widths[1] == pytest.approx(2 * widths[0], rel=0.2)
    few = audit(y, p, {"group": group}, units=np.where(group == "b", users % 20, users))
    assert [one.group for one in few.groups["group"]] == ["a"], "of twenty users nothing is claimed"


def test_of_too_few_chosen_or_no_offers_no_depth_is_claimed() -> None:
    y, p, group, depth = population()
    limits = Thresholds(1.0, max_depth_gap=0.0)
    without = audit(y, p, {"group": group}, limits)
    assert (without.depth, without.offered, without.broken) == (None, None, ())
    assert {one.depth for one in without.groups["group"]} == {None}
    p[group == "b"] = np.linspace(0, 0.01, (group == "b").sum())
    p[np.flatnonzero(group == "b")[:20]] = 0.99
    b = audit(y, p, {"group": group}, limits, depth=depth).groups["group"][1]
    assert (b.depth, b.depth_gap_low) == (None, None), "twenty chosen rows"
    assert b.offered == pytest.approx(depth[group == "b"].mean())
    with pytest.raises(ValueError, match=r"max_depth_gap: -0.1 is not 0 or more"):
        Thresholds(max_depth_gap=-0.1)


def train(log: Log, out: Path, **options: Any) -> TrainedResponse:
    table = read_mapped(log.data, load_mapping(log.mapping)).responses
    assert table is not None
    return train_response(table, out, folds=2, settings=SMALL, **options)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with `open`, which sees the age, and `blind`, which does not."""
    folder = tmp_path_factory.mktemp("registry")
    log = write_log(folder, n=600)
    register_response(train(log, folder / "open"), "open", folder)
    register_response(train(log, folder / "blind", protected=("age",)), "blind", folder)
    return folder


def promote(workspace: Path, name: str, log: Log, **promotion: Any) -> Any:
    config = workspace / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"promotion": promotion}))
    words = ["models", "promote", name, "--data", str(log.data), "-m", str(log.mapping)]
    return CliRunner().invoke(app, [*words, "-w", str(workspace), "-c", str(config)])


def deepen(log: Log) -> Log:
    """Five more visits for the youngest."""
    with gzip.open(log.data, "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with gzip.open(log.data, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            more = 5 if row["age"] == "below21" else 0
            writer.writerow(row | {"visits": f"{float(row['visits'] or 0) + more:g}"})
    return log


def report_of(workspace: Path, name: str) -> Any:
    return json.loads((workspace / "promotion" / f"{name}-1.json").read_text())


def test_a_model_that_sees_what_is_protected_is_refused(registry: Path, tmp_path: Path) -> None:
    later = write_log(tmp_path, n=1_200, seed=1)
    refused = promote(registry, "open", later, protected=["age"])
    assert "'age' is a feature that the model sees" in str(refused.exception)
    without = write_log(tmp_path, n=1_200, seed=1)
    content = yaml.safe_load(without.mapping.read_text())
    content["features"]["categorical"].remove("age")
    without.mapping.write_text(yaml.safe_dump(content))
    refused = promote(registry, "open", without, protected=["age"])
    assert "'age' is a feature that the model sees" in str(refused.exception), "whatever the log has"


def test_what_the_log_does_not_have_is_said_and_the_rest_audited(registry: Path, tmp_path: Path) -> None:
    later = write_log(tmp_path, n=1_200, seed=1)
    done = promote(registry, "blind", later, protected=["age", "shoe_size"], max_gap=1.0)
    assert done.exit_code == 0, done.output
    assert "not audited by 'shoe_size': coupons has no such feature" in " ".join(done.output.split())
    report = report_of(registry, "blind")
    assert set(report["fairness"]["conversion"]["groups"]) == {"age"}
    assert len(report["notes"]) == 1
    numeric = promote(registry, "blind", later, protected=["shoe_size", "visits"])
    assert "'visits' is a feature that the model sees" in str(numeric.exception)


def test_exposure_and_depth_block_a_promotion(registry: Path, tmp_path: Path) -> None:
    later = deepen(write_log(tmp_path, n=1_200, seed=1))
    wanted = {"protected": ["weather"], "max_gap": 1.0}
    seen = promote(registry, "blind", later, **wanted)
    assert "'weather' is a feature that the model sees" in str(seen.exception)
    wanted["protected"] = ["age"]
    # As if visits were the depth of the offer.
    blocked = promote(registry, "blind", later, **wanted, depth_feature="visits", max_depth_gap=1.0)
    assert blocked.exit_code == 1
    unfair = report_of(registry, "blind")["test"]["unfair"]
    assert any(text.startswith("conversion: age 'below21': offer depth") for text in unfair)
    wide = promote(registry, "blind", later, **wanted, depth_feature="visits", max_depth_gap=20.0)
    assert wide.exit_code == 0, wide.output
    assert all(
        one["depth_gap_low"]
        for one in report_of(registry, "blind")["fairness"]["conversion"]["groups"]["age"]
    )
    narrow = promote(registry, "blind", later, **wanted, max_exposure_gap=0.05)
    assert narrow.exit_code == 1
    assert "age 'below21': exposure" in " ".join(narrow.output.split())
    unnamed = promote(registry, "blind", later, **wanted, max_depth_gap=0.1)
    assert "name its feature in promotion.depth_feature" in " ".join(unnamed.output.split())
    mistaken = promote(registry, "blind", later, **wanted, depth_feature="coupon", max_depth_gap=0.1)
    assert isinstance(mistaken.exception, DataError)
    assert "no numeric feature 'coupon'" in str(mistaken.exception)


def test_the_depth_of_a_log_is_a_numeric_feature(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=200)
    words = ["train", "effect", "--data", str(log.data), "--mapping", str(log.mapping)]
    words += ["--out", str(tmp_path / "out"), "--protected", "age", "--max-depth-gap", "0.1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "needs --depth" in done.output
    table = read_mapped(log.data, load_mapping(log.mapping)).responses
    assert table is not None
    with pytest.raises(DataError, match="no numeric feature 'age'; take the depth from one of: visits"):
        response_rows(table, depth="age")
    column = table.table.column_names.index("visits")
    below = table.table.set_column(column, "visits", pa.array(np.full(200, -0.1)))
    with pytest.raises(DataError, match=r"has the depth -0.1 in row 0 of 'visits'; a depth is 0"):
        response_rows(replace(table, table=below), depth="visits")
