"""The result line, timing in turns, peak memory and the peers' environments."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness import (
    KEYS,
    Args,
    Mode,
    alternate,
    emit,
    median_of,
    parse,
    peak_memory,
    peer_environment,
    plain,
)

SMOKE = Args(Mode.SMOKE, 0)


@pytest.mark.parametrize(
    ("argv", "mode", "seed"),
    [
        ([], Mode.FULL, 0),
        (["--quick"], Mode.QUICK, 0),
        (["--smoke", "--seed", "7"], Mode.SMOKE, 7),
    ],
)
def test_the_command_line(argv: list[str], mode: Mode, seed: int) -> None:
    args = parse(argv, "What")
    assert (args.mode, args.seed) == (mode, seed)
    assert args.pick(smoke=1, quick=2, full=3) == {"smoke": 1, "quick": 2, "full": 3}[mode]


@pytest.mark.parametrize("argv", [["--smoke", "--quick"], ["--seed", "x"], ["--fast"]])
def test_a_bad_command_line_ends(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(argv, "What")
    assert "usage:" in capsys.readouterr().err


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    print("on the way")
    figures = {"ratio": np.float64(1.5), "sqlite": {"rows": np.int64(3), "parts": np.array([1, 2])}}
    emit("one_two", Args(Mode.QUICK, 4), figures, {"peer": None}, {"missing": {"peer": "no wheel"}})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(result) == KEYS
    assert result["figures"] == {"ratio": 1.5, "sqlite": {"rows": 3, "parts": [1, 2]}}
    assert (result["mode"], result["seed"], result["peers"]) == ("quick", 4, {"peer": None})
    assert result["protocol"]["versions"]["numpy"] == np.__version__
    assert result["protocol"]["cores"] >= 1


@pytest.mark.parametrize(
    ("name", "figures", "peers", "message"),
    [
        ("a-b", {}, {}, r"benchmark: 'a-b' is no module name; use lower case"),
        ("ab", {"x": {"y": math.nan}}, {}, r"figures\.x\.y: nan is no figure; use None"),
        ("ab", {"x": [1.0, np.float32("inf")]}, {}, r"figures\.x\[1\]: inf is no figure"),
        ("ab", {"x": Path("a")}, {}, r"figures\.x: \w*Path cannot be written as JSON"),
        ("ab", {"x": 1}, {"p": None}, r"peers\.p: None needs its reason in protocol\['missing'\]\['p'\]"),
        ("ab", {"x": 1}, {"p": {"s": math.inf}}, r"peers\.p\.s: inf"),
    ],
)
def test_a_result_that_cannot_be_published(
    name: str,
    figures: dict[str, Any],
    peers: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=message):
        emit(name, SMOKE, figures, peers, {})
    assert capsys.readouterr().out == ""


_LEAF = (
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
)
_TREE = st.recursive(_LEAF, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), _TREE, max_size=4))
def test_what_json_can_say_is_left_as_it_is(value: dict[str, Any]) -> None:
    assert json.loads(json.dumps(plain(value, "x"), allow_nan=False)) == value


def test_functions_run_in_turns() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("b")
        time.sleep(0.01)

    times = alternate({"a": lambda: order.append("a"), "b": slow}, repeats=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert len(times["a"]) == 3
    assert min(times["b"]) >= 0.01


def test_nothing_measured_has_no_median() -> None:
    assert median_of([3.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="times: empty"):
        median_of([])
    with pytest.raises(ValueError, match="repeats: 0 measures nothing"):
        alternate({}, 0)


def test_the_peak_counts_a_child_that_is_gone() -> None:
    code = "import time; block = b'x' * (150 << 20); time.sleep(0.5)"
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert peak.mib > before.mib + 140
    assert peak.samples > 5


def test_pages_shared_with_a_child_count_once() -> None:
    # A fork shares the parent's block; resident sizes would sum to twice of it.
    code = """
import os, time
from benchmarks.harness import peak_memory
block = b"x" * (150 << 20)
if os.fork() == 0:
    time.sleep(0.6)
    os._exit(0)
with peak_memory() as peak:
    time.sleep(0.4)
os.wait()
print(peak.mib)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 150 < float(done.stdout) < 290


def wheel(folder: Path, version: int) -> Path:
    """A wheel of ours, so that no index is asked."""
    info = f"small_peer-{version}.dist-info"
    files = {
        "small_peer.py": f"VALUE = {version}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: small-peer\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = folder / f"small_peer-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def value_in(python: Path | None) -> str:
    code = "import small_peer; print(small_peer.VALUE)"
    return subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_peer_environment_is_made_once_per_requirements(tmp_path: Path) -> None:
    first = peer_environment("small", [f"small-peer @ file://{wheel(tmp_path, 1)}"], root=tmp_path)
    assert (value_in(first.python), first.missing("small")) == ("1", {})
    mark = tmp_path / ".bench" / "small" / "mark"
    mark.touch()
    again = peer_environment("small", [f"small-peer @ file://{wheel(tmp_path, 1)}"], root=tmp_path)
    assert again == first
    assert mark.exists(), "kept as it was"
    other = peer_environment("small", [f"small-peer @ file://{wheel(tmp_path, 2)}"], root=tmp_path)
    assert value_in(other.python) == "2"
    assert not mark.exists()


def test_a_peer_that_cannot_be_had_tells_why(tmp_path: Path) -> None:
    found = peer_environment("absent", [f"small-peer @ file://{tmp_path}/nowhere.whl"], root=tmp_path)
    assert found.python is None
    assert found.reason
    assert str(tmp_path) not in found.reason, "paths of the machine are not published"
    assert found.missing("absent") == {"absent": found.reason}
    assert not (tmp_path / ".bench" / "absent").exists()
