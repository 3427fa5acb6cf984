"""JSON as artifacts and what lies beside them hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """`content` with its keys in their order, in UTF-8; ValueError for NaN and infinity, which JSON lacks."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
