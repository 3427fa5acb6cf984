"""The page of a sweep: what it shows, and that it holds whatever comes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.report.curves import Curve, Spot, curves, spots
from qiance.report.figures import number, score
from qiance.report.sweep import SweepPage, SweepTrialView, write_sweep_page


def view(number: int, value: float | None, state: str = "done", **more: object) -> SweepTrialView:
    curve = () if value is None else ((1, value + 0.1), (2, value))
    parameters = {"learning_rate": 0.001 * (number + 1), "hidden": [8 * (number + 1)], "<b>": 1}
    one = SweepTrialView(
        f"network-{number:02d}", "network", state, value, 2.0, float(number), parameters, curve
    )
    return replace(one, **more)  # type: ignore[arg-type]


def page(*trials: SweepTrialView) -> SweepPage:
    return SweepPage(
        title="Sweep of <script>", metric="log_loss", larger_is_better=False, label="click",
        judged_on="9 rows, 3 held-out folds", held_out="rows", anew="qiance train effect",
        units={"network": "epochs"}, logarithmic={"network.learning_rate"}, trials=trials,
        importance={"network": {"learning_rate": 0.7, "hidden": 0.3}},
    )  # fmt: skip


def test_the_best_comes_first_and_every_trial_is_there(tmp_path: Path) -> None:
    shown = page(
        view(0, 0.6, default=True), view(1, 0.5, best=True), view(2, 0.7, "stopped"), view(3, None, "failed")
    )
    write_sweep_page(tmp_path / "sweep.html", shown)
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    rows = re.findall(r"<td>(network-\d\d)", text)
    assert rows == ["network-01", "network-00", "network-02", "network-03"]
    assert "network: 0.5000 by network-01, where the defaults give 0.6000" in text
    assert "<script>" not in text
    assert "&lt;b&gt;" in text
    assert "http" not in text.split("<body>")[1], "it needs no network"


def test_a_sweep_without_a_value_has_a_page(tmp_path: Path) -> None:
    write_sweep_page(tmp_path / "sweep.html", page(view(0, None, "failed")))
    assert "No trial has a step." in (tmp_path / "sweep.html").read_text(encoding="utf-8")


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(-1e9, 1e9)), min_size=1, max_size=80))
def test_everything_is_drawn_inside(points: list[tuple[int, float]]) -> None:
    line = Curve(tuple((float(x), y) for x, y in sorted(points)), "measured", "a & b")
    dots = [Spot(float(x), y, "measured", "a < b") for x, y in points]
    drawn = [
        curves([line], score, "c", "epochs"),
        spots(dots, score, number, "s", logarithmic=True),
        spots(dots[:1], score, number, "s"),
    ]
    for one in drawn:
        assert one is not None
        for element in ElementTree.fromstring(str(one)).iter():
            for name in ("x", "x1", "x2", "cx"):
                if name in element.attrib:
                    assert 0 <= float(element.attrib[name].rstrip("%")) <= 100
            for name in ("y", "y1", "y2", "cy"):
                if name in element.attrib:
                    assert 0 <= float(element.attrib[name]) <= 222


def test_nothing_to_draw_is_none() -> None:
    assert curves([], score, "c", "epochs") is None
    assert curves([Curve(((1.0, float("nan")),), "plain", "")], score, "c", "epochs") is None
    assert spots([], score, number, "s") is None


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_categories_have_their_names(names: tuple[str, ...]) -> None:
    drawn = spots([Spot(0.0, 0.5, "measured", "")], score, number, "s", names=names)
    assert all(f">{name}</text>" in str(drawn) for name in names)
