"""Run every benchmark in full and write docs/benchmarks.md: `python -m benchmarks [--only NAME ...]`.

A benchmark is a module here with a function `main`, run as `python -m benchmarks.NAME [--smoke | --quick]
[--seed N]`. The last line that it prints to standard output is one JSON object, made by `harness.emit`:
`{"benchmark": ..., "mode": ..., "figures": {...}, "peers": {...}, "protocol": {...}, "seed": ...}`.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.harness import ROOT
from benchmarks.page import CHARTS, Result, merge, picture, read_result

FOLDER = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "benchmarks.md"
TIMEOUT_S = 9_000.0  # against what hangs: on a busy machine one has taken two hours
_MAIN = re.compile(r"^def main\(", re.M)


def names(folder: Path) -> list[str]:
    """Modules in `folder` that are benchmarks: those with a `main`, the package's own files left out."""
    files = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))
    return [path.stem for path in files if _MAIN.search(path.read_text(encoding="utf-8"))]


def run(name: str, arguments: Sequence[str] = ()) -> Result:
    """Run one benchmark in a process of its own; RuntimeError if it fails, hangs or prints no result."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    try:
        code, stdout = run_to_end(command, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{name}: still running after {TIMEOUT_S:.0f} s; make its protocol smaller"
        ) from None
    if code != 0:
        raise RuntimeError(f"{name}: ended with {code}; run `python -m benchmarks.{name}`")
    return read_result(name, stdout, time.monotonic() - started)


def run_to_end(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Exit status and standard output of `command`; what it started ends with it.

    Raises subprocess.TimeoutExpired. A benchmark starts servers and peers, some in sessions of their own;
    left alone they would live on after its time, and slow down what is measured next.
    """
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            stdout, _ = process.communicate(timeout=timeout_s)
        except BaseException:
            end_tree(process.pid)
            raise
    return process.returncode, stdout


def end_tree(pid: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def choose(found: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The benchmarks asked for; ValueError for a name that is none."""
    unknown = [name for name in only or () if name not in found]
    if unknown:
        raise ValueError(f"--only: {unknown[0]!r} is no benchmark; choose from {', '.join(found) or 'none'}")
    return [name for name in found if only is None or name in only]


def update(page: Path, folder: Path, result: Result) -> None:
    """Write the section of one benchmark and its chart; those of the others stay as they are."""
    shown, chart = picture(result), page.parent / CHARTS / f"{result.name}.svg"
    if shown is not None:
        chart.parent.mkdir(exist_ok=True)
        chart.write_text(shown, encoding="utf-8")
    else:
        chart.unlink(missing_ok=True)
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(merge(before, names(folder), folder, result), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run them one by one; each that ends well has its section renewed at once. 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one (may be given again)")
    only = parser.parse_args(argv).only
    try:
        chosen = choose(names(FOLDER), only)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for name in chosen:
        print(f"==> {name}", flush=True)
        try:
            update(PAGE, FOLDER, run(name))
        except RuntimeError as error:
            print(f"    {error}", file=sys.stderr, flush=True)
            failed += 1
    print(f"{len(chosen) - failed} of {len(chosen)} benchmarks written to {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
