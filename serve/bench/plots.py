"""Plots as SVG within a page: lines over time, bars beside each other. Pure; no script, font or picture of others.

Colours come from the page (CSS custom properties --one, --two, ...), so that a page can be dark or light.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 34


@dataclass(frozen=True)
class Series:
    """Points of one line, from left to right; ``colour`` is 1 to 4."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: int = 1


@dataclass(frozen=True)
class Bar:
    """A bar with its spread; ``low`` and ``high`` are drawn as a line where they differ."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 1


@dataclass(frozen=True)
class Group:
    """Bars that stand together."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low or 1.0
        return round(self.first + (value - self.low) / span * (self.last - self.first), 1)


def ticks(high: float, count: int = 4) -> tuple[float, ...]:
    """Return round numbers from 0 to at least ``high``, about ``count`` steps."""
    if high <= 0 or not math.isfinite(high):
        return (0.0, 1.0)
    raw = high / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return tuple(step * n for n in range(math.ceil(high / step - 1e-9) + 1))


def shown(value: float) -> str:
    """Return a number for an axis or a bar: three digits that count, thousands apart."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _frame(title: str, unit: str, body: Iterable[str], marks: Sequence[float], scale: Scale) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" y1="{scale(mark)}" x2="{WIDTH - RIGHT}" y2="{scale(mark)}"/>'
        f'<text x="{LEFT - 6}" y="{scale(mark) + 4}" text-anchor="end">{shown(mark)}</text>'
        for mark in marks
    ]
    label = escape(f"{title}, {unit}" if unit else title)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
    return "".join([head, *lines, *body, "</svg>"])


def lines(title: str, unit: str, series: Sequence[Series], *, most: float | None = None) -> str:
    """Return lines over seconds; an empty text where there is no point."""
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    marks = ticks(most or max(y for _, y in points))
    across = Scale(0, max(x for x, _ in points), LEFT, WIDTH - RIGHT)
    up = Scale(0, marks[-1], HEIGHT - BOTTOM, TOP)
    body = [_seconds(across)]
    for one in series:
        path = " ".join(f"{across(x)},{up(y)}" for x, y in one.points)
        body.append(
            f'<polyline class="line c{one.colour}" points="{path}"><title>{escape(one.label)}</title></polyline>'
        )
    return _frame(title, unit, body, marks, up)


def _seconds(across: Scale) -> str:
    marks = (mark for mark in ticks(across.high, 6) if mark <= across.high)
    return "".join(
        f'<text x="{across(mark)}" y="{HEIGHT - 14}" text-anchor="middle">{shown(mark)} s</text>' for mark in marks
    )


def bars(title: str, unit: str, groups: Sequence[Group]) -> str:
    """Return bars in groups, each with its value above it; an empty text where there is none."""
    everything = [bar for group in groups for bar in group.bars]
    if not everything:
        return ""
    marks = ticks(max(bar.high for bar in everything) * 1.08)
    up = Scale(0, marks[-1], HEIGHT - BOTTOM, TOP)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    body = [text for place, group in enumerate(groups) for text in _group(group, LEFT + place * room, room, up)]
    return _frame(title, unit, body, marks, up)


def _group(group: Group, left: float, room: float, up: Scale) -> Iterable[str]:
    middle = left + room / 2
    yield f'<text x="{middle:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(group.label)}</text>'
    width = min(56.0, room * 0.8 / max(1, len(group.bars)))
    start = middle - width * len(group.bars) / 2
    for place, bar in enumerate(group.bars):
        yield _bar(bar, start + place * width, width, up)


def _bar(bar: Bar, left: float, width: float, up: Scale) -> str:
    top, middle = up(bar.value), round(left + width / 2, 1)
    whisker = (
        f'<line class="whisker" x1="{middle}" y1="{up(bar.low)}" x2="{middle}" y2="{up(bar.high)}"/>'
        if bar.high > bar.low
        else ""
    )
    return (
        f'<rect class="bar c{bar.colour}" x="{left + 2:.1f}" y="{top}" width="{width - 4:.1f}" '
        f'height="{round(up(0) - top, 1)}"><title>{escape(bar.label)}: {shown(bar.value)}</title></rect>{whisker}'
        f'<text class="value" x="{middle}" y="{up(bar.high) - 4:.1f}" text-anchor="middle">{shown(bar.value)}</text>'
    )
