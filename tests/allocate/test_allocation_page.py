"""The examples of docs/allocation.md run, in order, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "allocation.md"


def test_the_examples_run() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    plan, stream = names["plan"], names["stream"]
    assert 0 <= plan.gap < 1e-3 * plan.bound
    assert (plan.choice[names["region"] == 1] > 0).mean() >= 0.35
    assert (plan.choice == 2).sum() <= 240
    assert stream.spent <= 20_000
    assert stream.reserved == 0
