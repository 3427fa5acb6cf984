"""Small builders for Grafana's dashboard JSON; every one returns plain data and holds no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

COLUMNS = 24  # width of Grafana's grid
PANEL_HEIGHT = 8
ROW_HEIGHT = 1
# The dashboard's own variable, so that one JSON fits every installation.
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` may name labels, as in `{{surface}}`."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: a `timeseries` or a `stat`.

    unit: Grafana's unit id, e.g. `reqps`, `ms`, `percentunit`, `short`
    width: grid columns, 1 to 24
    description: what the reader should make of it, shown behind the panel's (i)
    """

    title: str
    queries: tuple[Query, ...]
    unit: str
    description: str
    width: int = 8
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


def target(query: Query, position: int) -> Json:
    """One query of a panel; `position` gives its letter, A for 0."""
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": True,
        "refId": chr(ord("A") + position),
    }


def panel_json(panel: Panel, panel_id: int, x: int, y: int) -> Json:
    """A panel at column `x` and line `y` of the grid."""
    return {
        "id": panel_id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _options(panel.kind),
        "targets": [target(query, position) for position, query in enumerate(panel.queries)],
    }


def _options(kind: str) -> Json:
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def row_json(title: str, panel_id: int, y: int) -> Json:
    """The heading of a row, open."""
    grid = {"x": 0, "y": y, "w": COLUMNS, "h": ROW_HEIGHT}
    return {"id": panel_id, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": grid}


def lay_out(rows: Sequence[Row]) -> list[Json]:
    """Rows one below the other, panels from left to right; ids count from 1 in reading order.

    Raises ValueError where the panels of a row are wider than the grid.
    """
    laid: list[Json] = []
    y = 0
    for row in rows:
        total = sum(panel.width for panel in row.panels)
        if total > COLUMNS:
            raise ValueError(
                f"row {row.title!r}: its panels are {total} columns wide and the grid has {COLUMNS}; "
                "make them narrower"
            )
        laid.append(row_json(row.title, len(laid) + 1, y))
        x = 0
        for panel in row.panels:
            laid.append(panel_json(panel, len(laid) + 1, x, y + ROW_HEIGHT))
            x += panel.width
        y += ROW_HEIGHT + PANEL_HEIGHT
    return laid


def datasource_variable() -> Json:
    """Which Prometheus to ask."""
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }


def label_variable(name: str, heading: str, metric: str, label: str) -> Json:
    """Values of a label as a choice of several; `All` also matches series that lack the label."""
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "label": heading,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    tags: Sequence[str],
    variables: Sequence[Json],
    rows: Sequence[Row],
) -> Json:
    """A whole dashboard, as `POST /api/dashboards/db` and a provisioning file take it.

    uid: stable, 1 to 40 letters, digits, `-` or `_`; publishing again replaces the dashboard of that uid.
    """
    if not 1 <= len(uid) <= 40 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in uid):
        raise ValueError(f"uid: {uid!r} is not 1 to 40 letters, digits, - or _; choose another")
    return {
        "id": None,  # Grafana's own number, given by each installation
        "uid": uid,
        "title": title,
        "description": description,
        "tags": list(tags),
        "schemaVersion": 39,
        "version": 0,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "panels": lay_out(rows),
    }
