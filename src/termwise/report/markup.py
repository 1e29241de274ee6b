"""A picture as what the templates print: text, numbers and data URIs, nothing that a user typed as markup."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from termwise.core.mosaic import areas
from termwise.core.pictures import Picture, Pixels, Steps, Table, Words

from . import charts
from .colour import css, robust_scale
from .figures import svg
from .heatmap import overlay, png, relevance_map
from .reading import ROWS, number, sentence
from .reading import table as as_table
from .tokens import merge, printable

__all__ = ["markup"]

Context = dict[str, Any]


@singledispatch
def markup(picture: Picture, static: bool = False) -> Context:
    """What the template `picture.html` prints.

    Args:
        picture: of any kind.
        static: without scripts, for notebooks: charts are drawn as SVG.
    """
    found = _head(picture) | {"kind": "chart"}
    found |= {"table": _rows(as_table(picture), charts.marks(picture)), "numbers": "The numbers"}
    if static:
        return found | {"src": _uri(svg([replace(picture, title="", note="")]), "svg+xml")}
    return found | {"options": _finite(charts.options(picture)), "height": charts.height(picture)}


@markup.register
def _(picture: Table, static: bool = False) -> Context:
    return _head(picture) | {"kind": "table", "table": _rows(picture)}


@markup.register
def _(picture: Steps, static: bool = False) -> Context:
    if static:
        numbers = {
            "table": _rows(as_table(picture.pictures[-1])),
            "numbers": f"The numbers of {picture.what} {printable(picture.names[-1])}",
        }
        return _head(picture) | numbers | {"kind": "chart", "src": _uri(svg([replace(picture, title="")]), "svg+xml")}
    steps = [markup(p) for p in picture.pictures]
    return _head(picture) | {
        "kind": "steps",
        "what": picture.what,
        "names": [printable(n) for n in picture.names],
        "steps": steps,
    }


@markup.register
def _(picture: Words, static: bool = False) -> Context:
    words = [replace(w, value=0.0 if math.isnan(w.value) else w.value) for w in merge(picture.tokens, picture.values)]
    scale = robust_scale([w.value for w in words], 100)
    digits = 2 - math.floor(math.log10(scale))  # as many as tell words apart
    shown = [
        {
            "text": printable(w.text),
            "colour": css(w.value, scale),
            "value": number(round(w.value, digits)),
            "title": number(w.value) + (f" from {' + '.join(map(printable, w.pieces))}" if len(w.pieces) > 1 else ""),
            "space": w.space,
            "special": w.special,
            "strong": abs(w.value) >= 0.25 * scale,
        }
        for w in words
    ]
    starts = np.cumsum([0, *(len(w.pieces) for w in words)])[:-1]
    rows = [np.add.reduceat(np.asarray(row, dtype=np.float64), starts).tolist() for row in picture.by_layer] if words else []
    return _head(picture) | {
        "kind": "words",
        "words": shown,
        "layers": _layers(picture, rows, [w.value for w in words], len(words)),
        "table": _rows(as_table(picture)),
        "numbers": "The numbers, token by token",
    }


@markup.register
def _(picture: Pixels, static: bool = False) -> Context:
    images: list[Context] = [
        {"src": _uri(png(relevance_map(picture.values)), "png"), "caption": "relevance of every pixel", "kind": "map"}
    ]
    if picture.picture is not None:
        images.insert(0, {"src": _uri(png(picture.picture), "png"), "caption": "what the model saw", "kind": "photo"})
        above = _uri(png(overlay(picture.picture, picture.values)), "png")
        images.append({"src": above, "caption": "relevance, summed over small patches", "kind": "overlay"})
    for image in images:
        image["patches"] = []
        image["alt"] = "what the model saw" if image["kind"] == "photo" else f"{image['caption']}. {sentence(picture)}"
    found: Context = _head(picture) | {"kind": "pixels", "images": images, "layers": None}
    if len(picture.layers):
        grid = np.asarray(picture.by_layer, dtype=np.float64)
        _, rows, columns = grid.shape
        images[-1]["patches"] = _patches(rows, columns)
        whole = torch.as_tensor(picture.values, dtype=torch.float64)
        sums = areas(len(whole), rows) @ whole @ areas(whole.shape[1], columns).T
        found["layers"] = _layers(picture, grid.reshape(len(grid), -1).tolist(), sums.reshape(-1).tolist(), columns)
    return found


def _patches(rows: int, columns: int) -> list[Context]:
    """The squares that a pointer finds, in percent of the image."""
    wide, high = 100 / columns, 100 / rows
    size = {"width": round(wide, 3), "height": round(high, 3)}
    return [
        {"name": f"{i + 1}, {j + 1}", "left": round(j * wide, 3), "top": round(i * high, 3)} | size
        for i in range(rows)
        for j in range(columns)
    ]


def _layers(picture: Words | Pixels, rows: list[list[float]], values: list[float], across: int) -> Context | None:
    """What each mark carries at each layer, and the chart that one of them is drawn in."""
    if not len(picture.layers):
        return None
    return {
        "what": "patch" if isinstance(picture, Pixels) else "word",
        "options": charts.by_layer(picture.layers),
        "height": 180,
        "rows": _finite([[float(f"{value:.5g}") for value in row] for row in rows]),  # as many digits as are shown
        "values": _finite(values),
        "across": across,
        "first": int(np.abs(values).argmax()),
    }


def _rows(table: Table, marks: Sequence[Sequence[tuple[int, int]]] = ()) -> Context:
    """Cells with the text to read and the number to sort by; rows with their marks in the chart above."""
    left = len(table.rows) - ROWS
    rows = [
        {"cells": [{"text": number(cell), "value": _sortable(cell)} for cell in row], "marks": list(marks[i]) if marks else []}
        for i, row in enumerate(table.rows[:ROWS])
    ]
    return {
        "heads": [number(h) for h in table.heads],
        "rows": rows,
        "more": f"{left} more rows are not shown." if left > 0 else "",
    }


def _sortable(cell: Any) -> float | str | None:
    """What a script sorts by; None for what is no number."""
    if not isinstance(cell, int | float) or math.isnan(cell):
        return None
    return cell if math.isfinite(cell) else "Infinity" if cell > 0 else "-Infinity"


def _finite(option: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have: a place without a mark."""
    if isinstance(option, dict):
        return {key: _finite(value) for key, value in option.items()}
    if isinstance(option, list | tuple):
        return [_finite(value) for value in option]
    return None if isinstance(option, float) and not math.isfinite(option) else option


def _head(picture: Picture) -> Context:
    return {"title": printable(picture.title), "note": printable(picture.note), "alt": sentence(picture)}


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
