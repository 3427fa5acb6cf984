"""`python -m benchmarks`: runs each benchmark by itself and renews only its own section of the page."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.page import Result, flatten, merge, read_result

ROOT = Path(__file__).resolve().parent.parent.parent
SUMS = '''"""How fast sums are.

More for developers.
"""
from benchmarks.harness import emit, parse


def main() -> None:
    print("warming up")
    args = parse(None, "Sums")
    figures = {"vs_other": 1.23456, "sqlite": {"rows_per_s": 123456.7}, "absent": None}
    peers = {"other": {"rows_per_s": 100.0}, "far": None}
    emit("sums", args, figures, peers, {"rows": 20_000, "missing": {"far": "no wheel"}})


main()
'''
SILENT = "def main() -> None:\n    print('nothing')\n\n\nmain()\n"
BROKEN = "import sys\n\n\ndef main() -> None:\n    sys.exit(3)\n\n\nmain()\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a benchmark that works, two that do not, and modules that are none."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    files = {"__init__": "", "sums": SUMS, "silent": SILENT, "broken": BROKEN, "cases": "ROWS = 3\n"}
    files["harness"] = (ROOT / "benchmarks" / "harness.py").read_text()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    for name, value in {"ROOT": tmp_path, "FOLDER": folder, "PAGE": page}.items():
        monkeypatch.setattr(benchmarks, name, value)
    return tmp_path


def report(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {"benchmark": name, "mode": "full", "figures": figures, "peers": {}, "protocol": {}, "seed": 0}


def test_the_harness_is_no_benchmark(project: Path) -> None:
    assert benchmarks.names(project / "benchmarks") == ["broken", "silent", "sums"]
    assert not {"harness", "page"} & set(benchmarks.names(ROOT / "benchmarks"))


def test_a_benchmark_becomes_a_section(project: Path) -> None:
    assert benchmarks.main(["--only", "sums"]) == 0
    text = benchmarks.PAGE.read_text()
    shown = "![sums: ratios to peers, above 1 Qiance is better](charts/sums.svg)"
    assert f"## sums\n\nHow fast sums are.\n\n{shown}\n\n| figure | value |" in text
    assert "<svg" in (benchmarks.PAGE.parent / "charts" / "sums.svg").read_text()
    assert "| vs_other | 1.235 |\n| sqlite.rows_per_s | 123,457 |\n| absent | – |" in text
    assert (
        "| peer | rows_per_s |\n| --- | --- |\n| other | 100 |\n\n`far` was not measured: no wheel." in text
    )
    assert "Protocol: rows 20,000; versions.python 3" in text
    assert ", in full; took " in text


def test_one_failure_hides_no_other_result(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main([]) == 1
    shown = capsys.readouterr()
    assert "broken: ended with 3; run `python -m benchmarks.broken`" in shown.err
    assert "silent: the last line it printed is no result" in shown.err
    assert shown.out.splitlines()[-1] == "1 of 3 benchmarks written to docs/benchmarks.md"
    assert "## sums" in benchmarks.PAGE.read_text()


def test_sections_of_benchmarks_not_run_stay(project: Path) -> None:
    folder, names = project / "benchmarks", ["silent", "sums"]
    page = merge("", names, folder, Result("sums", report("sums", {"a": 1}), 1.0))
    old = page.split("## sums")[1]
    page = merge(page, names, folder, Result("silent", report("silent", {"b": 2}), 1.0))
    assert page.split("## sums")[1] == old
    assert page.index("## silent") < page.index("## sums"), "in the order of the names"
    renewed = merge(page, names, folder, Result("sums", report("sums", {"a": 2}), 1.0))
    assert "| a | 2 |" in renewed
    assert "| a | 1 |" not in renewed
    assert "## silent" not in merge(page, ["sums"], folder, None), "gone with its module"


def test_without_benchmarks_the_page_says_so(tmp_path: Path) -> None:
    assert "No benchmark has landed yet" in merge("", [], tmp_path, None)


def test_the_committed_page_is_of_this_code() -> None:
    """Only sections may differ from what the code writes round them."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks"
    assert merge(text, benchmarks.names(folder), folder, None) == text


@pytest.mark.parametrize(
    "stdout",
    [
        "",
        "words",
        json.dumps(report("sums", {"a": 1})) + "\nafterwards",
        json.dumps({"measure": "a", "value": 1}),
        json.dumps(report("other", {"a": 1})),
        json.dumps(report("sums", {})),
    ],
)
def test_what_is_no_result(stdout: str) -> None:
    with pytest.raises(RuntimeError, match=r"^sums: the "):
        read_result("sums", stdout, 1.0)


def test_peers_with_many_figures_lie_on_their_side(tmp_path: Path) -> None:
    many = {f"figure_{number}": number for number in range(20)}
    (tmp_path / "sums.py").write_text(SUMS)
    wide = {"peers": {"one": {"fast": many, "slow": many}, "two": {"plain": {"a": 1}}}}
    page = merge("", ["sums"], tmp_path, Result("sums", report("sums", {"a": 1}) | wide, 1.0))
    assert "`one`:\n\n| one | fast | slow |\n| --- | --- | --- |\n| figure_0 | 0 | 0 |" in page
    assert "| two.plain.a | 1 |" in page


def test_nested_figures_get_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": None}) == {"a.b.c": 1, "a.d": 2, "e": None}


def test_a_name_that_is_no_benchmark(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--only", "summs"])
    assert "--only: 'summs' is no benchmark; choose from broken, silent, sums" in capsys.readouterr().err


def test_what_a_benchmark_started_ends_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"setsid sleep 60 & echo $! > {child}; wait"
    with pytest.raises(subprocess.TimeoutExpired):
        benchmarks.run_to_end(["sh", "-c", script], timeout_s=1.0)
    pid = int(child.read_text())
    ended = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 10
    while ended.exists() and ended.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ended.exists() or ended.read_text().split()[2] == "Z"


def test_exit_status_and_output_of_a_benchmark() -> None:
    assert benchmarks.run_to_end(["sh", "-c", "echo last; exit 3"], timeout_s=10.0) == (3, "last\n")


def test_what_was_measured_alike_of_several_things_is_a_table(tmp_path: Path) -> None:
    cells = {f"{n} actions, beta -3": {"error": n / 8, "coverage95": 0.95} for n in (10, 30)}
    figures = {"vs_obp": 1.25, "cells": cells, "two_hop": {"rps": 70.0}, "overload": {"refused": 3}}
    text = merge("", ["sums"], tmp_path, None)
    (tmp_path / "sums.py").write_text(SUMS)
    text = merge(text, ["sums"], tmp_path, Result("sums", report("sums", figures), 1.0))
    assert "| vs_obp | 1.25 |\n| two_hop.rps | 70 |\n| overload.refused | 3 |" in text
    assert "`cells`:\n\n| cells | error | coverage95 |" in text
    assert "| 30 actions, beta -3 | 3.75 | 0.95 |" in text
