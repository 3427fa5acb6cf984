"""The picture of a comparison: who is ahead is on the right, and every figure is told."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chart import WIDTH, chart, ratios


def test_only_comparisons_are_shown() -> None:
    figures = {"vs_a": 2.0, "vs_b": None, "vs_c": 0, "rows": 3.0, "vs_d": {"x": 1.0}, "vs_e": True, "vs_f": 3}
    assert ratios({**figures, "vs_e": 1}) == {"a": 2.0, "e": 1.0, "f": 3.0}


@given(
    st.dictionaries(st.text("abc_<&", min_size=1, max_size=12), st.floats(1e-3, 1e4), min_size=1, max_size=9)
)
def test_bars_lie_in_the_picture_and_on_their_side(found: dict[str, float]) -> None:
    root = ElementTree.fromstring(chart(found))
    space = "{http://www.w3.org/2000/svg}"
    axis = float(root.find(f"{space}line").attrib["x1"])  # type: ignore[union-attr]
    bars = root.findall(f"{space}rect")[1:]
    assert len(bars) == len(found)
    for bar, value in zip(bars, found.values(), strict=True):
        start, width = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert start >= 0
        assert start + width <= WIDTH + 1
        assert start >= axis - 0.2 if value >= 1 else start + width <= axis + 1.2
    texts = [text.text or "" for text in root.findall(f"{space}text")]
    assert [float(text) for text in texts if re.fullmatch(r"[\d.e+-]+", text)] == [
        float(f"{value:.3g}") for value in found.values()
    ]
