"""The page about the lint has the rules as they are; REWRITE=1 writes them into it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qiance.guard.rules import packaged

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guard.md"
MARKS = "<!-- rules -->", "<!-- end of rules -->"


def table() -> str:
    lines = ["| rule | language | severity | what it bars | source |", "| --- | --- | --- | --- | --- |"]
    for rule in packaged().rules:
        cells = (f"`{rule.id}`", rule.locale, rule.severity.value, rule.message, rule.source)
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def test_the_rules_table_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    wanted = f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}"
    if os.environ.get("REWRITE"):
        PAGE.write_text(wanted, encoding="utf-8")
        text = wanted
    assert text == wanted, "run REWRITE=1 pytest tests/guard/test_guard_docs.py"


def test_the_example_of_a_shops_file_can_be_read(tmp_path: Path) -> None:
    from qiance.guard import Guard

    (example,) = re.findall(r"```yaml\n(# A shop.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    path = tmp_path / "own.yaml"
    path.write_text(example, encoding="utf-8")
    assert Guard.load(path).closed == ""
