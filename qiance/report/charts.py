"""Charts as inline SVG: no script, no network, text at its own size at every width of the page.

Horizontal positions are per cent of the drawing's width and vertical ones are pixels, so a drawing follows
the width of its column without its letters growing or shrinking. Colours are classes of the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from qiance.report.figures import Format, percent

_EDGE = 2.0  # per cent kept free at both ends
_MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from [low, high] to per cent of the width; `ticks` are round numbers within."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """Position of `value`, kept inside the drawing."""
        share = (value - self.low) / (self.high - self.low)
        return round(_EDGE + (100 - 2 * _EDGE) * min(max(share, 0.0), 1.0), 3)


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of an interval chart. note: small print under the label. mark: a second point to compare."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    tone: str = "plain"
    note: str = ""
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A drawn row: label and value as text, the track as SVG."""

    label: str
    note: str
    value: str
    interval: str
    tone: str
    track: Markup


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows on a common axis; without rows there is nothing to show."""

    rows: tuple[Row, ...]
    axis: Markup


def scale(values: Iterable[float | None], zero: bool = False) -> Scale | None:
    """A scale with round ticks over the finite `values`; with `zero` it begins or ends at 0 at the least."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        spread = abs(high) / 2 or 1.0
        low, high = low - spread, high + spread
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, tuple(round(n * step, 12) for n in range(first, last + 1)))


def _round_step(raw: float) -> float:
    size = 10.0 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= raw * 0.999)


def intervals(
    bars: Sequence[Bar],
    show: Format,
    zero: bool = False,
    band: tuple[float | None, float | None] | None = None,
) -> Chart | None:
    """Points with whiskers on a common axis; None where no row has a value.

    band: shaded across all rows, e.g. the interval that was forecast.
    """
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high, bar.mark)]
    axis = scale([*values, *(band or ())], zero)
    if axis is None:
        return None
    rows = tuple(
        Row(
            bar.label, bar.note, show(bar.value), _between(bar, show), bar.tone, _track(bar, axis, show, band)
        )
        for bar in bars
    )
    return Chart(rows, _axis(axis, show))


def lengths(bars: Sequence[Bar], show: Format, tick: Format | None = None) -> Chart | None:
    """Bars from 0; None where no row has a value. tick: shorter form of `show` for the axis."""
    axis = scale([bar.value for bar in bars], zero=True)
    if axis is None:
        return None
    zero = axis.x(0.0)
    rows = []
    for bar in bars:
        body = Markup("")
        if bar.value is not None:
            end = axis.x(bar.value)
            body = Markup('<rect class="bar {}" x="{}%" y="-8" width="{}%" height="16" rx="2"/>').format(
                bar.tone, min(zero, end), round(abs(end - zero), 3)
            )
        track = _svg(_grid(axis) + _centred(body), "100%", f"{bar.label}: {show(bar.value)}")
        rows.append(Row(bar.label, bar.note, show(bar.value), "", bar.tone, track))
    return Chart(tuple(rows), _axis(axis, tick or show))


def _between(bar: Bar, show: Format) -> str:
    return "" if bar.low is None or bar.high is None else f"{show(bar.low)} to {show(bar.high)}"


def _track(bar: Bar, axis: Scale, show: Format, band: tuple[float | None, float | None] | None) -> Markup:
    parts = []
    if bar.low is not None and bar.high is not None:
        low, high = axis.x(bar.low), axis.x(bar.high)
        parts.append(_line(low, 0, high, 0, f"whisker {bar.tone}"))
        parts += [_line(end, -6, end, 6, f"whisker {bar.tone}") for end in (low, high)]
    if bar.value is not None:
        parts.append(_dot(axis.x(bar.value), 0, 5.5, f"dot {bar.tone}"))
    if bar.mark is not None:
        parts.append(_dot(axis.x(bar.mark), 0, 4.5, "dot mark"))
    said = f"{bar.label}: {show(bar.value)}"
    between = _between(bar, show)
    said += f" ({between})" if between else ""
    said += f", measured {show(bar.mark)}" if bar.mark is not None else ""
    return _svg(_band(axis, band) + _grid(axis) + _centred(Markup("").join(parts)), "100%", said)


def _band(axis: Scale, band: tuple[float | None, float | None] | None) -> Markup:
    if band is None or band[0] is None or band[1] is None:
        return Markup("")
    low, high = axis.x(band[0]), axis.x(band[1])
    return Markup('<rect class="band" x="{}%" y="0" width="{}%" height="100%"/>').format(
        low, round(high - low, 3)
    )


def _grid(axis: Scale) -> Markup:
    line = Markup('<line class="{}" x1="{}%" y1="0" x2="{}%" y2="100%"/>')
    return Markup("").join(
        line.format("grid" if tick else "zero", axis.x(tick), axis.x(tick)) for tick in axis.ticks
    )


def _centred(body: Markup) -> Markup:
    """Vertical position 0 of `body` in the middle of a drawing of whatever height."""
    return Markup('<svg y="50%" overflow="visible">{}</svg>').format(body)


def _axis(axis: Scale, show: Format) -> Markup:
    texts = []
    # On a narrow screen more than five numbers would run into one another.
    for tick in axis.ticks if len(axis.ticks) <= 5 else axis.ticks[::2]:
        x = axis.x(tick)
        anchor = "start" if x < 8 else "end" if x > 92 else "middle"
        texts.append(_text(x, 14, show(tick), anchor))
    return _svg(Markup("").join(texts), 20, "")


def calibration(rows: Sequence[tuple[float, float, float | None, float | None, int]]) -> Markup | None:
    """Predicted against observed share, with whiskers; rows of (predicted, observed, low, high, n).

    A point on the diagonal is a prediction that came true as often as it said.
    """
    top = max((max(p, o) for p, o, *_ in rows), default=0.0)
    tall = max((high for *_, high, _ in rows if high is not None), default=top)
    axis = scale([0.0, max(top, min(tall, 1.6 * top))]) if top > 0 else None
    if axis is None:
        return None
    left, right, foot, head = 14.0, 97.0, 196.0, 10.0

    def x(value: float) -> float:
        return round(left + (right - left) * min(max(value / axis.high, 0.0), 1.0), 3)

    def y(value: float) -> float:
        return round(foot - (foot - head) * min(max(value / axis.high, 0.0), 1.0), 2)

    parts = [_line(x(0), y(0), x(axis.high), y(axis.high), "diagonal")]
    for tick in axis.ticks:
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 2, y(tick) + 4, percent(tick, _places(axis)), "end"))
        if tick:
            parts.append(_text(x(tick), foot + 16, percent(tick, _places(axis)), "middle"))
    for predicted, observed, low, high, n in sorted(rows, key=lambda row: row[0]):
        said = f"said {percent(predicted)}, happened {percent(observed)}, {n:,} rows"
        if low is not None and high is not None:
            parts.append(_line(x(predicted), y(low), x(predicted), y(high), "whisker ours"))
        parts.append(_dot(x(predicted), y(observed), 4.5, "dot ours", said))
    return _svg(Markup("").join(parts), 222, "Predicted share against observed share")


def _places(axis: Scale) -> int:
    return 0 if axis.high >= 0.08 and all(abs(t * 100 - round(t * 100)) < 1e-9 for t in axis.ticks) else 1


def steps(points: Sequence[tuple[float, float]], show: Format, label: str) -> Markup | None:
    """A value that holds until the next setting, as steps over `(position, value)`; None without points."""
    thin = points[:: max(1, math.ceil(len(points) / _MAX_POINTS))]
    axis = scale([value for _, value in thin], zero=True)
    if axis is None:
        return None
    left, right, foot, head = 9.0, 98.0, 130.0, 10.0
    first, last = thin[0][0], thin[-1][0] + 1

    def x(position: float) -> float:
        return round(left + (right - left) * (position - first) / (last - first), 3)

    def y(value: float) -> float:
        return round(foot - (foot - head) * (value - axis.low) / (axis.high - axis.low), 2)

    parts = []
    for tick in axis.ticks:
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 1.5, y(tick) + 4, show(tick), "end"))
    for place, (position, value) in enumerate(thin):
        after = thin[place + 1] if place + 1 < len(thin) else None
        until = after[0] if after else last
        parts.append(_line(x(position), y(value), x(until), y(value), "step"))
        if after:
            parts.append(_line(x(until), y(value), x(until), y(after[1]), "step"))
    parts.append(_text(left, foot + 18, "start", "start"))
    parts.append(_text(right, foot + 18, "end", "end"))
    return _svg(Markup("").join(parts), 154, label)


def mini(bar: Bar, axis: Scale | None, show: Format) -> Markup:
    """A small interval on a scale shared by all cards; empty where there is no value."""
    if axis is None or bar.value is None:
        return Markup("")
    parts = [Markup('<rect class="rail" x="0" y="7" width="100%" height="2" rx="1"/>')]
    if axis.low < 0 < axis.high:
        parts.append(_line(axis.x(0), 1, axis.x(0), 15, "zero"))
    if bar.low is not None and bar.high is not None:
        low, high = axis.x(bar.low), axis.x(bar.high)
        parts.append(
            Markup('<rect class="span {}" x="{}%" y="4" width="{}%" height="8" rx="2"/>').format(
                bar.tone, low, round(max(high - low, 0.6), 3)
            )
        )
    parts.append(_dot(axis.x(bar.value), 8, 4, f"dot {bar.tone}"))
    if bar.mark is not None:
        parts.append(_dot(axis.x(bar.mark), 8, 4, "dot mark", f"measured {show(bar.mark)}"))
    return _svg(Markup("").join(parts), 16, f"{bar.label}: {show(bar.value)}")


def _svg(body: Markup, height: int | str, label: str) -> Markup:
    said = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup('<svg width="100%" height="{}" {}>{}</svg>').format(height, said, body)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _dot(x: float, y: float, radius: float, kind: str, said: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(said) if said else Markup("")
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="{}">{}</circle>').format(kind, x, y, radius, title)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}%" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))
