"""Small charts for a page: columns as inline SVG, bars as CSS. Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

MAX_COLUMNS = 32
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 400, 210, 38, 10, 26
_TICK_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: what it stands for ("12-14"), how high it is, and the number at its left edge."""

    label: str
    count: int
    edge: str


def columns_of_tally(tally: np.ndarray, *, first: int = 0) -> list[Column]:
    """Group a tally into at most 33 columns of equal width; a long thin tail becomes one last column.

    Args:
        tally: [V] how often each of the values 0, 1, ... occurs; the last stands for higher values, too.
        first: the values before this one are left out, because they cannot occur.
    """
    reached = np.cumsum(tally)
    # The tail that holds less than half a percent would squeeze everything else to the left.
    end = int(np.searchsorted(reached, 0.995 * reached[-1])) + 1
    width = max(1, -(-(end - first) // MAX_COLUMNS))
    edges = list(range(first, end + width, width))
    columns = [
        Column(label=str(low) if width == 1 else f"{low}-{high - 1}", count=int(tally[low:high].sum()), edge=str(low))
        for low, high in pairwise(edges)
        if high < len(tally)
    ]
    low = first + len(columns) * width
    if rest := int(tally[low:].sum()):
        columns.append(Column(label=f"{low} or more", count=rest, edge=f"{low}+"))
    return columns


def column_chart(columns: Sequence[Column], *, title: str, unit: str) -> str:
    """A histogram as SVG; every column says its number when the pointer is on it.

    Args:
        columns: from left to right.
        title: what is shown, for readers who do not see it.
        unit: plural noun of what is counted.
    """
    top, ticks = axis_ticks(max((column.count for column in columns), default=0))
    step = (_WIDTH - _LEFT) / max(len(columns), 1)
    room = _HEIGHT - _TOP - _BOTTOM
    parts = []
    for tick in ticks:
        y = _TOP + room * (1 - tick / top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}">{short_number(tick)}</text>'
        )
    every = max(1, -(-len(columns) // 7))
    for place, column in enumerate(columns):
        x, height = _LEFT + place * step, room * column.count / top
        # The band behind a column makes also an empty or a low one answer to the pointer.
        parts.append(
            f"<g><title>{escape(column.label)}: {column.count:,} {escape(unit)}</title>"
            f'<rect class="band" x="{x:.1f}" y="{_TOP}" width="{step:.1f}" height="{room}"/>'
            f'<rect class="column" x="{x + 1:.1f}" y="{_TOP + room - height:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{height:.1f}" rx="1.5"/></g>'
        )
        if place % every == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{_HEIGHT - 8}">{escape(column.edge)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def bar(share: float) -> str:
    """A table cell with a bar of this share, 0 to 1, of its width."""
    return (
        f'<td class="bar" aria-hidden="true"><span><i style="width:{100 * min(max(share, 0), 1):.1f}%"></i></span></td>'
    )


def axis_ticks(most: int) -> tuple[float, list[float]]:
    """Height of an axis that holds `most`, and two to five round numbers on it."""
    if most <= 0:
        return 1.0, [0.0]
    magnitude = 10.0 ** np.floor(np.log10(most / 4))
    step = max(1.0, next(step * magnitude for step in _TICK_STEPS if step * magnitude * 4 >= most))
    count = int(np.ceil(most / step))
    return step * count, [step * place for place in range(count + 1)]


def short_number(value: float) -> str:
    """A count in little room: "950", "1.5K", "20M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
