"""The README's commands are run as they stand: a command that a reader copies must work.

A fenced `bash` or `console` block is run in a copy of a clone. An HTML comment before it says how:

    (none)                        by the quick tests
    <!-- test: slow -->           takes minutes: in the order of the page, by the slow test
    <!-- test: serves -->         runs until it is stopped: started by the slow test
    <!-- test: needs-server -->   while that is running; these blocks share one shell, as a reader's would
    <!-- test: needs-file F -->   by the slow test where the file F can be had
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
READMES = ("README.md", "README.zh.md")
MARKS = ("", "slow", "serves", "needs-server", "needs-file")
DEFAULT_URL = "http://127.0.0.1:8000"
FILES = {"hillstrom.csv.gz": ROOT.parent / "shared" / "data" / "hillstrom" / "hillstrom.csv.gz"}
_BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?```(?P<kind>bash|console|sh|shell)\n(?P<text>.*?)^```",
    re.M | re.S,
)
needs_venv = pytest.mark.skipif(
    not (VENV / "bin" / "uv").exists(), reason="not run in an environment that `make setup` made"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands; `mark` with its argument, if any."""

    mark: str
    argument: str
    commands: str


def blocks(readme: str) -> list[Block]:
    """The blocks of a README in order; of a console block the lines after a prompt."""
    found = []
    for match in _BLOCK.finditer((ROOT / readme).read_text(encoding="utf-8")):
        lines = match["text"].splitlines()
        if match["kind"] == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        commands = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        mark, _, argument = (match["mark"] or "").partition(" ")
        found.append(Block(mark, argument, commands))
    return found


def marked(*marks: str) -> list[Block]:
    return [block for block in blocks("README.md") if block.mark in marks]


def make_clone(folder: Path) -> Path:
    """What a reader has after `make setup`, without touching this checkout: a link or copy of each entry.

    The stamp of set-up is made last, so that `make` never installs from here. The language model's cache is
    shared, for converting the weights again would take half a minute.
    """
    for entry in ROOT.iterdir():
        if entry.name in (".venv", ".git", "runs"):
            continue
        if entry.is_dir():
            (folder / entry.name).symlink_to(entry)
        else:
            shutil.copy(entry, folder / entry.name)
    if not (folder / ".cache").exists():
        (ROOT / ".cache").mkdir(exist_ok=True)
        (folder / ".cache").symlink_to(ROOT / ".cache")
    (folder / ".venv").mkdir()
    for entry in VENV.iterdir():
        if entry.name != ".qiance-setup":
            (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv" / ".qiance-setup").touch()
    return folder


def reader_environment(**more: str) -> dict[str, str]:
    """Ours without settings of Qiance, Ray and an outer make, and with the commands on the path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QIANCE__", "RAY_", "MAKE", "MFLAGS", "PYTEST"))
    }
    path = f"{VENV / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "COLUMNS": "200", **more}  # wide: no line of a table is broken


def run(commands: str, folder: Path, timeout_s: float) -> str:
    """Run like a reader's shell, stopping at the first command that fails; what it printed."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands],
        cwd=folder,
        env=reader_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode} of:\n{commands}\n\n{done.stdout[-4_000:]}"
    return done.stdout


@contextmanager
def serving(commands: str, folder: Path, port: int, timeout_s: float = 400.0) -> Iterator[str]:
    """Keep a block running in the background, as in another terminal; Ctrl-C at the end leaves nothing."""
    url = f"http://127.0.0.1:{port}"
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", commands],
            cwd=folder,
            env=reader_environment(QIANCE__SERVE__PORT=str(port)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        children: list[psutil.Process] = []
        try:
            _wait_until_ready(f"{url}/healthz", process, folder / "up.log", timeout_s)
            children = psutil.Process(process.pid).children(recursive=True)
            assert children, "the service has processes"
            yield url
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"left behind: {alive}"


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended before it served:\n{log.read_text()[-4_000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {timeout_s:.0f} s:\n{log.read_text()[-4_000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


def test_every_block_is_run_by_a_test() -> None:
    found = blocks("README.md")
    assert len(found) > 10, "the blocks are not found any more"
    assert [block.mark for block in found if block.mark not in MARKS] == []
    assert all(block.commands.strip() for block in found)
    assert all(block.argument in FILES for block in found if block.mark == "needs-file")
    assert all(not block.argument for block in found if block.mark != "needs-file")


@pytest.mark.parametrize("readme", READMES)
def test_no_block_escapes(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(readme)), "a block of another kind, or one that is not closed"
    assert text.count("<!--") == sum(bool(block.mark) for block in blocks(readme)), "a mark without a block"


def test_both_readmes_have_the_same_commands() -> None:
    assert blocks("README.md") == blocks("README.zh.md")


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"(?m)^#+ ", r"(?m)^\| ", r"(?m)^- \*\*", r"(?m)^\d\. "):
        assert len(re.findall(pattern, english)) == len(re.findall(pattern, chinese)), pattern


def test_the_switch_for_the_cpu_build_exists() -> None:
    found = shutil.which("uv", path=str(VENV / "bin"))
    if found is None:
        pytest.skip("uv is not in this environment")
    said = subprocess.run([found, "pip", "install", "--help"], capture_output=True, text=True, check=True)
    assert "UV_TORCH_BACKEND" in said.stdout
    assert "UV_TORCH_BACKEND=cpu make setup" in [block.commands for block in blocks("README.md")]


@needs_venv
@pytest.mark.parametrize("block", marked(""), ids=lambda block: block.commands.splitlines()[0][:40])
def test_quick_blocks(block: Block, clone: Path) -> None:
    run(block.commands, clone, timeout_s=200)


@needs_venv
@pytest.mark.slow
@pytest.mark.timeout(5_400)
def test_the_whole_page(tmp_path: Path) -> None:
    """What a reader does from top to bottom."""
    clone = make_clone(tmp_path)
    first, *others = marked("slow")
    printed = run(first.commands, clone, timeout_s=2_400)
    assert [line for line in promised_lines() if line not in printed] == []
    report = json.loads((clone / "runs" / "latest" / "report.json").read_text())
    assert report["kind"] == "loop"
    assert (clone / "runs" / "latest" / "report.html").stat().st_size > 10_000
    talk_to_the_service(clone)
    for block in others:
        run(block.commands, clone, timeout_s=1_800)
    assert (
        json.loads((clone / "runs" / "offline" / "latest" / "report.json").read_text())["kind"] == "offline"
    )
    assert json.loads((clone / "runs" / "latest" / "report.json").read_text())["kind"] == "loop"


def promised_lines() -> list[str]:
    """First column of the page's first table: the lines that a run is said to end with."""
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("| --- | --- |\n", 1)[1].split("\n\n", 1)[0]
    )
    return [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()]


def talk_to_the_service(clone: Path) -> None:
    """Start the service as the page says and run the blocks that need it."""
    (up,) = marked("serves")
    script = "\n".join(block.commands for block in marked("needs-server"))
    assert DEFAULT_URL in script
    with serving(up.commands, clone, free_port()) as url:
        printed = run(script.replace(DEFAULT_URL, url), clone, timeout_s=900)
    assert '"status":"ready"' in printed
    assert '"accepted":1,"duplicates":0,"rejected":[]' in printed
    assert '"title":' not in printed.replace('"title":"Qiance"', ""), f"an error was answered:\n{printed}"
    assert "is approved" in printed
    assert "is live" in printed
    assert "revoked web-shop" in printed


@needs_venv
@pytest.mark.slow
@pytest.mark.timeout(2_400)
@pytest.mark.parametrize("block", marked("needs-file"), ids=lambda block: block.argument)
def test_blocks_that_need_a_file(block: Block, tmp_path: Path) -> None:
    source = FILES[block.argument]
    if not source.exists():
        pytest.skip(f"{block.argument} is not there: it has to be got by hand")
    clone = make_clone(tmp_path)
    (clone / block.argument).symlink_to(source)
    run(block.commands, clone, timeout_s=2_000)
    assert (
        json.loads((clone / "runs" / "offline" / "latest" / "report.json").read_text())["kind"] == "offline"
    )
