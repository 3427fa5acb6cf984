"""The dashboard: stable, complete, laid out without overlaps, and about series that exist."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.observe import DASHBOARD_UID, dashboard_json, decisions_dashboard
from qiance.observe.panels import COLUMNS, Panel, Query, Row, dashboard, lay_out

ROOT = Path(__file__).resolve().parents[2]
# Name → labels of Ray Serve's own series, as a running Ray 2.60 exports them.
RAY_SERIES = {
    "ray_serve_num_http_requests_total": {"application", "method", "route", "status_code"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment", "replica"},
    "ray_serve_deployment_queued_queries": {"application", "deployment"},
    "ray_serve_deployment_processing_latency_ms_bucket": {
        "application",
        "deployment",
        "replica",
        "route",
        "le",
    },
    "ray_serve_replica_processing_queries": {"application", "deployment", "replica"},
    "ray_serve_autoscaling_target_replicas": {"application", "deployment"},
}


def _our_series() -> dict[str, set[str]]:
    """Series of serve/metrics.py, read from its source: name with Ray's prefix → labels."""
    tree = ast.parse((ROOT / "serve" / "metrics.py").read_text(encoding="utf-8"))
    found = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in ("Counter", "Gauge", "Histogram"):
            name = f"ray_{ast.literal_eval(call.args[0])}"
            labels = set(ast.literal_eval(call.args[-1]))
            histogram = call.func.id == "Histogram"
            found[f"{name}_bucket" if histogram else name] = labels | ({"le"} if histogram else set())
    return found


def _queries() -> list[dict[str, Any]]:
    return [target for panel in decisions_dashboard()["panels"] for target in panel.get("targets", ())]


def test_every_series_and_label_exists() -> None:
    known = {**RAY_SERIES, **_our_series()}
    used = set()
    for target in _queries():
        expr = target["expr"]
        names = re.findall(r"\b(ray_\w+)\{", expr)
        assert names, expr
        assert set(names) <= known.keys(), expr
        by = {part for group in re.findall(r"by \(([^)]*)\)", expr) for part in group.split(", ")}
        conditions = set(re.findall(r"(\w+)=~?\"", expr)) - {"ray_io_cluster"}
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert by | conditions <= known[names[0]], expr
        assert legend <= by, f"{expr}: the legend names a label that is summed away"
        used |= set(names)
    assert _our_series().keys() <= used, "a metric of ours is on no panel"


def test_every_expression_is_balanced_and_follows_the_chosen_cluster() -> None:
    for target in _queries():
        expr = target["expr"]
        for opening, closing in ("()", "{}", "[]"):
            assert expr.count(opening) == expr.count(closing), expr
        assert expr.count('ray_io_cluster=~"$cluster"') == expr.count("{"), expr


def test_what_was_asked_for_is_on_it() -> None:
    titles = " | ".join(panel["title"] for panel in decisions_dashboard()["panels"])
    for part in (
        "Decisions per second",
        "latency",
        "Refusals",
        "Degraded",
        "Outcomes",
        "spent",
        "Shadow",
        "Replicas",
        "Queued",
    ):
        assert part in titles


def test_it_is_the_same_every_time_and_in_the_repository() -> None:
    text = dashboard_json(decisions_dashboard())
    assert text == dashboard_json(decisions_dashboard())
    kept = (ROOT / "k8s/components/monitoring/decisions.json").read_text(encoding="utf-8")
    assert kept == text, "run: qiance dashboards show --out k8s/components/monitoring/decisions.json"


def test_it_has_what_grafana_needs() -> None:
    board = json.loads(dashboard_json(decisions_dashboard()))
    assert board["uid"] == DASHBOARD_UID == "qiance-decisions"
    assert board["id"] is None, "a number belongs to one Grafana only"
    assert isinstance(board["schemaVersion"], int)
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "cluster"]
    used = {json.dumps(t["datasource"]) for t in _queries()}
    assert used == {'{"type": "prometheus", "uid": "${datasource}"}'}
    for panel in board["panels"]:
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert len(letters) == len(set(letters))
        assert panel["type"] in ("row", "timeseries", "stat")
        assert panel["type"] == "row" or panel["description"].endswith(".")


_panels = st.lists(st.integers(1, 8), min_size=1, max_size=3).map(
    lambda widths: tuple(Panel("p", (Query("up", "x"),), "short", "d.", width=w) for w in widths)
)


@given(st.lists(st.builds(Row, st.just("row"), _panels), min_size=1, max_size=6))
def test_panels_stay_on_the_grid_and_never_overlap(rows: list[Row]) -> None:
    laid = lay_out(rows)
    assert [panel["id"] for panel in laid] == list(range(1, len(laid) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in laid:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert all(0 <= x < COLUMNS for x, _ in cells)
        assert not cells & taken
        taken |= cells


def test_a_row_that_is_too_wide_is_refused() -> None:
    panels = tuple(Panel("p", (), "short", "d.", width=9) for _ in range(3))
    with pytest.raises(ValueError, match="27 columns wide and the grid has 24"):
        lay_out([Row("wide", panels)])


@pytest.mark.parametrize("uid", ["", "with space", "a" * 41, "größe", "a/b"])
def test_a_uid_that_grafana_would_refuse_is_refused(uid: str) -> None:
    with pytest.raises(ValueError, match="uid: "):
        dashboard(uid, "t", "d", (), (), ())
