"""Curves over steps as inline SVG; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 270, 52, 12, 10, 28
_SMALL_WIDTH, _SMALL_HEIGHT = 400, 190
_MAX_POINTS = 240
_BANDS = 60
_TICK_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    points: tuple[tuple[int, float], ...]
    """(step, value), by step."""
    colour: int
    """Number of its colour in the page's style."""
    is_dotted: bool = False
    """Drawn as dots on a dashed line: for few points."""


def line_chart(curves: Sequence[Curve], *, title: str, is_small: bool = False) -> str:
    """A chart of curves over the same steps; where the pointer is, it says the nearest values.

    Args:
        curves: at least one, each with points.
        title: what is shown, for readers who do not see it.
        is_small: for charts side by side.
    """
    width, height = (_SMALL_WIDTH, _SMALL_HEIGHT) if is_small else (_WIDTH, _HEIGHT)
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    last = max(*steps, 1)
    low, high, ticks = _axis(min(values), max(values))
    room_x, room_y = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        return _LEFT + room_x * step / last, _TOP + room_y * (high - value) / (high - low)

    parts = []
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}">{_number(tick)}</text>'
        )
    for tick in _axis(0, last)[2]:
        if tick <= last:
            parts.append(f'<text x="{place(tick, low)[0]:.1f}" y="{height - 8}">{_number(tick)}</text>')
    parts += [_line(curve, place) for curve in curves]
    parts += _bands(curves, last, width, room_x, room_y)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def legend(curves: Sequence[Curve]) -> str:
    """The names of the curves with their colours."""
    items = "".join(
        f'<li class="c{curve.colour}{" dotted" if curve.is_dotted else ""}"><i></i>{escape(curve.name)}</li>'
        for curve in curves
    )
    return f'<ul class="curves">{items}</ul>'


def _line(curve: Curve, place: Callable[[float, float], tuple[float, float]]) -> str:
    points = [place(step, value) for step, value in _thinned(curve.points)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = f"curve c{curve.colour}{' dotted' if curve.is_dotted else ''}"
    dots = ""
    if curve.is_dotted or len(points) == 1:
        dots = "".join(f'<circle class="c{curve.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    return f'<polyline class="{kind}" points="{drawn}"/>{dots}'


def _bands(curves: Sequence[Curve], last: int, width: int, room_x: float, room_y: float) -> list[str]:
    """Invisible columns that say the values of their steps."""
    steps = sorted({step for curve in curves for step, _ in curve.points})
    shown = steps if len(steps) <= _BANDS else [steps[len(steps) * place // _BANDS] for place in range(_BANDS)]
    bands = []
    for place, step in enumerate(shown):
        before = shown[place - 1] if place else step
        after = shown[place + 1] if place + 1 < len(shown) else step
        x1 = _LEFT + room_x * (before + step) / 2 / last
        x2 = _LEFT + room_x * (step + after) / 2 / last
        said = [f"step {step:,}"]
        for curve in curves:
            at, value = min(curve.points, key=lambda point: abs(point[0] - step))
            said.append(f"{curve.name} {value:.4g}" + ("" if at == step else f" (step {at:,})"))
        bands.append(
            f"<g><title>{escape(chr(10).join(said))}</title>"
            f'<rect class="band" x="{x1:.1f}" y="{_TOP}" width="{max(x2 - x1, 4):.1f}" height="{room_y}"/></g>'
        )
    return bands


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of neighbours; the last one stays as it is."""
    group = max(1, math.ceil(len(points) / _MAX_POINTS))
    groups = [points[first : first + group] for first in range(0, len(points) - 1, group)]
    means = [
        (sum(step for step, _ in some) / len(some), sum(value for _, value in some) / len(some)) for some in groups
    ]
    return [*means, points[-1]]


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends of an axis that holds these values, and the round numbers on it."""
    low = 0.0 if 0 <= low <= 0.5 * high else low
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = next(step * magnitude for step in _TICK_STEPS if step * magnitude * 4.001 >= span)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return first * step, last * step, [place * step for place in range(first, last + 1)]


def _number(value: float) -> str:
    """A number in little room."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.1e}".replace("e-0", "e-") if 0 < abs(value) < 0.01 else f"{value:.3g}"
