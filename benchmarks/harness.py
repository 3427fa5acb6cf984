"""What every benchmark shares: modes, the result line, timing in turns, peak memory, peers' environments.

A benchmark is a module with a `main` that does, in short::

    def main(argv: Sequence[str] | None = None) -> None:
        args = parse(argv, "What is measured, and against what.")
        rows = args.pick(smoke=1_000, quick=50_000, full=5_000_000)
        times = alternate({"ours": lambda: ours(rows), "peer": lambda: peer(rows)}, repeats=5)
        mine, theirs = median_of(times["ours"]), median_of(times["peer"])
        figures = {"rows_per_s": rows / mine, "vs_peer": theirs / mine}
        emit("name", args, figures, {"peer": {"rows_per_s": rows / theirs}}, {"rows": rows, "repeats": 5})

This module has no `main`, so it is no benchmark itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("ray", "feast", "torch", "numpy")
KEYS = ("benchmark", "mode", "figures", "peers", "protocol", "seed")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLACE = re.compile(r"\w+://\S+|(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)+")
_MIB = 2.0**20
T = TypeVar("T")


class Mode(StrEnum):
    """How much is run: `smoke` shows that it runs, `quick` is reported, `full` is judged."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Args:
    """What the command line asked for."""

    mode: Mode
    seed: int

    def pick(self, *, smoke: T, quick: T, full: T) -> T:
        """The value for this mode."""
        return {Mode.SMOKE: smoke, Mode.QUICK: quick, Mode.FULL: full}[self.mode]


def parse(argv: Sequence[str] | None, description: str) -> Args:
    """Read `[--smoke | --quick] [--seed N]`; `None` reads the process's own arguments."""
    parser = argparse.ArgumentParser(
        prog=_program(), description=description, epilog="The last line of stdout is one JSON object."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="show that it runs (at most 30 s)")
    size.add_argument("--quick", action="store_true", help="on subsets (at most 5 min); reported, not judged")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    found = parser.parse_args(argv)
    mode = Mode.SMOKE if found.smoke else Mode.QUICK if found.quick else Mode.FULL
    return Args(mode, found.seed)


def _program() -> str | None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec and spec.name.startswith("benchmarks.") else None


def emit(
    name: str,
    args: Args,
    figures: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, Any] | None],
    protocol: Mapping[str, Any],
) -> None:
    """Print the result as the last line of stdout; call it once, at the end.

    `figures` may be nested; a figure that could not be measured is None. A peer that could not be had is
    None, and `protocol["missing"]` has the reason under its name. Versions and the machine are added to
    the protocol. ValueError for NaN, infinity, a peer without a reason, or a value that JSON has no word for.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"benchmark: {name!r} is no module name; use lower case, digits and _")
    missing = protocol.get("missing", {})
    for peer, own in peers.items():
        if own is None and not missing.get(peer):
            raise ValueError(f"peers.{peer}: None needs its reason in protocol['missing'][{peer!r}]")
    result = {
        "benchmark": name,
        "mode": str(args.mode),
        "figures": plain(figures, "figures"),
        "peers": plain(peers, "peers"),
        "protocol": plain({**protocol, **environment()}, "protocol"),
        "seed": args.seed,
    }
    sys.stderr.flush()
    print(json.dumps(result, ensure_ascii=False, allow_nan=False), flush=True)


def plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types, numpy's scalars and arrays included; ValueError names what cannot be."""
    if isinstance(value, Mapping):
        return {str(key): plain(part, f"{where}.{key}") for key, part in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(part, f"{where}[{place}]") for place, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is no figure; use None where nothing was measured")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    raise ValueError(f"{where}: {type(value).__name__} cannot be written as JSON; use a number or a string")


def environment() -> dict[str, Any]:
    """Versions as installed, cores and machine: what a figure depends on beside the protocol."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS}},
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "machine": _machine(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return f"{platform.system()} {platform.machine()}{', ' + model[1].strip() if model else ''}"


def log(text: str) -> None:
    """Tell people how it goes, on stderr: stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def median_of(times: Sequence[float]) -> float:
    """The median; ValueError if there is none."""
    if not times:
        raise ValueError("times: empty, so it has no median; measure at least once")
    return float(statistics.median(times))


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` per function, run in turns (A B A B) so that drift hits all alike.

    Warm up before: the first call counts here.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} measures nothing; use at least 1")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return times


class Peak:
    """The largest proportional set size seen of a process and its descendants, in MiB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.mib = 0.0
        self.samples = 0

    def sample(self) -> float:
        """Measure once; MiB now. Processes that end meanwhile count as nothing."""
        try:
            tree = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        now = sum(_pss_bytes(process) for process in tree) / _MIB
        self.mib = max(self.mib, now)
        self.samples += 1
        return now

    def watch(self, stop: threading.Event, period_s: float) -> None:
        """Sample until told to stop."""
        while not stop.wait(period_s):
            self.sample()


@contextmanager
def peak_memory(pid: int | None = None, hertz: float = 20.0) -> Iterator[Peak]:
    """Sample the memory of a process tree (default: our own) in a thread; the yielded `.mib` is the peak.

    Proportional set size counts a page that n processes share as 1/n in each, so a tree's sum is what the
    tree takes. Where the kernel does not give it (not Linux), resident size is used, which counts shared
    pages more than once.
    """
    peak, stop = Peak(os.getpid() if pid is None else pid), threading.Event()
    peak.sample()
    thread = threading.Thread(target=peak.watch, args=(stop, 1.0 / hertz), name="peak-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.sample()


def _pss_bytes(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return _rss_bytes(process)
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


@dataclass(frozen=True, slots=True)
class PeerEnvironment:
    """Where a peer with other pins than ours runs: `python`, or None and the `reason`."""

    python: Path | None
    reason: str = ""

    def missing(self, name: str) -> dict[str, str]:
        """What `protocol["missing"]` says of this peer: nothing if it is there."""
        return {} if self.python else {name: self.reason}


def peer_environment(name: str, requirements: Sequence[str], root: Path = ROOT) -> PeerEnvironment:
    """A virtual environment under .bench/`name` with `requirements`, made by uv once and kept.

    It is made anew when the requirements or our Python change. Pin them: `["obp==0.5.7"]`. `--smoke` belongs
    to CI and should not install: leave such peers out there, as None with that reason.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"peer: {name!r} is no folder name; use lower case, digits and _")
    folder = root / ".bench" / name
    python, stamp = folder / "bin" / "python", folder / ".requirements"
    key = hashlib.sha256("\n".join([sys.version, *sorted(requirements)]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == key:
        return PeerEnvironment(python)
    shutil.rmtree(folder, ignore_errors=True)
    log(f"==> installing {name} into .bench/{name}: {' '.join(requirements)}")
    reason = _install(folder, python, requirements)
    if reason:
        shutil.rmtree(folder, ignore_errors=True)
        return PeerEnvironment(None, reason)
    stamp.write_text(key)
    return PeerEnvironment(python)


def _install(folder: Path, python: Path, requirements: Sequence[str]) -> str:
    """Why it could not be installed; empty if it was."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is None:
        return "uv was not found; run `make setup`"
    # Compiled once here: where Python may not write bytecode, a peer would compile at every start.
    options = ["--quiet", "--compile-bytecode", "--python", str(python), *_find_links()]
    install = [uv, "pip", "install", *options, *requirements]
    for command in ([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return _reason(done.stderr) or f"uv ended with {done.returncode}"
    return ""


def _reason(text: str) -> str:
    """uv's message on one line, without addresses and paths: results are published."""
    return re.sub(r"[\s×╰─▶│]+", " ", _PLACE.sub("…", text)).strip()[-400:]


def _find_links() -> list[str]:
    """Folders of wheels that pip is configured with: uv does not read pip's settings."""
    for key in ("global.find-links", ":env:.find-links"):
        command = [sys.executable, "-m", "pip", "config", "get", key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return [part for folder in done.stdout.split() for part in ("--find-links", folder)]
    return []
