"""Figures in words, scales of charts, and the table at the end of a run."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import bare_document, loop_document, offline_document
from rich.console import Console

from qiance.report import RunReport, money, summary_table
from qiance.report.charts import Bar, intervals, lengths, scale
from qiance.report.figures import Unit, money_each, number, percent, seconds
from qiance.report.summary import headlines, lead


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
    [
        (123_456, "USD", "$1,234.56"),
        (-5, "USD", "−$0.05"),
        (0, "USD", "$0.00"),
        (12.5, "USD", "$0.12"),
        (13.5, "USD", "$0.14"),
        (-0.2, "USD", "$0.00"),
        (150_000, "JPY", "¥150,000"),
        (1_234, "KWD", "KWD 1.234"),
        (1_234, "CNY", "¥12.34"),
        (None, "USD", "–"),
        (math.nan, "USD", "–"),
        (math.inf, "USD", "–"),
    ],
)
def test_money(minor: float | None, currency: str, shown: str) -> None:
    assert money(minor, currency) == shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (money_each(107.94), "$1.079"),
        (money_each(0.4), "$0.004"),
        (money_each(0.012), "$0.00012"),
        (money_each(0.0), "$0"),
        (money_each(123_456.0), "$1,234.56"),
        (percent(0.1234), "12.3%"),
        (percent(0.0042), "0.42%"),
        (percent(1.0), "100%"),
        (percent(1.4e-5), "< 0.01%"),
        (percent(0.0), "0%"),
        (percent(-0.031), "−3.1%"),
        (percent(None), "–"),
        (number(3_200), "3,200"),
        (number(0.41234, 2), "0.41"),
        (number(9_140.7), "9,141"),
        (number(-2), "−2"),
        (seconds(0.42), "0.4 s"),
        (seconds(83), "1 min 23 s"),
        (seconds(7_320), "2 h 2 min"),
        (Unit("minor").per_thousand(19.6), "$196"),
        (Unit("minor").per_thousand(0.196), "$1.96"),
        (Unit("fraction").difference(0.0373), "3.73 points"),
        (Unit("fraction").difference_interval(-0.001, 0.002), "−0.10 to 0.20 percentage points"),
        (Unit("minor").difference_interval(1.0, 2.0), "$0.010 to $0.020"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20), st.booleans())
def test_a_scale_holds_its_values_in_order(values: list[float], zero: bool) -> None:
    found = scale(values, zero)
    assert found is not None
    slack = 1e-6 * max(abs(found.low), abs(found.high))
    assert found.low - slack <= min(values)
    assert max(values) <= found.high + slack
    assert 2 <= len(found.ticks) <= 12
    places = [found.x(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    if zero:
        assert found.low <= 0 <= found.high


def test_nothing_to_draw_is_no_chart() -> None:
    assert scale([None, math.nan]) is None
    assert intervals([Bar("a", None)], str) is None
    assert lengths([], str) is None


def test_a_row_without_a_value_stays_in_the_chart() -> None:
    found = intervals([Bar("a", 1.0, 0.5, 1.5), Bar("b", None)], number)
    assert found is not None
    assert [row.value for row in found.rows] == ["1", "–"]
    assert "<circle" not in found.rows[1].track


def table_text(report: RunReport) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(summary_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_holds_the_headlines_and_the_notes() -> None:
    text = table_text(RunReport.model_validate(loop_document()))
    for part in ("$196", "Yes", "83.1%", "$1,482", "49 ms", "5 min 14 s", "templates wrote the words"):
        assert part in text


def test_square_brackets_in_the_table_are_not_markup() -> None:
    document = {**loop_document(), "title": "[bold]T[/bold] [/]", "notes": ["[red]careful[/red] [link=x]y"]}
    text = table_text(RunReport.model_validate(document))
    assert "[bold]T[/bold] [/]" in text
    assert "[red]careful[/red] [link=x]y" in text


@pytest.mark.parametrize("document", [loop_document(), offline_document()])
def test_four_to_six_headlines(document: dict[str, object]) -> None:
    found = headlines(RunReport.model_validate(document))
    assert 4 <= len(found) <= 6
    assert all(line.value and line.label for line in found)


def test_a_bare_report_says_that_nothing_was_measured() -> None:
    assert "nothing was measured" in lead(RunReport.model_validate(bare_document()))
    assert "no estimate" in lead(RunReport.model_validate(bare_document("offline")))


@pytest.mark.parametrize(
    ("low", "high", "tone", "said"),
    [
        (0.4, 38.8, "good", "Chance alone does not explain"),
        (-3.0, 42.0, "warn", "within what chance alone can do"),
        (-40.0, -2.0, "bad", "less than customers left alone"),
    ],
)
def test_the_gain_is_only_good_when_its_whole_interval_is(
    low: float, high: float, tone: str, said: str
) -> None:
    document = loop_document()
    document["policy"]["uplift"] = {"value": (low + high) / 2, "low": low, "high": high}
    report = RunReport.model_validate(document)
    assert headlines(report)[0].tone == tone
    assert said in lead(report)


@pytest.mark.parametrize(("over", "tone"), [(0.0, "good"), (0.004, "warn"), (0.03, "bad")])
def test_overspend_is_never_green(over: float, tone: str) -> None:
    document = loop_document()
    document["policy"]["overspend"] = over
    spent = next(h for h in headlines(RunReport.model_validate(document)) if h.label == "Spent")
    assert spent.tone == tone
