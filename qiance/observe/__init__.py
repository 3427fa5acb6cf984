"""What people look at while the loop runs: dashboards built by code, and the way they reach Grafana."""

from __future__ import annotations

from qiance.observe.dashboards import DASHBOARD_UID, dashboard_json, decisions_dashboard
from qiance.observe.grafana import GrafanaError, Published, push_dashboard

__all__ = [
    "DASHBOARD_UID",
    "GrafanaError",
    "Published",
    "dashboard_json",
    "decisions_dashboard",
    "push_dashboard",
]
