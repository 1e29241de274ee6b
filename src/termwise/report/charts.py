"""A picture as options of Apache ECharts, which are plain data: no code is made from what users typed.

Colours are names of the page's own variables ("--up"), which the page fills in for light and dark; functions are names
that `page.js` knows ("@number").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from termwise.core.pictures import Bars, Line, Lines, Matrix, Picture, Points, Waterfall

from .reading import bar_name, places
from .tokens import printable

__all__ = ["by_layer", "height", "lies", "marks", "options", "starts_at_zero"]

SERIES = [f"--s{i}" for i in range(6)]
"""Colours of curves and bars in order, told apart by all kinds of eyes (Okabe & Ito)."""

NAMED = {"remainder": "--remainder", "whole": "--accent"}
"""Bars that are no terms."""

ROW, FRAME = 26, 96
"""Height of a row and of what stands around them, in pixels."""

Options = dict[str, Any]


@singledispatch
def options(picture: Picture) -> Options | None:
    """The chart of a picture; None where it is none (words, pixels, tables)."""
    return None


@singledispatch
def height(picture: Picture) -> int:
    """Of the chart, in pixels."""
    return 320


@singledispatch
def marks(picture: Picture) -> list[list[tuple[int, int]]]:
    """For each row of the table below a picture its marks in the chart, as (series, index); none where it has none."""
    return []


@options.register
def _(picture: Waterfall) -> Options:
    data: list[Options] = [
        {
            "name": bar_name(b),
            "value": [b.start, b.end, row, b.value],
            "itemStyle": {"color": NAMED.get(b.kind, "--up" if b.value > 0 else "--down")},
        }
        for row, b in enumerate(picture.bars)
    ]
    names = [d["name"] for d in data]
    series = {"type": "custom", "renderItem": "@waterfall", "data": data, "encode": {"x": [0, 1], "y": 2}, "clip": True}
    return _framed(
        xAxis=_values() | {"scale": True},
        yAxis=_categories(names) | {"inverse": True, "axisLabel": _label(width=200)},
        series=[series],
        tooltip={"trigger": "item", "formatter": "@step"},
    )


@marks.register
def _(picture: Waterfall) -> list[list[tuple[int, int]]]:
    return [[(0, i)] for i in range(len(picture.bars))]


@height.register
def _(picture: Waterfall) -> int:
    return FRAME - 40 + ROW * len(picture.bars)


@options.register
def _(picture: Lines) -> Options:
    words = any(isinstance(x, str) for line in picture.lines for x in line.x)
    places = list(dict.fromkeys(printable(str(x)) for line in picture.lines for x in line.x)) if words else []
    series = [s for i, line in enumerate(picture.lines) for s in _curve(line, i, picture)]
    counts = {"minInterval": 1} if all(float(x).is_integer() for line in picture.lines for x in line.x if not words) else {}
    known = [y for line in picture.lines for y in (*line.y, *line.low, *line.high) if math.isfinite(y)]
    stems = any(line.stems for line in picture.lines)
    return _framed(
        xAxis=(_categories(places) if words else _values(log=picture.log_x) | {"scale": True} | counts) | _named(picture.x, 30),
        yAxis=_values(log=picture.log_y) | _from(known, log=picture.log_y, bars=stems) | _named(picture.y, 58),
        series=series,
        legend=_legend([line.name for line in picture.lines]),
        tooltip={"trigger": "axis", "formatter": "@axis"},
    )


@marks.register
def _(picture: Lines) -> list[list[tuple[int, int]]]:
    found: dict[Any, list[tuple[int, int]]] = {place: [] for place in places(picture)}
    series = 0
    for line in picture.lines:
        series += bool(line.low)  # its band comes first
        for index, place in enumerate(x for x in line.x if _has_place(x, picture)):
            found[place].append((series, index))
        series += 1
    return list(found.values())


def _curve(line: Line, index: int, picture: Lines) -> list[Options]:
    """The curve, and below it the band of its interval."""
    colour = {"remainder": "--remainder", "chance": "--grey", "whole": "--ink"}.get(line.role, SERIES[index % len(SERIES)])
    name = printable(line.name)
    points = _points(line.x, line.y, picture)
    found: list[Options] = [
        {
            "name": name,
            "type": "bar" if line.stems else "scatter" if line.markers else "line",
            "data": points,
            "itemStyle": {"color": colour},
            "lineStyle": {"color": colour, "width": 2.5, "type": "dashed" if line.role in ("remainder", "chance") else "solid"},
            "symbolSize": 9 if line.markers else 5,
            "showSymbol": len(points) <= 40,
            "z": 2 if line.role == "chance" else 3,
        }
        | ({"barWidth": 2.5, "barGap": "-100%"} if line.stems else {})
    ]
    if line.low:
        edges = [
            [*low, high[1]]
            for low, high in zip(_points(line.x, line.low, picture), _points(line.x, line.high, picture), strict=True)
        ]
        band = {"type": "custom", "name": f"{name}, interval", "renderItem": "@band", "data": edges, "silent": True, "z": 1}
        found.insert(0, band | {"encode": {"x": 0, "y": [1, 2]}, "itemStyle": {"color": colour}, "tooltip": {"show": False}})
    return found


def _points(x: Sequence[Any], y: Sequence[float], picture: Lines) -> list[list[Any]]:
    found: list[list[Any]] = []
    for place, value in zip(x, y, strict=True):
        lost = not math.isfinite(value) or (picture.log_y and value <= 0)
        if _has_place(place, picture):
            found.append([printable(place) if isinstance(place, str) else place, None if lost else value])
    return found


def _has_place(x: Any, picture: Lines) -> bool:
    """Whether the axis has one for it."""
    return isinstance(x, str) or (math.isfinite(x) and (x > 0 or not picture.log_x))


@options.register
def _(picture: Bars) -> Options:
    across = lies(picture)
    names = [printable(n) for n in picture.names]
    series = [
        {
            "name": printable(name),
            "type": "bar",
            "barMaxWidth": 28,
            "stack": "one" if picture.stacked else None,
            "itemStyle": {"color": SERIES[i % len(SERIES)], "borderRadius": 2},
            "data": [_bar(n, v, picture) for n, v in zip(picture.names, values, strict=True)],
        }
        for i, (name, values) in enumerate(picture.values.items())
    ]
    known = [v for values in picture.values.values() for v in values if math.isfinite(v)]
    values = _values(log=picture.log) | _from(known, log=picture.log, bars=True) | _named(picture.y, 30 if across else 58)
    places = _categories(names)
    if across:
        axes = {"xAxis": values, "yAxis": places | {"inverse": True, "axisLabel": _label(width=200)}}
    else:
        axes = {"xAxis": places, "yAxis": values}
    return _framed(
        **axes,
        series=series,
        legend=_legend(list(picture.values) if len(picture.values) > 1 else []),
        tooltip={"trigger": "axis", "axisPointer": {"type": "shadow"}, "formatter": "@axis"},
    )


@marks.register
def _(picture: Bars) -> list[list[tuple[int, int]]]:
    return [[(series, i) for series in range(len(picture.values))] for i in range(len(picture.names))]


def by_layer(names: Sequence[str]) -> Options:
    """Bars, one for each layer from the input on, whose values `page.js` fills in."""
    return _framed(
        xAxis=_categories([printable(n) for n in names]) | {"axisLabel": _label() | {"hideOverlap": True}},
        yAxis=_values() | _named("relevance", 58),
        series=[{"name": "relevance", "type": "bar", "barMaxWidth": 28, "itemStyle": {"borderRadius": 2}, "data": []}],
        tooltip={"trigger": "axis", "axisPointer": {"type": "shadow"}, "formatter": "@axis"},
    )


def _bar(name: str, value: float, picture: Bars) -> Any:
    if not math.isfinite(value) or (picture.log and value <= 0):
        return None
    colour = NAMED.get(name, ("--up" if value > 0 else "--down") if picture.signed else None)
    return {"value": value, "itemStyle": {"color": colour}} if colour else value


@height.register
def _(picture: Bars) -> int:
    return FRAME + max(ROW - 6, 10 * len(picture.values)) * len(picture.names) if lies(picture) else 320


def lies(picture: Bars) -> bool:
    """Whether the bars lie, so that long or many names can be read."""
    return len(picture.names) > 12 or max((len(n) for n in picture.names), default=0) > 12


@options.register
def _(picture: Matrix) -> Options:
    cells = [(j, i, v) for i, row in enumerate(picture.values) for j, v in enumerate(row) if math.isfinite(v)]
    top = picture.top or max((abs(v) for *_, v in cells), default=0.0) or 1.0
    signed = any(v < 0 for *_, v in cells)
    colours = ["--down", "--paper", "--up"] if signed else ["--paper", "--up" if picture.signed else "--accent"]
    return _framed(
        xAxis=_categories([printable(str(c)) for c in picture.columns]) | _named(picture.x, 30),
        yAxis=_categories([printable(str(r)) for r in picture.rows]) | {"inverse": True} | _named(picture.y, 58),
        visualMap={
            "min": -top if signed else 0, "max": top, "calculable": True, "orient": "horizontal", "left": "center", "bottom": 0,
            "inRange": {"color": colours}, "textStyle": {"color": "--soft"}, "formatter": "@number", "itemHeight": 140,
        },
        series=[{"type": "heatmap", "name": printable(picture.value), "data": [list(c) for c in cells]}],
        tooltip={"trigger": "item", "formatter": "@cell"},
        grid={"left": 8, "right": 16, "top": 12, "bottom": 70} | _WITHIN,
    )  # fmt: skip


@marks.register
def _(picture: Matrix) -> list[list[tuple[int, int]]]:
    numbers = itertools.count()  # of the cells that are drawn, row by row
    return [[(0, next(numbers)) for v in row if math.isfinite(v)] for row in picture.values]


@height.register
def _(picture: Matrix) -> int:
    return FRAME + 38 + min(max(18 * len(picture.rows), 120), 560)


@options.register
def _(picture: Points) -> Options:
    cloud = {
        "type": "scatter",
        "name": "all",
        "symbolSize": 10,
        "itemStyle": {"color": "--s0"},
        "data": [
            {"name": printable(str(n)), "value": [x, y]} for n, x, y in zip(picture.names, picture.x, picture.y, strict=True)
        ],
        "label": {"show": picture.front and len(picture.names) <= 24, "formatter": "{b}", "position": "top", "color": "--soft"},
        "labelLayout": {"hideOverlap": True},
    }
    found = [cloud]
    if picture.front:
        best = [[picture.x[i], picture.y[i]] for i in picture.pareto()]
        style = {"color": "--accent", "width": 2}
        front: Options = {"type": "line", "name": "Pareto front", "data": best, "step": "end", "lineStyle": style}
        found.insert(0, front | {"symbol": "none", "silent": True, "itemStyle": {"color": "--accent"}})
    return _framed(
        xAxis=_values(log=picture.log_x) | {"scale": True} | _named(picture.x_name, 30),
        yAxis=_values(log=picture.log_y) | {"scale": True} | _named(picture.y_name, 58),
        series=found,
        tooltip={"trigger": "item", "formatter": "@point"},
        grid={"left": 8, "right": 24, "top": 28, "bottom": 8} | _WITHIN,  # names stand above their points
    )


@marks.register
def _(picture: Points) -> list[list[tuple[int, int]]]:
    return [[(int(picture.front), i)] for i in range(len(picture.names))]  # the front is the first series


# -- what all charts share --------------------------------------------------------------------------------------------


_WITHIN: Options = {"outerBoundsMode": "same", "outerBoundsContain": "all"}
"""Labels and names of the axes lie within the frame."""


def _framed(**more: Any) -> Options:
    return {
        "animation": False,
        "textStyle": {"fontFamily": "@font", "color": "--soft"},
        "grid": {"left": 8, "right": 24, "top": 34 if more.get("legend") else 12, "bottom": 8} | _WITHIN,
    } | {key: value for key, value in more.items() if value is not None}


def _values(*, log: bool = False) -> Options:
    line = {"show": True, "lineStyle": {"color": "--faint"}}
    # minus signs and digits as everywhere on the page
    return {
        "type": "log" if log else "value",
        "splitLine": line,
        "axisLabel": _label() | {"formatter": "@number", "hideOverlap": True},
    }


def _from(known: Sequence[float], *, log: bool, bars: bool) -> Options:
    """Where an axis begins: bars at 0, or a decade below the least where 0 has no place; curves at 0 where it is near."""
    if log:
        least = min((v for v in known if v > 0), default=1.0)
        begin = 10.0 ** (math.ceil(math.log10(least)) - 1)
        return {"min": begin, "startValue": begin} if bars else {}
    return {} if bars or starts_at_zero(known) else {"scale": True}


def starts_at_zero(known: Sequence[float]) -> bool:
    """Whether an axis of curves shows 0: where it is near, so that differences look as large as they are."""
    low, high = min(known, default=0.0), max(known, default=0.0)
    return high - low > 0.3 * max(abs(low), abs(high))


def _categories(names: Iterable[str]) -> Options:
    return {"type": "category", "data": list(names), "axisTick": {"show": False}, "axisLabel": _label(width=120)}


def _label(width: int | None = None) -> Options:
    return {"color": "--soft"} | ({"width": width, "overflow": "truncate"} if width else {})


def _named(name: str, gap: int) -> Options:
    place = {"name": printable(name), "nameLocation": "middle", "nameGap": gap, "nameTextStyle": {"color": "--soft"}}
    return place if name else {}


def _legend(names: Sequence[str]) -> Options | None:
    names = [printable(n) for n in names]
    return {"data": names, "top": 0, "left": 0, "type": "scroll", "textStyle": {"color": "--soft"}} if names else None
