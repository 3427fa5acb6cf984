"""How Qiance compares with its peers, as a picture: a bar per `vs_` figure of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, ROW, LABEL, VALUE = 720, 26, 210, 70  # pixels: of all, of a bar, of its name, of its number
AHEAD, BEHIND, AXIS = "#2a7f62", "#b3423a", "#767676"


def ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Top-level figures named `vs_PEER` that are positive numbers."""
    return {
        name.removeprefix("vs_"): float(value)
        for name, value in figures.items()
        if name.startswith("vs_") and isinstance(value, int | float) and value > 0
    }


def chart(found: Mapping[str, float]) -> str:
    """SVG of bars from 1, on a logarithmic scale: to the right where Qiance is better."""
    logs = {name: math.log(value) for name, value in found.items()}
    low, high = min(0.0, *logs.values()), max(0.0, *logs.values())
    span = max(high - low, math.log(1.1))
    height = ROW * (len(found) + 1) + 10
    # Numbers stand at the ends of bars, on both sides.
    left, room = LABEL + VALUE, WIDTH - LABEL - 2 * VALUE
    middle = left + room * (0.0 - low) / span
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for place, (name, value) in enumerate(found.items()):
        parts += _bar(name, value, ROW * place + 8, middle, room * logs[name] / span)
    bottom = ROW * len(found) + 8
    parts.append(
        f'<line x1="{middle:.1f}" y1="4" x2="{middle:.1f}" y2="{bottom}" stroke="{AXIS}"/>'
        f'<text x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{AXIS}">1: equal</text></svg>'
    )
    return "\n".join(parts) + "\n"


def _bar(name: str, value: float, top: int, middle: float, length: float) -> list[str]:
    ahead = length >= 0
    start, end = (middle, middle + length) if ahead else (middle + length, middle)
    at, anchor = (end + 6, "start") if ahead else (start - 6, "end")
    return [
        f'<text x="6" y="{top + 14}">{escape(name.replace("_", " "))}</text>',
        f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}" height="{ROW - 8}" '
        f'fill="{AHEAD if ahead else BEHIND}"/>',
        f'<text x="{at:.1f}" y="{top + 14}" text-anchor="{anchor}">{value:.3g}</text>',
    ]
