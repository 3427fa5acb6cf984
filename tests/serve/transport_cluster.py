"""A process with a cluster and the small application:

    python -m tests.serve.transport_cluster PROXY HOST OPTIONS_OF_THE_INGRESS_IN_JSON

Says where it is in one line of JSON, and ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from serve.launch import LocalCluster, free_port
from serve.transport import Wanted


def small_config(host: str, port: int, front: Mapping[str, Any]) -> dict[str, Any]:
    """The Serve configuration of `transport_app`; front: more options of its ingress."""
    limits = {"max_ongoing_requests": 4, "max_queued_requests": 2}
    refusal = {"backpressure_config": {"status_code": 503, "retry_after_s": 1}}
    small = {"graceful_shutdown_timeout_s": 2, "ray_actor_options": {"num_cpus": 0.1}}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": 30},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "small",
                "route_prefix": "/",
                "import_path": "tests.serve.transport_app:build",
                "deployments": [
                    {"name": "Front", **limits, **refusal, **small, **front},
                    {"name": "Other", **small},
                ],
            }
        ],
    }


def main(proxy: Wanted, host: str, front: str) -> None:
    """Serve until standard input ends."""
    port = free_port(host)
    with LocalCluster(proxy=proxy) as cluster:
        url = cluster.serve(small_config(host, port, json.loads(front)))
        print(json.dumps({"url": url, "port": port, "folder": cluster._temp_dir}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
