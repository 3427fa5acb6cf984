"""The page: safe with hostile words, self-contained, and saying what the document says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page
from report_cases import bare_document, loop_document, offline_document

from qiance.report import RunReport, write_report
from qiance.report.page import render

PAYLOAD = """</style></title><script>alert(1)</script><img src=x onerror='a("b")'>"{{ 7*7 }}"""
# Words that the document's own types restrict: nothing hostile can stand there.
RESTRICTED = {"kind", "state", "currency", "created_at", "unit"}


def page_of(document: dict[str, Any]) -> Page:
    return Page(render(RunReport.model_validate(document)))


def poisoned(value: Any, key: str = "") -> Any:
    """The document with the payload at the end of every free text."""
    if isinstance(value, dict):
        return {k: poisoned(part, k) for k, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part, key) for part in value]
    return value + PAYLOAD if isinstance(value, str) and key not in RESTRICTED else value


@pytest.mark.parametrize("make", [loop_document, offline_document])
def test_hostile_words_stay_words(make: Any) -> None:
    document = poisoned(make())
    document["models"]["effect"]["metrics"][f"{PAYLOAD}_auc"] = 0.5
    document["models"]["effect"]["scores"][PAYLOAD] = document["models"]["effect"]["scores"].popitem()[1]
    document["policy"]["degraded"] = {PAYLOAD: 1}
    document["policy"]["comparisons"] = {PAYLOAD: 5.0}
    page = page_of(document)
    clean = page_of(make())
    tags = {element.tag for element in page.elements}
    assert tags <= {element.tag for element in clean.elements} | {"details", "summary", "small", "code"}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [e for e in page.elements for name in e.attributes if name.startswith("on")]
    assert not page.unbalanced
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "49" not in re.findall(r'"(\d+)', page.text)


def test_a_product_title_with_a_script_is_shown_as_text() -> None:
    document = loop_document()
    document["strategies"][0]["actions"][0]["product"] = "<script>alert('x')</script> crackers"
    html = render(RunReport.model_validate(document))
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert "<script>alert('x')</script> crackers" in Page(html).text


@pytest.mark.parametrize("make", [loop_document, offline_document, bare_document])
def test_the_page_needs_nothing_but_itself(make: Any) -> None:
    html = render(RunReport.model_validate(make()))
    page = Page(html)
    links = [
        e.attributes[n] or "" for e in page.elements for n in ("href", "src", "srcset") if n in e.attributes
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import|https?://", html)
    policy = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("make", [loop_document, offline_document, bare_document])
def test_the_page_is_well_formed_and_its_menu_leads_somewhere(make: Any) -> None:
    page = page_of(make())
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert not page.unbalanced
    assert len(ids) == len(set(ids))
    assert {(e.attributes["href"] or "")[1:] for e in page.all("a")} == set(ids)
    assert not re.search(r"\b(None|nan|inf|null|undefined)\b", page.text)


def test_a_large_run_stays_under_five_megabytes(tmp_path: Path) -> None:
    document = loop_document()
    document["strategies"] = [
        {**s, "strategy_id": f"{s['strategy_id']}-{n}"} for n in range(25) for s in document["strategies"]
    ]
    document["policy"]["shadow_prices"] = [{"day": n, "value": n % 7 / 3} for n in range(10_000)]
    _, path = write_report(RunReport.model_validate(document), tmp_path)
    assert path.stat().st_size < 5_000_000


def test_simulated_traffic_is_named_beside_the_measured_effect() -> None:
    simulated = page_of(loop_document()).section("effect")
    assert simulated.index("The customers were simulated") < simulated.index("Measured")
    assert "simulated market" in simulated
    document = {**loop_document(), "simulated": False}
    assert "simulated" not in page_of(document).section("effect").replace("the market is simulated", "")
    assert "Nothing here is simulated" in page_of(offline_document()).section("log")


def positions(page: Page) -> dict[str, float]:
    """Horizontal places of the shaded forecast and of the points of the first chart."""
    band = page.all("rect", "band")[0].attributes
    start = float((band["x"] or "").rstrip("%"))
    found = {"start": start, "end": start + float((band["width"] or "").rstrip("%"))}
    for tone in ("forecast", "measured", "holdout"):
        found[tone] = float((page.all("circle", tone)[0].attributes["cx"] or "").rstrip("%"))
    return found


@pytest.mark.parametrize(
    ("measured", "low", "high", "held", "said"),
    [
        (107.9, 99.2, 116.6, True, "The forecast held: $1.079 was measured, inside"),
        (120.0, 110.0, 130.0, False, "above the interval of $0.935 to $1.149"),
        (80.0, 70.0, 90.0, False, "below the interval of $0.935 to $1.149"),
    ],
)
def test_predicted_against_measured(measured: float, low: float, high: float, held: bool, said: str) -> None:
    document = loop_document()
    document["policy"] |= {"measured": measured, "low": low, "high": high, "contains": held}
    page = page_of(document)
    text = page.section("effect")
    assert said in text
    assert ("did not hold" in text) is not held
    place = positions(page)
    assert (place["start"] <= place["measured"] <= place["end"]) is held
    assert place["start"] <= place["forecast"] <= place["end"]
    assert place["holdout"] < place["forecast"]
    if not held:
        overlap = low <= 114.9 and high >= 93.5
        assert ("still overlap" if overlap else "do not overlap either") in text


def test_an_offline_run_claims_no_measurement() -> None:
    page = page_of(offline_document())
    text = page.section("effect")
    assert "no customer has seen this policy yet" in text
    assert "Measured" not in text
    assert "Left alone" not in text
    assert not page.all("rect", "band")
    assert "18.41%" in text
    assert "14.68%" in text, "the policy of the log, for comparison"
    assert not page.section("budget")
    assert not page.section("service")


def test_a_policy_that_was_not_launched_is_said_first() -> None:
    document = loop_document()
    document["policy"]["gate"] |= {"passed": False, "reason": "the lower bound is below 0"}
    page = page_of(document)
    lead = next(e.text for e in page.all("p", "lead"))
    assert "did not pass" in lead
    assert "left alone" in lead
    assert "not passed" in page.section("effect")


def test_strategies_show_their_words_and_who_wrote_them() -> None:
    page = page_of(loop_document())
    text = page.section("strategies")
    assert text.count("written by the language model") == 6
    assert text.count("from a template") == 6
    assert "今天就下单" in text
    assert [e.attributes["lang"] for e in page.all("div", "head")].count("zh") == 3
    assert "recency_days > 14 and baskets_90d <= 6" in text
    assert "20% off BAKED SNACK CRACKERS 12 OZ" in text
    assert [e.text for e in page.all("small")].count("measured 3.74%") == 3
    assert text.count("No live decision chose it") == 1


def test_the_best_of_each_column_is_bold_and_our_model_is_marked() -> None:
    page = page_of(loop_document())
    ours = page.all("tr", "ours")
    assert len(ours) == 4, "click, conversion, sales, redemption"
    assert all(e.text.startswith("effect model") for e in ours)
    best = [e.text for e in page.all("td", "best")]
    assert best.count("0.6500") == 3, "the highest AUC"
    assert best.count("0.9500") == 3, "the lowest normalised entropy"
    assert best.count("0.0012") == 3, "the lowest calibration error, of another model"
    assert "$8.07" in best
    assert "click = 0.04121 + 0.0312·email_share" in page.text


def test_the_second_round_says_what_changed() -> None:
    text = page_of(loop_document()).section("models")
    assert "effect-c20b44" in text
    assert "following effect-7f3a91" in text
    assert "63,200 rows (+23,200 against the first round)" in text
    assert "click:AUC0.69100.6950+0.0040" in re.sub(r"\s+", "", text)


def test_quarantined_rows_are_shown_with_their_reason() -> None:
    text = page_of(loop_document()).section("data")
    assert "sales_value: below minimum × 18" in text
    assert "1,469,307" in text
    assert "research and educational purposes" in text


def test_calibration_points_lie_where_said_meets_happened() -> None:
    document = loop_document()
    rows = [
        {"n": 10, "predicted": 0.1, "observed": 0.1, "low": 0.05, "high": 0.15},
        {"n": 10, "predicted": 0.2, "observed": 0.05, "low": 0.0, "high": 0.1},
    ]
    document["models"] = {"effect": document["models"]["effect"], "round2": None, "redemption": None}
    scores = document["models"]["effect"]["scores"]
    document["models"]["effect"]["scores"] = {"click": [{**scores["click"][-1], "calibration": rows}]}
    page = page_of(document)
    line = page.all("line", "diagonal")[0].attributes
    dots = [e.attributes for e in page.all("circle", "ours")]

    def height_of_diagonal(x: float) -> float:
        x1, x2 = (float((line[k] or "").rstrip("%")) for k in ("x1", "x2"))
        y1, y2 = (float(line[k] or "") for k in ("y1", "y2"))
        return y1 + (y2 - y1) * (x - x1) / (x2 - x1)

    places = [(float((dot["cx"] or "").rstrip("%")), float(dot["cy"] or "")) for dot in dots]
    assert places[0][1] == pytest.approx(height_of_diagonal(places[0][0]), abs=0.1)
    assert places[1][1] > height_of_diagonal(places[1][0]) + 20, "less happened than was said: below the line"


def test_the_models_are_shown_with_their_segments_and_the_verdict() -> None:
    document = loop_document()
    text = " ".join(page_of(document).text.split())
    assert "Calibration by segment" in text
    assert "email" in text
    assert re.search(r"8\.1%9\.3%8\.1%", text), "happened, said before, said after"
    assert "It serves from now on: not worse: click: log loss 0.1601." in text
    document["models"]["round2"]["promotion"] = {"passed": False, "reason": "may be worse: click"}
    assert "It does not serve: may be worse: click." in " ".join(page_of(document).text.split())
    del document["models"]["effect"]["segments"], document["models"]["round2"]["segments"]
    assert "Calibration by segment" not in page_of(document).text
