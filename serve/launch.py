"""Start and stop the application on one machine, from its Serve YAML."""

from __future__ import annotations

import contextlib
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
from serve.transport import Transport, Wanted, environment_of, open_transport

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "config" / "embedded.yaml"
START_TIMEOUT_S = 180.0
NOT_A_REPLICA = (502, 503, 504)  # what a proxy says by itself
LOGICAL_CPUS = 8  # training and serving share two real cores by turns; Ray only counts these
Progress = Callable[[str], None]


class LaunchError(RuntimeError):
    """The application did not come up; the message has Ray's reason."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago."""
    family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.bind(address)
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

    Only the address to serve at (`http_options.host`) may be another one. proxy: the setting `serve.proxy`.
    With an `address` it attaches to that cluster instead, and leaves it as it is at the end.
    """

    def __init__(self, address: str | None = None, proxy: Wanted = "auto") -> None:
        self._address, self._proxy = address, proxy
        # Short: Ray puts Unix sockets below it, and their paths may have 107 bytes.
        self._temp_dir = tempfile.mkdtemp(prefix="qiance-")
        self._applications: list[str] = []
        self._open = contextlib.ExitStack()
        self.transport: Transport | None = None

    def __enter__(self) -> LocalCluster:
        with contextlib.ExitStack() as opened:
            opened.callback(shutil.rmtree, self._temp_dir, ignore_errors=True)
            self._start(opened)
            self._open = opened.pop_all()
        return self

    def _start(self, opened: contextlib.ExitStack) -> None:
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        if self._address is None:
            prepare(os.environ)
            self.transport = opened.enter_context(open_transport(self._proxy, Path(self._temp_dir) / "h"))
            opened.enter_context(environment_of(self.transport, os.environ))
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        opened.callback(ray.shutdown)
        if self._address is not None:
            ray.init(address=self._address, **quiet)
            return
        ray.init(
            num_cpus=LOGICAL_CPUS,
            include_dashboard=False,
            configure_logging=True,
            _temp_dir=self._temp_dir,
            runtime_env={"worker_process_setup_hook": "serve.loopback.bind_replicas"},
            **quiet,
        )

    def serve(self, config: Mapping[str, Any], progress: Progress | None = None) -> str:
        """Deploy the application and wait until it is healthy; its base URL."""
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        schema = ServeDeploySchema.model_validate(dict(config))
        host, port = schema.http_options.host, schema.http_options.port
        check_port(host, port)
        options = {"port": port, "request_timeout_s": schema.http_options.request_timeout_s}
        serve.start(
            proxy_location=schema.proxy_location, http_options={"host": self._listen(host, port), **options}
        )
        self._applications = [application.name for application in schema.applications]
        _get_global_client().deploy_apps(schema)
        application = schema.applications[0]
        deadline = time.monotonic() + START_TIMEOUT_S
        _wait(application, progress, deadline)
        if self._address is None:  # an attached cluster's proxies may be out of this machine's reach
            _wait_for_answer(_url(_reachable(host), port) + application.route_prefix, deadline)
        return _url(host, port)

    def _listen(self, host: str, port: int) -> str:
        if self.transport is None:
            return host
        if self.transport.why and self._proxy == "auto":
            logger.warning("serve.proxy: Ray Serve's own proxy is used, since %s", self.transport.why)
        return self.transport.listen_at(host, port)

    def stop_serving(self) -> None:
        """Drain the application and take it down; Ray stays."""
        for name in self._applications:
            from ray import serve

            serve.delete(name)
        self._applications = []

    def __exit__(self, *_: object) -> None:
        with self._open:
            self.stop_serving()


def check_port(host: str, port: int) -> None:
    """Raises LaunchError where nobody can listen at `host`:`port`."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LaunchError(
            f"serve.port: {host}:{port} cannot be used ({error.strerror}); choose another"
        ) from None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reachable(host: str) -> str:
    """Where this machine reaches a server at `host`: "every address" is none to call."""
    if not host.strip("0.:"):
        return "::1" if ":" in host else "127.0.0.1"
    return host


def _wait_for_answer(url: str, deadline: float) -> None:
    """Until a replica answers through the proxy, whatever it says: HAProxy hears of them after Serve does."""
    import httpx

    said = "nothing listens there"
    with httpx.Client(timeout=5, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                status = http.get(url).status_code
            except httpx.TransportError as error:
                said = str(error)
            else:
                if status not in NOT_A_REPLICA:
                    return
                said = f"status {status}"
            time.sleep(0.05)
    raise LaunchError(
        f"the application runs, but {url} did not answer within {START_TIMEOUT_S:.0f} s: {said}"
    )


def _wait(application: Any, progress: Progress | None, deadline: float) -> None:
    from ray import serve

    expected, why = {deployment.name for deployment in application.deployments}, ""
    while time.monotonic() < deadline:
        status = serve.status().applications.get(application.name)
        if status is not None:
            why = _why(status)
            ready = {name for name, d in status.deployments.items() if _is_ready(d)}
            if progress:
                progress(f"{len(ready & expected)} of {len(expected)} deployments ready")
            # The application counts as running before a slow replica has been made for the first time.
            if status.status == "RUNNING" and expected <= ready:
                return
            if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise LaunchError(f"the application did not start: {why}")
        time.sleep(0.2)
    raise LaunchError(f"the application did not start within {START_TIMEOUT_S:.0f} s: {why}")


def _is_ready(deployment: Any) -> bool:
    return bool(deployment.status == "HEALTHY" and deployment.replica_states.get("RUNNING", 0) >= 1)


def _why(status: Any) -> str:
    messages = [status.message, *(d.message for d in status.deployments.values() if d.message)]
    return " | ".join(filter(None, messages))[:2_000]
