"""`qiance lint`: what the rules say of texts that a marketer has written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qiance.cli.options import ConfigOption
from qiance.cli.words import guard_of
from qiance.domain import Channel, Creative
from qiance.guard import Finding, Guard, Linted, Subject, Verdict
from qiance.guard.fixes import propose_fix
from qiance.guard.normalise import HAN
from qiance.settings import load_settings

console = Console()
_PLAIN = {"en": ("A word from us", "Shop now"), "zh": ("为您推荐", "立即选购")}
_WORDS = ("headline", "body", "call_to_action")


def lint(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="One text a line, or a JSON object with headline, body and call_to_action; -: stdin.",
        ),
    ] = "-",
    channel: Annotated[Channel, typer.Option(help="Where the texts go.")] = Channel.EMAIL,
    language: Annotated[str | None, typer.Option(help="en or zh; default: as each text is written.")] = None,
    rules: Annotated[Path | None, typer.Option(help="The shop's own rules; default: guard.rules.")] = None,
    config: ConfigOption = None,
    fix: Annotated[bool, typer.Option("--fix", help="Also propose words that pass.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a text.")] = False,
    list_rules: Annotated[bool, typer.Option("--rules-table", help="List the rules, and end.")] = False,
) -> None:
    """Check texts against the law and the brand's rules; ends with 1 if any is blocked.

    Slots such as {product}, {discount} and {ends} are known. Every finding names its rule and the law or
    guidance behind it. This is a help, not legal advice.
    """
    settings = load_settings(config, os.environ)
    guard = guard_of(settings)
    if rules is not None:
        guard = Guard.load(rules, currency=guard.currency, min_margin=guard.min_margin)
    if list_rules:
        _show_rules(guard)
        return
    if guard.closed:
        raise ValueError(guard.closed)
    found = [guard.lint(subject) for subject in _subjects(_read(file), channel, language)]
    for number, each in enumerate(found, start=1):
        proposal = propose_fix(guard, each) if fix else None
        mended = None if proposal is None else proposal.creative
        if as_json:
            print(json.dumps(_document(number, each, mended), ensure_ascii=False))
        elif each.result.findings:
            _show(number, each, mended)
    blocked = sum(each.result.blocked for each in found)
    if not as_json:
        console.print(f"{len(found)} texts, {blocked} blocked; rule set {guard.version}", highlight=False)
    if blocked:
        raise typer.Exit(1)


def _read(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file: {file} cannot be read ({error}); name a UTF-8 text file") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"file: {file} has no text; write one text a line")
    return lines


def _subjects(lines: list[str], channel: Channel, language: str | None) -> Iterator[Subject]:
    for number, line in enumerate(lines, start=1):
        row = _row(number, line)
        spoken = language or ("zh" if HAN.search("".join(row.values())) else "en")
        headline, call = _PLAIN.get(spoken, _PLAIN["en"])
        given = {"headline": headline, "body": "", "call_to_action": call, **row}
        words = Creative(channel, spoken, given["headline"], given["body"], given["call_to_action"], "person")
        yield Subject(words)


def _row(number: int, line: str) -> dict[str, str]:
    """The fields of a line: a JSON object's, or the line as the body."""
    if not line.lstrip().startswith("{") or line.lstrip()[1:2].isalpha():
        return {"body": line.strip()}
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: is no JSON object ({error}); write text, or valid JSON") from None
    unknown = [name for name in row if name not in _WORDS]
    if unknown or not all(isinstance(value, str) for value in row.values()):
        raise ValueError(
            f"line {number}: {unknown or 'a value'} is not known or no text; use {', '.join(_WORDS)}"
        )
    return dict(row)


def _document(number: int, linted: Linted, mended: Creative | None) -> dict[str, Any]:
    result = linted.result
    document: dict[str, Any] = {
        "text": number,
        "verdict": result.verdict.value,
        "rules": result.rules,
        "findings": [finding.to_dict() for finding in result.findings],
    }
    if mended is not None:
        document["fix"] = {name: getattr(mended, name) for name in _WORDS}
    return document


def _show(number: int, linted: Linted, mended: Creative | None) -> None:
    table = Table(title=f"text {number}: {linted.result.verdict.value}", title_justify="left", expand=True)
    for column in ("rule", "found", "why", "source", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in linted.result.findings:
        table.add_row(*_cells(finding))
    console.print(table)
    if mended is not None:
        console.print("proposed: " + " | ".join(getattr(mended, name) for name in _WORDS), markup=False)


def _cells(finding: Finding) -> tuple[str, ...]:
    from rich.markup import escape

    rule = (
        finding.rule
        if finding.severity.value == Verdict.BLOCK.value
        else f"{finding.rule} ({finding.severity.value})"
    )
    cells = (rule, f"{finding.field}: {finding.found}", finding.message, finding.source, finding.fix)
    return tuple(escape(cell) for cell in cells)


def _show_rules(guard: Guard) -> None:
    if guard.rules is None:
        raise ValueError(guard.closed)
    table = Table(title=f"rule set {guard.version}")
    for column in ("rule", "language", "severity", "what it bars", "source"):
        table.add_column(column, overflow="fold")
    for rule in guard.rules.rules:
        table.add_row(rule.id, rule.locale, rule.severity.value, rule.message, rule.source)
    console.print(table)
