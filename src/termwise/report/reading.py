"""A picture for those who do not see it: one sentence, and the same numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from termwise.core.pictures import Bar, Bars, Lines, Matrix, Picture, Pixels, Points, Steps, Table, Waterfall, Words

from .tokens import printable

__all__ = ["bar_name", "number", "places", "sentence", "table"]

ROWS = 500
"""A table below a picture has at most as many rows; it says when there are more."""


def number(value: Any) -> str:
    """Four digits of what is no count, a true minus sign, and words for what is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return printable(str(value))
    if isinstance(value, int):
        return str(value).replace("-", "\N{MINUS SIGN}")
    if math.isnan(value):
        return "–"
    if 1e4 <= abs(value) < 1e6:
        text = f"{float(f'{value:.4g}'):.0f}"  # an exponent would be longer
    else:
        text = f"{value:z.4g}"  # z: no "-0"
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text


def bar_name(bar: Bar) -> str:
    """A term with its kind, where that says more."""
    return printable(bar.label if bar.kind in (bar.label, "part", "whole") else f"{bar.label} ({bar.kind})")


@singledispatch
def sentence(picture: Picture) -> str:
    """What is to be seen, in one sentence of plain text."""
    return printable(picture.title)


@singledispatch
def table(picture: Picture) -> Table:
    """The numbers of a picture as rows."""
    return Table(picture.title, [], [])


@sentence.register
def _(picture: Waterfall) -> str:
    *terms, whole = picture.bars
    largest = max(terms, key=lambda b: abs(b.value), default=whole)
    return (
        f"Waterfall of {len(terms)} terms from 0 to {number(whole.value)}; the largest is {printable(largest.label)}, "
        f"{number(largest.value)}."
    )


@table.register
def _(picture: Waterfall) -> Table:
    whole = picture.bars[-1].value
    rows = [
        [b.label, "" if b.kind == b.label else b.kind, b.value, 100 * b.value / whole if whole else math.nan]
        for b in picture.bars
    ]
    return Table(picture.title, ["part", "kind", "contribution", "of the whole, %"], rows)


@sentence.register
def _(picture: Lines) -> str:
    told = []
    for line in picture.lines:
        known = [y for y in line.y if math.isfinite(y)]
        if known:
            told.append(f"{printable(line.name)} from {number(known[0])} to {number(known[-1])}")
    return f"Curves of {picture.y or 'values'} over {picture.x or 'places'}: {'; '.join(told) or 'no numbers'}."


@table.register
def _(picture: Lines) -> Table:
    heads, columns = [picture.x or "place"], []
    for line in picture.lines:
        named: list[tuple[str, Sequence[float]]] = [(line.name, line.y)]
        if line.low:
            named += [(f"{line.name}, low", line.low), (f"{line.name}, high", line.high)]
        for name, values in named:
            heads.append(name)
            columns.append(dict(zip(line.x, values, strict=True)))
    return Table(picture.title, heads, [[x, *(c.get(x, "") for c in columns)] for x in places(picture)])


def places(picture: Lines) -> list[Any]:
    """Where any of the curves has a value, in order: curves may have places of their own."""
    found: list[Any] = list(dict.fromkeys(x for line in picture.lines for x in line.x))
    return found if any(isinstance(x, str) for x in found) else sorted(found)


@sentence.register
def _(picture: Bars) -> str:
    told = []
    for name, values in picture.values.items():
        known = [(v, n) for v, n in zip(values, picture.names, strict=True) if math.isfinite(v)]
        if known:
            value, bar = max(known, key=lambda pair: abs(pair[0]))
            told.append(f"{printable(name)} is largest at {printable(bar)}, {number(value)}")
    return f"{len(picture.names)} bars of {picture.y or 'values'}: {'; '.join(told) or 'no numbers'}."


@table.register
def _(picture: Bars) -> Table:
    columns = list(picture.values.values())
    return Table(picture.title, ["", *picture.values], [[n, *(c[i] for c in columns)] for i, n in enumerate(picture.names)])


@sentence.register
def _(picture: Matrix) -> str:
    known = [(v, i, j) for i, row in enumerate(picture.values) for j, v in enumerate(row) if math.isfinite(v)]
    text = f"{len(picture.rows)} by {len(picture.columns)} numbers as colours"
    if not known:
        return text + "."
    low, high = min(known), max(known)
    return f"{text}, from {number(low[0])} to {number(high[0])}, the highest at {_place(picture, high)}."


def _place(picture: Matrix, found: tuple[float, int, int]) -> str:
    return f"{printable(str(picture.rows[found[1]]))}, {printable(str(picture.columns[found[2]]))}"


@table.register
def _(picture: Matrix) -> Table:
    rows = [[name, *row] for name, row in zip(picture.rows, picture.values, strict=True)]
    return Table(picture.title, [picture.y, *picture.columns], rows)


@sentence.register
def _(picture: Points) -> str:
    best = ", ".join(printable(str(picture.names[i])) for i in picture.pareto()[:6])
    front = f"; no other is better than {best}" if picture.front and best else ""
    return f"{len(picture.names)} points, {picture.x_name} against {picture.y_name}{front}."


@table.register
def _(picture: Points) -> Table:
    rows = [list(row) for row in zip(picture.names, picture.x, picture.y, strict=True)]
    return Table(picture.title, ["", picture.x_name, picture.y_name], rows)


@sentence.register
def _(picture: Words) -> str:
    ranked = sorted(zip(picture.values, picture.tokens, strict=True), key=lambda pair: -abs(pair[0]))[:3]
    return "Words by relevance: " + ", ".join(f"{printable(str(t))} {number(v)}" for v, t in ranked) + "."


@table.register
def _(picture: Words) -> Table:
    heads = ["token", "relevance", *picture.layers]
    layers = [[row[i] for row in picture.by_layer] for i in range(len(picture.tokens))]
    rows = [[t, v, *more] for t, v, more in zip(picture.tokens, picture.values, layers, strict=True)]
    return Table(picture.title, heads, rows)


@sentence.register
def _(picture: Pixels) -> str:
    rows, columns = picture.values.shape
    place = abs(picture.values).reshape(-1).argmax()
    return (
        f"Relevance of {rows} by {columns} pixels, adding up to {number(float(picture.values.sum()))}; the strongest is at row "
        f"{int(place) // columns}, column {int(place) % columns}."
    )


@sentence.register
def _(picture: Table) -> str:
    return f"{printable(picture.title)}: a table of {len(picture.rows)} rows."


@table.register
def _(picture: Table) -> Table:
    return picture


@sentence.register
def _(picture: Steps) -> str:
    return f"{len(picture.pictures)} pictures by {picture.what}; the last: {sentence(picture.pictures[-1])}"
