"""docs/benchmarks.md: a section per benchmark, made from the result object that it prints."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.chart import chart, ratios
from benchmarks.harness import KEYS

HEAD = """# Benchmarks

Written by `make benchmarks`, which runs every module of `benchmarks/` in full. `make bench-NAME` runs one;
`python -m benchmarks --only NAME` runs it and renews its section here. A `vs_` figure above 1 means that
Qiance is better than that peer. Peers run in turn with ours on the same data and machine.
"""
NOTHING = "No benchmark has landed yet, so there is no figure to show.\n"
MOST_COLUMNS = 12  # of a table that can still be read
CHARTS = "charts"  # folder beside the page
_SECTION = re.compile(r"^## (\w+)$", re.M)


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark printed, and the seconds that it took."""

    name: str
    report: Mapping[str, Any]
    seconds: float


def read_result(name: str, stdout: str, seconds: float) -> Result:
    """The object on the last line of `stdout`; RuntimeError if it is not one of `harness.emit`."""
    lines = stdout.strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        report = None
    if not isinstance(report, dict) or set(report) != set(KEYS):
        raise RuntimeError(f"{name}: the last line it printed is no result; end with harness.emit")
    if report["benchmark"] != name or not report["figures"]:
        raise RuntimeError(f"{name}: the result is of {report['benchmark']!r} or has no figure")
    return Result(name, report, seconds)


def flatten(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Nested figures as one level, the names joined by dots."""
    return dict(_leaves(figures, ""))


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _leaves(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def merge(before: str, names: Sequence[str], folder: Path, result: Result | None) -> str:
    """The page `before` with the section of `result` renewed.

    Sections follow the order of `names`; one of a benchmark that is no more goes.
    """
    parts = _SECTION.split(before)
    kept = {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    if result is not None:
        kept[result.name] = body(result, folder)
    sections = [f"## {name}\n\n{kept[name]}\n" for name in names if name in kept]
    return "\n".join([HEAD, *(sections or [NOTHING])])


def body(result: Result, folder: Path) -> str:
    """The text below a section's heading."""
    report = result.report
    parts = [_purpose(folder / f"{result.name}.py"), _picture(result), _figures(report["figures"])]
    if report["peers"]:
        parts.append(_peers(report["peers"], report["protocol"].get("missing", {})))
    return "\n\n".join([*filter(None, parts), _protocol(report), _footer(result)])


def picture(result: Result) -> str | None:
    """SVG of the comparison with the peers; None where there is none."""
    found = ratios(result.report["figures"])
    return chart(found) if found else None


def _picture(result: Result) -> str:
    if not ratios(result.report["figures"]):
        return ""
    return f"![{result.name}: ratios to peers, above 1 Qiance is better]({CHARTS}/{result.name}.svg)"


def _purpose(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]


def _figures(figures: Mapping[str, Any]) -> str:
    """Single figures in one table; what was measured alike of several things in a table of its own."""
    single, alike = _arranged(figures, "")
    titled = [f"`{title}`:\n\n{_side_by_side(title.rsplit('.', 1)[-1], own)}" for title, own in alike.items()]
    return "\n\n".join([*([table(["figure", "value"], single)] if single else []), *titled])


def _arranged(figures: Mapping[str, Any], prefix: str) -> tuple[list[list[Any]], dict[str, dict[str, Any]]]:
    """(name, value) of single figures, and by title what becomes a table: row → column → value."""
    nested = {name: flatten(own) for name, own in figures.items() if isinstance(own, Mapping)}
    if _are_alike(list(nested.values())) and len(nested) == len(figures):
        return [], {prefix.rstrip("."): nested}
    single: list[list[Any]] = []
    alike: dict[str, dict[str, Any]] = {}
    for name, own in figures.items():
        if not isinstance(own, Mapping):
            single.append([f"{prefix}{name}", own])
            continue
        more, tables = _arranged(own, f"{prefix}{name}.")
        single, alike = single + more, alike | tables
    return single, alike


def _are_alike(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether they fit one table, upright or lying, most of whose cells are filled."""
    columns = {name for part in parts for name in part}
    cells = sum(map(len, parts))
    narrow = min(len(columns), len(parts)) <= MOST_COLUMNS
    return len(parts) > 1 and narrow and cells > 0.6 * len(parts) * len(columns)


def _side_by_side(corner: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each part; a column for each where rows would be too long to read."""
    columns = list(dict.fromkeys(column for own in parts.values() for column in own))
    if len(columns) > MOST_COLUMNS:
        lying = [[column, *(own.get(column) for own in parts.values())] for column in columns]
        return table([corner, *parts], lying)
    rows = [[name, *(own.get(column) for column in columns)] for name, own in parts.items()]
    return table([corner, *columns], rows)


def _peers(peers: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    measured = {name: own for name, own in peers.items() if own is not None}
    flat = {name: flatten(own) for name, own in measured.items()}
    without = [f"`{name}` was not measured: {missing[name]}." for name, own in peers.items() if own is None]
    if len(flat) == 1 or _are_alike(list(flat.values())):
        return "\n\n".join([_side_by_side("peer", flat), *without])
    return "\n\n".join([*([_figures(measured)] if measured else []), *without])


def _protocol(report: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in report["protocol"].items() if name != "missing"}
    parts = [f"{name} {_cell(value)}" for name, value in flatten(shown).items()]
    return f"Protocol: {'; '.join(parts)}; seed {report['seed']}."


def _footer(result: Result) -> str:
    today = datetime.now(UTC).date().isoformat()
    mode = "in full" if result.report["mode"] == "full" else f"with `--{result.report['mode']}`"
    return f"Measured on {today}, {mode}; took {result.seconds:.0f} s."


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(_cell(part) for part in value)
    return _number(value).replace("|", "\\|").replace("\n", " ")


def _number(value: object) -> str:
    if isinstance(value, float) and abs(value) >= 1_000:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int and abs(value) >= 10_000 else str(value)
