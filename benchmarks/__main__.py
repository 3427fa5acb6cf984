"""Run every benchmark in full and write docs/benchmarks.md: `python -m benchmarks`.

A benchmark is a module here with a function `main`, run as `python -m benchmarks.NAME`. It prints one JSON
object a line to standard output, such as `{"measure": "decisions", "value": 412.0, "unit": "1/s"}`; other
lines are for people. With `--smoke` it does the same in seconds, on little data, to show that it still works.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
TIMEOUT_S = 3_600.0
_MAIN = re.compile(r"^def main\(", re.M)
HEAD = """# Benchmarks

Written by `make benchmarks`, which runs every module of `benchmarks/` in full. `make bench-NAME` runs one.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark printed: its JSON lines in order, and how long it took."""

    name: str
    rows: tuple[Mapping[str, Any], ...]
    seconds: float


def names(folder: Path) -> list[str]:
    """Modules in `folder` that are benchmarks: those with a `main`, the packages' own files left out."""
    files = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))
    return [path.stem for path in files if _MAIN.search(path.read_text(encoding="utf-8"))]


def run(name: str, arguments: Sequence[str] = ()) -> Result:
    """Run one benchmark in a process of its own; RuntimeError if it fails or prints no figure."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}: ended with {done.returncode}; run `python -m benchmarks.{name}`")
    rows = parse(done.stdout)
    if not rows:
        raise RuntimeError(f"{name}: printed no JSON line; print at least one figure")
    return Result(name, rows, time.monotonic() - started)


def parse(text: str) -> tuple[dict[str, Any], ...]:
    """The lines of `text` that are JSON objects."""
    return tuple(json.loads(line) for line in text.splitlines() if line.startswith("{"))


def page(results: Sequence[Result]) -> str:
    """The document: a table per benchmark."""
    if not results:
        return f"{HEAD}\nNo benchmark has landed yet, so there is no figure to show.\n"
    return "\n".join([HEAD, f"{_machine()}\n", *(_section(result) for result in results)])


def _section(result: Result) -> str:
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    lines = [
        f"## {result.name}\n",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in result.rows),
        f"\nTook {result.seconds:.0f} s.\n",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")


def _machine() -> str:
    today = datetime.now(UTC).date().isoformat()
    python = platform.python_version()
    return f"Measured on {today} on {os.cpu_count()} cores, {platform.machine()}, Python {python}."


def main() -> None:
    """Run all, then write the page; nothing is written if one fails."""
    found = names(Path(__file__).parent)
    results = []
    for name in found:
        print(f"==> {name}", flush=True)
        results.append(run(name))
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"{len(results)} benchmarks; wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
