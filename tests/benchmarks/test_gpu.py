"""The GPU benchmark's counts, on whatever device is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import Roof, Work, kernel_work, main, measure_roof, pair_pass
from benchmarks.scorer_case import Case, users, write_model
from qiance.artifacts import EffectModel
from qiance.artifacts.runner import Runner


def test_the_roof_that_binds_is_the_slower() -> None:
    roof = Roof(flops=100.0, bytes=10.0)
    assert Work(flops=50.0, bytes=1.0, seconds=1.0).share(roof) == pytest.approx(0.5)
    assert Work(flops=5.0, bytes=4.0, seconds=1.0).share(roof) == pytest.approx(0.4)


def test_work_is_counted_from_the_program_that_is_served(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    artifact = write_model(tmp_path, heads=2, hidden=(16,))
    model = EffectModel.load(artifact)
    grid, asked = Case.draw(30, 9, random).grid(model), users(3, random)
    user, pair = grid.encoded.user(asked), grid.encoded.pair(asked)
    program, inputs = pair_pass(Runner(), artifact, grid.encoded.num, grid.encoded.cat, user, pair)
    work = kernel_work(Runner(), program, inputs)
    assert model.info.grid is not None
    sizes = [round(min(16, max(2, 1.6 * codes**0.56))) for codes in model.encoder.cardinalities]
    width = grid.encoded.num.shape[1] + sum(sizes)
    first, rows = width + 16, 3 * 10
    offsets = 2  # of calibration, rows of the first product
    products = 2 * (first + offsets) * (len(user) * 3 + len(pair) * rows)
    products += 2 * (width + 16) * (2 * 8 + 4 * 2) * rows + 2 * 2 * 8 * 4 * rows
    assert work.flops == products
    outputs = 4 * 2 * rows * 4
    assert work.bytes > outputs + 2 * 4 * first * rows, "the first product is written and read"
    assert work.seconds > 0


def test_a_roof_is_measured() -> None:
    roof = measure_roof("cpu", torch.float32, size=256)
    assert 1e8 < roof.flops < 1e15
    assert 1e7 < roof.bytes < 1e14


def test_smoke_says_why_a_figure_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    figures, missing = result["figures"], result["protocol"]["missing"]
    assert {"rows_per_s", "roofline_share", "tokens_per_s"} <= figures.keys()
    assert {name for name, value in figures.items() if value is None} == missing.keys()
    assert figures["cpu"]["ms_1x500"] > 0
    if not torch.cuda.is_available():
        assert missing["rows_per_s"] == "torch sees no GPU"
