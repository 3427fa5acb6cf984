"""The dashboard of the decision loop: is it answering, is it healthy, where does the money stand?

Series that begin with `ray_qiance_` are ours (`serve.metrics`, exported through Ray, which puts `ray_`
in front); the others are Ray Serve's own.
"""

from __future__ import annotations

import json

from qiance.observe.panels import (
    Json,
    Panel,
    Query,
    Row,
    dashboard,
    datasource_variable,
    label_variable,
)

DASHBOARD_UID = "qiance-decisions"
# `ray_io_cluster` is put on by the PodMonitor; a cluster scraped without it still matches `All`.
CLUSTER = 'ray_io_cluster=~"$cluster"'
WINDOW = "[$__rate_interval]"
# Ray forgets a gauge that is not set again within two of its report intervals; bridge short gaps.
GAUGE_WINDOW = "[5m]"


def rate_by(series: str, labels: str, condition: str = "") -> str:
    """Events per second of a counter, summed over all but `labels`."""
    return f"sum by ({labels}) (rate({_select(series, condition)}{WINDOW}))"


def share(series: str, condition: str) -> str:
    """The fraction of a counter's events that meet `condition`, in [0, 1]; nothing while there are none."""
    return f"sum(rate({_select(series, condition)}{WINDOW})) / (sum(rate({_select(series)}{WINDOW})) > 0)"


def quantile(q: float, histogram: str, labels: str = "", condition: str = "") -> str:
    """The `q` quantile of a histogram, in its unit."""
    by = f"{labels}, le" if labels else "le"
    return (
        f"histogram_quantile({q}, sum by ({by}) (rate({_select(histogram + '_bucket', condition)}{WINDOW})))"
    )


def gauge_by(series: str, labels: str) -> str:
    """The last value of a gauge that one process publishes; a handover shows the larger value."""
    return f"max by ({labels}) (last_over_time({_select(series)}{GAUGE_WINDOW}))"


def sum_by(series: str, labels: str) -> str:
    """A gauge that every replica publishes for itself, added up."""
    return f"sum by ({labels}) ({_select(series)})"


def _select(series: str, condition: str = "") -> str:
    return f"{series}{{{', '.join(filter(None, (CLUSTER, condition)))}}}"


def _decisions() -> Row:
    latency = "ray_qiance_decision_latency_ms"
    return Row(
        "Decisions",
        (
            Panel(
                "Decisions per second",
                (Query(rate_by("ray_qiance_decisions_total", "surface"), "{{surface}}"),),
                "reqps",
                "Answered decisions by surface.",
            ),
            Panel(
                "Decision latency",
                (Query(quantile(0.5, latency), "p50"), Query(quantile(0.99, latency), "p99")),
                "ms",
                "From the request at the gateway to the durable log record, without network and proxy.",
            ),
            Panel(
                "Holdout share",
                (Query(share("ray_qiance_decisions_total", 'holdout="true"'), "holdout"),),
                "percentunit",
                "Users who get control on purpose. A drift away from serve.holdout biases the measurement.",
            ),
        ),
    )


def _health() -> Row:
    refused = 'application="qiance", status_code=~"4..|5.."'
    return Row(
        "Refusals and degraded answers",
        (
            Panel(
                "Refusals per second",
                (
                    Query(
                        rate_by("ray_serve_num_http_requests_total", "status_code", refused),
                        "{{status_code}}",
                    ),
                ),
                "reqps",
                "429 and 503 are overload, 422 is bad input, other 5xx are faults.",
            ),
            Panel(
                "Degraded answers by part",
                (Query(rate_by("ray_qiance_degraded_total", "part"), "{{part}}"),),
                "reqps",
                "Answers given while a part was down or stale. `ledger`: no money is spent until it is back.",
            ),
            Panel(
                "Outcomes per second",
                (Query(rate_by("ray_qiance_outcomes_total", "result"), "{{result}}"),),
                "ops",
                "Accepted outcomes are durable. Many duplicates: a sender repeats without need.",
            ),
        ),
    )


def _money() -> Row:
    spent, cap = gauge_by("ray_qiance_budget_spent", "budget"), gauge_by("ray_qiance_budget_cap", "budget")
    return Row(
        "Budget",
        (
            Panel(
                "Budget spent against cap",
                (Query(spent, "{{budget}} spent"), Query(cap, "{{budget}} cap")),
                "short",
                "Minor units (cents) of the tenant's currency.",
            ),
            Panel(
                "Share of budget spent",
                (Query(f"{spent} / ({cap} > 0)", "{{budget}}"),),
                "percentunit",
                "1 is the cap: above it money was overspent.",
                kind="stat",
            ),
            Panel(
                "Shadow price",
                (Query(gauge_by("ray_qiance_shadow_price", "budget"), "{{budget}}"),),
                "short",
                "Value given up per minor unit of budget. It rises when money runs out too soon.",
            ),
        ),
    )


def _deployments() -> Row:
    by = "deployment"
    latency = "ray_serve_deployment_processing_latency_ms"
    return Row(
        "Deployments",
        (
            Panel(
                "Replicas",
                (
                    Query(sum_by("ray_serve_deployment_replica_healthy", by), "{{deployment}} healthy"),
                    Query(gauge_by("ray_serve_autoscaling_target_replicas", by), "{{deployment}} wanted"),
                ),
                "short",
                "Healthy replicas below the wanted number: nodes are missing or replicas crash.",
            ),
            Panel(
                "Queued and running requests",
                (
                    Query(sum_by("ray_serve_deployment_queued_queries", by), "{{deployment}} queued"),
                    Query(sum_by("ray_serve_replica_processing_queries", by), "{{deployment}} running"),
                ),
                "short",
                "A queue that stays is overload: callers get 503 with Retry-After.",
            ),
            Panel(
                "Processing latency p99",
                (Query(quantile(0.99, latency, by), "{{deployment}}"),),
                "ms",
                "Time inside a replica, by deployment.",
            ),
        ),
    )


def decisions_dashboard() -> Json:
    """The dashboard as plain data; the same call gives the same result."""
    cluster = label_variable(
        "cluster", "Ray cluster", "ray_serve_deployment_replica_healthy", "ray_io_cluster"
    )
    return dashboard(
        uid=DASHBOARD_UID,
        title="Qiance: decisions",
        description="Decisions, refusals, budget and replicas of the decision loop.",
        tags=("qiance",),
        variables=(datasource_variable(), cluster),
        rows=(_decisions(), _health(), _money(), _deployments()),
    )


def dashboard_json(content: Json) -> str:
    """`content` as text, the same on every machine: two spaces, keys in building order, a final newline."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
