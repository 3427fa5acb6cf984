"""Start and stop the application on one machine, from its Serve YAML."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from serve.loopback import prepare

EMBEDDED = Path(__file__).parent / "config" / "embedded.yaml"
START_TIMEOUT_S = 180.0
LOGICAL_CPUS = 8  # training and serving share two real cores by turns; Ray only counts these
Progress = Callable[[str], None]


class LaunchError(RuntimeError):
    """The application did not come up; the message has Ray's reason."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def read_config(path: Path, host: str, port: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """The Serve YAML with host, port and the application's arguments filled in."""
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["http_options"] = {**config.get("http_options", {}), "host": host, "port": port}
    application = config["applications"][0]
    application["args"] = {**application.get("args", {}), **args}
    return config


class LocalCluster:
    """One Ray instance of ours on this machine, every socket on loopback; use as a context manager.

    With an `address` it attaches to that cluster instead, and leaves it as it is at the end.
    """

    def __init__(self, loopback: bool = True, address: str | None = None) -> None:
        self._loopback, self._address = loopback and address is None, address
        # Short: Ray puts Unix sockets below it, and their paths may have 107 bytes.
        self._temp_dir = tempfile.mkdtemp(prefix="qiance-")
        self._applications: list[str] = []

    def __enter__(self) -> LocalCluster:
        if self._loopback:
            prepare(os.environ)
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        import ray

        if self._address is not None:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            return self
        hook = {"worker_process_setup_hook": "serve.loopback.bind_replicas"} if self._loopback else {}
        ray.init(
            num_cpus=LOGICAL_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            _temp_dir=self._temp_dir,
            runtime_env=hook,
        )
        return self

    def serve(self, config: Mapping[str, Any], progress: Progress | None = None) -> str:
        """Deploy the application and wait until it is healthy; its base URL."""
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        schema = ServeDeploySchema.model_validate(dict(config))
        host, port = schema.http_options.host, schema.http_options.port
        _check_port(host, port)
        options = {"host": host, "port": port, "request_timeout_s": schema.http_options.request_timeout_s}
        serve.start(proxy_location=schema.proxy_location, http_options=options)
        self._applications = [application.name for application in schema.applications]
        _get_global_client().deploy_apps(schema)
        _wait(schema.applications[0], progress)
        return f"http://{host}:{port}"

    def stop_serving(self) -> None:
        """Drain the application and take it down; Ray stays."""
        for name in self._applications:
            from ray import serve

            serve.delete(name)
        self._applications = []

    def __exit__(self, *_: object) -> None:
        import ray

        try:
            self.stop_serving()
        finally:
            ray.shutdown()
            shutil.rmtree(self._temp_dir, ignore_errors=True)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"serve.port: {host}:{port} cannot be used ({error.strerror}); choose another"
            ) from None


def _wait(application: Any, progress: Progress | None) -> None:
    from ray import serve

    expected = {deployment.name for deployment in application.deployments}
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        status = serve.status().applications.get(application.name)
        if status is not None:
            ready = {name for name, d in status.deployments.items() if _is_ready(d)}
            if progress:
                progress(f"{len(ready & expected)} of {len(expected)} deployments ready")
            # The application counts as running before a slow replica has been made for the first time.
            if status.status == "RUNNING" and expected <= ready:
                return
            if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise LaunchError(f"the application did not start: {_why(status)}")
        time.sleep(0.2)
    raise LaunchError(f"the application did not start within {START_TIMEOUT_S:.0f} s")


def _is_ready(deployment: Any) -> bool:
    return bool(deployment.status == "HEALTHY" and deployment.replica_states.get("RUNNING", 0) >= 1)


def _why(status: Any) -> str:
    messages = [status.message, *(d.message for d in status.deployments.values() if d.message)]
    return " | ".join(filter(None, messages))[:2_000]
