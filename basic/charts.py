"""Charts as inline SVG, without scripts: lines and bars, for `basic.page`.

Colours are those of the page's style sheet, by class, so that charts are light or dark as the page
is: `line s0`, `bar s0` of the first series, `s1` of the second, ... A chart's text is escaped here.
"""

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230  # units; a chart is as wide as its place
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 20, 38  # around the plot
STYLES = 8  # of series, in the style sheet
POINTS = 300  # of a line, at most


class Series(NamedTuple):
    """A line, or the bars of one colour."""

    name: str
    values: list  # (x, y) of a line; a number for each category of bars
    style: int = 0
    dashed: bool = False
    dots: bool = False


def line_chart(series, *, title, x, y, log=False, whole=False, marks=(), low=None, high=None):
    """Lines over one x axis.

    Args:
        series: list of Series with points.
        title: what the chart shows, for those who do not see it.
        x, y: the axes' names.
        log: a logarithmic x axis, from 1; whole: x has whole numbers only.
        marks: of (x, text), vertical lines.
        low, high: of the y axis; None: as the points need.
    Returns:
        SVG, and the legend if there are several series, as HTML.
    """
    points = [point for each in series for point in each.values]
    if not points:
        return ''
    xs, ys = zip(*points)
    across = _ticks_log(max(xs)) if log else _ticks(min(xs), max(xs), most=8, least=float(whole))
    across = [value for value in across if min(xs) <= value <= max(xs)]
    low, high = min(ys) if low is None else low, max(ys) if high is None else high
    up = _ticks(low, high)
    left, right = (0, math.log(max(xs))) if log else (min(xs), max(xs))
    bottom, top = min(low, up[0]), max(high, up[-1])

    def place(point):
        value = math.log(point[0]) if log else point[0]
        return (
            LEFT + _share(value, left, right) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - _share(point[1], bottom, top) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_axes(place, across, up, x, y, bottom)]
    for value, text in marks:
        at = place((value, bottom))[0]
        anchor = 'end' if at > WIDTH / 2 else 'start'
        shift = -3 if anchor == 'end' else 3
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 14}"'
            f' y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="note" x="{at + shift:.1f}" y="{TOP - 6}" text-anchor="{anchor}">'
            f'{escape(text)}</text>'
        )
    for each in series:
        thinned = each.values[:: -(-len(each.values) // POINTS)] if each.values else []
        if each.values and thinned[-1] != each.values[-1]:
            thinned.append(each.values[-1])
        placed = [place(point) for point in thinned]
        style = f's{each.style % STYLES}' + ' dashed' * each.dashed
        path = ' '.join(f'{a:.1f},{b:.1f}' for a, b in placed)
        parts.append(f'<polyline class="line {style}" points="{path}"/>')
        if each.dots or len(placed) == 1:
            parts += [
                f'<circle class="dot {style}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in placed
            ]
    return _whole(parts, title, series)


def bar_chart(series, categories, *, title, x, y):
    """Bars side by side, of each series one at each category; y from 0, in per cent.

    The arguments are those of `line_chart`; categories: their names.
    """
    up = _ticks(0, max(max(each.values) for each in series))
    step = (WIDTH - LEFT - RIGHT) / len(categories)
    wide = 0.78 * step / len(series)

    def place(point):
        share = _share(point[1], 0, up[-1])
        return LEFT + step * point[0], HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(place, [], up, x, y, 0)]
    for number, name in enumerate(categories):
        middle = LEFT + step * (number + 0.5)
        parts.append(_text(name, middle, HEIGHT - BOTTOM + 13, 'middle'))
        for row, each in enumerate(series):
            value, style = each.values[number], f's{each.style % STYLES}'
            top, zero = place((0, value))[1], place((0, 0))[1]
            start = middle + wide * (row - len(series) / 2)
            parts.append(
                f'<rect class="bar {style}" x="{start:.1f}" y="{top:.1f}" width="{wide - 1:.1f}"'
                f' height="{max(0, zero - top):.1f}"><title>{escape(each.name)}, {escape(name)}:'
                f' {value:.1f} %</title></rect>'
            )
            if step > 45 or len(series) == 1:
                parts.append(_text(f'{value:.0f}', start + wide / 2, top - 2, 'middle', 'value'))
    return _whole(parts, title, series)


def _axes(place, across, up, x, y, bottom):
    """The grid, the ticks' numbers, and the axes' names."""
    parts = []
    for value in up:
        at = place((1, value))[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text(f'{value:g}', LEFT - 5, at + 3.5, 'end'))
    for value in across:
        at = place((value, bottom))[0]
        parts.append(_text(f'{value:g}', at, HEIGHT - BOTTOM + 13, 'middle'))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(_text(x, middle, HEIGHT - 8, 'middle', 'axis'))
    turned = TOP + (HEIGHT - TOP - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(10 {turned}) rotate(-90)" text-anchor="middle">'
        f'{escape(y)}</text>'
    )
    return ''.join(parts)


def _text(text, x, y, anchor, kind='tick'):
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _whole(parts, title, series):
    """The SVG, and the legend below it where there is more than one series."""
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg>'
    )
    if len(series) < 2:
        return svg
    items = ''.join(
        '<li><svg viewBox="0 0 22 8" aria-hidden="true"><line class="line'
        f' s{each.style % STYLES}{" dashed" * each.dashed}" x1="0" x2="22" y1="4" y2="4"/></svg>'
        f'{escape(each.name)}</li>'
        for each in series
    )
    return f'{svg}<ul class="legend">{items}</ul>'


def _share(value, low, high):
    """Where a value is between two, from 0 to 1; in the middle where they are equal."""
    return (value - low) / (high - low) if high > low else 0.5


def _ticks(low, high, most=6, least=0.0):
    """Round numbers from at or below `low` to at or above `high`; `least`: the smallest step."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = max(least, (high - low) / (most - 1))
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9)) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _ticks_log(high):
    """1, 2, 5, 10, 20, ... up to `high`; of a long axis the powers of ten alone."""
    powers = range(int(math.log10(high)) + 1)
    steps = (1, 2, 5) if high <= 200 else (1,)
    return [step * 10**power for power in powers for step in steps if step * 10**power <= high]
