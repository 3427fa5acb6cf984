"""Charts over two axes: curves side by side, and points. Drawn as those of `qiance.report.charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from qiance.report.charts import Scale, scale
from qiance.report.figures import Format

_LEFT, _RIGHT, _HEAD, _FOOT = 14.0, 98.0, 10.0, 190.0
_HEIGHT = 222
_MOST = 60  # points of a curve that are drawn


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y) in the order of x. tone: class of its colour; said: what the pointer shows."""

    points: tuple[tuple[float, float], ...]
    tone: str
    said: str


@dataclass(frozen=True, slots=True)
class Spot:
    """One point."""

    x: float
    y: float
    tone: str
    said: str


def curves(lines: Sequence[Curve], show: Format, label: str, unit: str) -> Markup | None:
    """Curves over a whole-numbered axis from 1, `unit` below it; None without a point.

    Values far beyond the others are drawn at the edge, so that the rest can be told apart.
    """
    points = [point for line in lines for point in line.points]
    up = _up_scale([y for _, y in points])
    if up is None:
        return None
    last = max(x for x, _ in points)
    across = Scale(1.0, max(last, 2.0), ())
    parts = [_up_axis(up, show)]
    parts += [_text(_x(across, tick), f"{tick:g}", "middle") for tick in (1.0, across.high)]
    parts.append(_text((_LEFT + _RIGHT) / 2, unit, "middle"))
    for line in lines:
        parts.append(_curve(line, across, up))
    return _svg(parts, label)


def _curve(line: Curve, across: Scale, up: Scale) -> Markup:
    step = max(1, math.ceil(len(line.points) / _MOST))
    thin = [*line.points[:-1:step], *line.points[-1:]]
    parts = [
        _segment(_x(across, a), _y(up, b), _x(across, c), _y(up, d), f"curve {line.tone}")
        for (a, b), (c, d) in pairwise(thin)
    ]
    if thin:
        end = thin[-1]
        parts.append(_dot(_x(across, end[0]), _y(up, end[1]), f"dot {line.tone}", line.said))
    return Markup("").join(parts)


def spots(
    points: Sequence[Spot],
    show: Format,
    show_x: Format,
    label: str,
    *,
    logarithmic: bool = False,
    names: Sequence[str] = (),
) -> Markup | None:
    """Points; None without one. names: of the values 0, 1, ... where the axis is of categories."""
    up = _up_scale([spot.y for spot in points])
    if up is None:
        return None
    move = math.log10 if logarithmic else float
    places = [move(spot.x) for spot in points]
    low, high = (-0.5, len(names) - 0.5) if names else (min(places), max(places))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    across, parts = Scale(low, high, ()), [_up_axis(up, show)]
    if names:
        parts += [_text(_x(across, place), name, "middle") for place, name in enumerate(names)]
    else:
        back = (lambda value: 10**value) if logarithmic else float
        parts += [
            _text(_x(across, value), show_x(back(value)), anchor)
            for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end"))
        ]
    # The best is drawn last, on top.
    for spot, place in sorted(zip(points, places, strict=True), key=lambda pair: pair[0].tone == "measured"):
        parts.append(_dot(_x(across, place), _y(up, spot.y), f"dot {spot.tone}", spot.said))
    return _svg(parts, label)


def _up_scale(values: Sequence[float]) -> Scale | None:
    """Over the values but for what is far off: more than three spans of the middle half beyond it."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return None
    lower, upper = known[len(known) // 4], known[(3 * len(known)) // 4]
    reach = 3 * (upper - lower) or abs(upper) or 1.0
    return scale([value for value in known if lower - reach <= value <= upper + reach])


def _x(axis: Scale, value: float) -> float:
    share = (value - axis.low) / (axis.high - axis.low)
    return round(_LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0), 3)


def _y(axis: Scale, value: float) -> float:
    share = (value - axis.low) / (axis.high - axis.low)
    return round(_FOOT - (_FOOT - _HEAD) * min(max(share, 0.0), 1.0), 2)


def _up_axis(up: Scale, show: Format) -> Markup:
    parts = []
    for tick in up.ticks:
        parts.append(_segment(_LEFT, _y(up, tick), _RIGHT, _y(up, tick), "grid"))
        line = Markup('<text x="{}%" y="{}" text-anchor="end">{}</text>')
        parts.append(line.format(_LEFT - 1.5, _y(up, tick) + 4, show(tick)))
    return Markup("").join(parts)


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _dot(x: float, y: float, kind: str, said: str) -> Markup:
    title = Markup("<title>{}</title>").format(said)
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="4">{}</circle>').format(kind, x, y, title)


def _text(x: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}%" y="{}" text-anchor="{}">{}</text>').format(x, _FOOT + 18, anchor, text)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg width="100%" height="{}" role="img" aria-label="{}">{}</svg>')
    return head.format(_HEIGHT, label, Markup("").join(parts))
