"""A picture drawn with matplotlib, for papers: the same kinds and colours as on a page, on white.

    fig = why.plot();  fig.savefig("why.svg")

No state of pyplot is touched: figures can be made in any thread, and nothing pops up.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.core.pictures import Bars, Lines, Matrix, Picture, Pixels, Points, Steps, Table, Waterfall, Words

from .charts import lies, starts_at_zero
from .colour import ACCENT, COOL, INK, NEUTRAL, REMAINDER, SERIES, SOFT, WARM, blended, robust_scale
from .heatmap import overlay, relevance_map
from .reading import bar_name, number
from .reading import table as as_table
from .tokens import merge, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["figure", "png", "svg"]

WIDTH = 7.2
"""Inches of a figure across."""

MOST = 6
"""Of a slider's pictures so many are printed, evenly chosen, with the first and the last."""

ACROSS = 4
"""Maps of a slider stand so many in a row."""

CUT = 40
"""Rows of a table."""

FAINT = "#c3c9d1"
NAMED = {"remainder": REMAINDER, "whole": ACCENT}
ROLES = {"remainder": REMAINDER, "chance": NEUTRAL, "whole": INK}


def figure(pictures: Sequence[Picture], title: str = "") -> Figure:
    """The pictures below one another.

    Args:
        pictures: at least one.
        title: set above all.

    Raises:
        ValueError: when there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not pictures:
        raise ValueError("there is nothing to draw: no pictures were given")
    heights = [_height(p) + 0.15 * len(_note(p).splitlines()) for p in pictures]
    fig = Figure(figsize=(WIDTH, sum(heights) + (0.35 if title else 0)), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(fig)
    if title:
        fig.suptitle(_plain(title), fontsize=12, fontweight="bold", color=_rgb(INK))
    places = fig.subfigures(len(pictures), 1, height_ratios=heights, squeeze=False)[:, 0]
    for picture, place in zip(pictures, places, strict=True):
        _draw(picture, place)
        if _note(picture):
            place.supxlabel(_plain(_note(picture)), fontsize=7.5, color=_rgb(SOFT), x=0.02, ha="left")
    return fig


def png(pictures: Sequence[Picture], title: str = "") -> bytes:
    """The figure as a PNG, the same bytes every time."""
    return _saved(figure(pictures, title), "png", {"Software": None})


def svg(pictures: Sequence[Picture], title: str = "") -> bytes:
    """The figure as an SVG whose letters are letters, the same bytes every time."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "termwise"}):
        return _saved(figure(pictures, title), "svg", {"Date": None, "Creator": None})


def _note(picture: Picture) -> str:
    """The sentence of a picture in lines of its width; of a table that is cut, how much is left out."""
    left = len(picture.rows) - CUT if isinstance(picture, Table) else 0
    return textwrap.fill(f"{printable(picture.note)}{f' {left} more rows are not shown.' if left > 0 else ''}".strip(), 116)


def _saved(fig: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, metadata=metadata)  # type: ignore[arg-type]  # None: left out
    return buffer.getvalue()


@singledispatch
def _draw(picture: Picture, place: SubFigure) -> None:
    raise TypeError(f"a {type(picture).__name__} is no kind of picture that can be drawn: see termwise.core.pictures")


@singledispatch
def _height(picture: Picture) -> float:
    if type(picture) not in _draw.registry:
        _draw(picture, None)  # type: ignore[arg-type]  # says what it is
    return 3.2


@_height.register
def _(picture: Waterfall) -> float:
    return 0.6 + 0.3 * len(picture.bars)


@_draw.register(Waterfall)
def _(picture: Waterfall, place: SubFigure) -> None:
    axis = _axis(picture, place)
    steps = picture.bars
    ends = [e for b in steps for e in (b.start, b.end) if math.isfinite(e)] or [0.0]
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.02
    for row, bar in enumerate(steps):
        if not (math.isfinite(bar.start) and math.isfinite(bar.end)):
            axis.text(low, row, number(bar.value), va="center", fontsize=8, color=_rgb(SOFT))  # no number, no bar
            continue
        colour = NAMED.get(bar.kind, WARM if bar.value > 0 else COOL)
        axis.barh(row, bar.end - bar.start, left=bar.start, height=0.62, color=_rgb(colour))
        axis.text(max(bar.start, bar.end) + room, row, number(bar.value), va="center", fontsize=8, color=_rgb(SOFT))
        if row + 1 < len(steps) and steps[row + 1].kind != "whole":
            axis.plot([bar.end, bar.end], [row + 0.31, row + 0.69], color=FAINT, linewidth=0.8)
    axis.set_yticks(range(len(steps)), [_short(bar_name(b)) for b in steps])
    axis.invert_yaxis()
    axis.set_xlim(low - 2 * room, high + 9 * room)
    axis.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axis.tick_params(size=0)
    axis.spines[:].set_visible(False)


@_draw.register(Lines)
def _(picture: Lines, place: SubFigure) -> None:
    axis = _axis(picture, place)
    words = list(dict.fromkeys(x for line in picture.lines for x in line.x if isinstance(x, str)))
    if picture.log_x and not words:
        axis.set_xscale("log")
    if picture.log_y:
        axis.set_yscale("log")
    if not (words or picture.log_x) and all(float(x).is_integer() for line in picture.lines for x in line.x):
        axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of the MaxNLocator that it is
    for i, line in enumerate(picture.lines):
        colour = _rgb(ROLES.get(line.role, SERIES[i % len(SERIES)]))
        x: Any = [words.index(str(p)) for p in line.x] if words else list(line.x)
        shown = [y if _drawable(y, picture.log_y) else math.nan for y in line.y]
        if line.low:
            axis.fill_between(x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        if line.stems:
            floor = min((y for y in shown if y > 0), default=1.0) / 3 if picture.log_y else 0.0
            axis.vlines(x, floor, shown, color=colour, linewidth=1.6, label=_plain(line.name))
            continue
        style = "none" if line.markers else "--" if line.role in ("remainder", "chance") else "-"
        marker = "o" if line.markers or len(x) <= 40 else None
        look: dict[str, Any] = {
            "color": colour,
            "linewidth": 2,
            "marker": marker,
            "markersize": 3.5,
            "zorder": 1.9 if line.role == "chance" else 2,
        }
        axis.plot(x, shown, linestyle=style, label=_plain(line.name), **look)
    if words:
        slant: dict[str, Any] = {"rotation": 45, "ha": "right"} if sum(map(len, words)) > 60 else {}
        axis.set_xticks(range(len(words)), [_short(w) for w in words], **slant)
    known = [y for line in picture.lines for y in (*line.y, *line.low, *line.high) if math.isfinite(y)]
    if not picture.log_y and starts_at_zero(known):
        axis.set_ylim(min(0.0, axis.get_ylim()[0]) if min(known) < 0 else 0.0, max(0.0, axis.get_ylim()[1]))
    axis.set_xlabel(_plain(picture.x))
    axis.set_ylabel(_plain(picture.y))
    if len(picture.lines) > 1:
        axis.legend(frameon=False, fontsize=8, labelcolor=_rgb(SOFT))


@_height.register
def _(picture: Bars) -> float:
    return 0.9 + 0.22 * max(1, len(picture.values)) * len(picture.names) if lies(picture) else 3.0


@_draw.register(Bars)
def _(picture: Bars, place: SubFigure) -> None:
    axis = _axis(picture, place)
    flat, count = lies(picture), max(1, len(picture.values))
    thick = 0.8 / (1 if picture.stacked else count)
    below = np.zeros(len(picture.names))
    for i, (name, values) in enumerate(picture.values.items()):
        at = [row + (0.0 if picture.stacked else (i - (count - 1) / 2) * thick) for row in range(len(values))]
        usual = [(WARM if v > 0 else COOL) if picture.signed else SERIES[i % len(SERIES)] for v in values]
        colours = [_rgb(NAMED.get(n, colour)) for n, colour in zip(picture.names, usual, strict=True)]
        sizes = [v if _drawable(v, picture.log) else 0.0 for v in values]
        base: dict[str, Any] = {"left" if flat else "bottom": below.copy()} if picture.stacked else {}
        (axis.barh if flat else axis.bar)(at, sizes, thick, color=colours, label=_plain(name), **base)
        below += sizes
    names, places = [_short(n) for n in picture.names], range(len(picture.names))
    if flat:
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.set_xlabel(_plain(picture.y))
    else:
        axis.set_xticks(places, names)
        axis.set_ylabel(_plain(picture.y))
    if picture.log:
        (axis.set_xscale if flat else axis.set_yscale)("log")
    if count > 1:
        axis.legend(frameon=False, fontsize=8, labelcolor=_rgb(SOFT))


@_height.register
def _(picture: Matrix) -> float:
    return 1.1 + min(max(0.16 * len(picture.rows), 1.2), 6)


@_draw.register(Matrix)
def _(picture: Matrix, place: SubFigure) -> None:
    axis = _axis(picture, place)
    values = np.asarray(picture.values, dtype=np.float64).reshape(len(picture.rows), len(picture.columns))
    known = np.where(np.isfinite(values), values, 0.0)
    top = picture.top or float(np.abs(known).max(initial=0)) or 1.0
    warm = WARM if picture.signed else ACCENT
    if not known.size:
        axis.set_axis_off()
        axis.text(0, 0.5, "nothing: the matrix is empty", fontsize=8, color=_rgb(SOFT), transform=axis.transAxes)
        return
    axis.imshow(blended(known, top, gamma=1.0, warm=warm), aspect="auto", interpolation="nearest")
    for names, set_ticks in ((picture.columns, axis.set_xticks), (picture.rows, axis.set_yticks)):
        every = max(1, len(names) // 24)
        set_ticks(range(0, len(names), every), [_short(str(n), 18) for n in list(names)[::every]])
    if sum(len(str(c)) for c in picture.columns) > 70:
        axis.tick_params(axis="x", rotation=60)
    axis.set_xlabel(_plain(picture.x))
    axis.set_ylabel(_plain(picture.y))
    axis.spines[:].set_color(FAINT)
    _scale(place, axis, -top if (known < 0).any() else 0.0, top, picture.value, warm)


@_height.register
def _(picture: Points) -> float:
    return 3.8


@_draw.register(Points)
def _(picture: Points, place: SubFigure) -> None:
    axis = _axis(picture, place)
    if picture.log_x:
        axis.set_xscale("log")
    if picture.log_y:
        axis.set_yscale("log")
    axis.scatter(picture.x, picture.y, s=28, color=_rgb(SERIES[0]), zorder=3)
    if picture.front:
        best = picture.pareto()
        ends = [[values[i] for i in best] for values in (picture.x, picture.y)]
        axis.step(*ends, where="post", color=_rgb(ACCENT), linewidth=1.6, label="Pareto front")
        axis.legend(frameon=False, fontsize=8, labelcolor=_rgb(SOFT))
    if picture.front and len(picture.names) <= 24:
        for name, x, y in zip(picture.names, picture.x, picture.y, strict=True):
            axis.annotate(
                _short(str(name)), (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=7.5, color=_rgb(SOFT)
            )
    axis.set_xlabel(_plain(picture.x_name))
    axis.set_ylabel(_plain(picture.y_name))


@_height.register
def _(picture: Words) -> float:
    return 0.5 + 0.32 * math.ceil(1.3 * sum(len(t) + 2 for t in picture.tokens) / 84)


@_draw.register(Words)
def _(picture: Words, place: SubFigure) -> None:
    axis = _axis(picture, place)
    axis.set_axis_off()
    sentence = [replace(w, value=0.0 if math.isnan(w.value) else w.value) for w in merge(picture.tokens, picture.values)]
    colours = blended([w.value for w in sentence], robust_scale([w.value for w in sentence], 100)) / 255
    rows = _height(picture) / 0.32
    x, row = 0.0, 0.5
    for word, colour in zip(sentence, colours, strict=True):
        text = _plain(printable(word.text))
        width = (len(text) + 1.6) / 84  # letters of one width: nothing has to be measured
        if x + width > 1 and x:
            x, row = 0.0, row + 1
        axis.text(
            x, 1 - row / rows, text, fontsize=9, family="monospace", color=_rgb(INK), va="center", transform=axis.transAxes,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": tuple(colour), "edgecolor": "none"},
        )  # fmt: skip
        x += width + (0.6 / 84 if word.space else 0)


@_draw.register(Pixels)
def _(picture: Pixels, place: SubFigure) -> None:
    panels = [(relevance_map(picture.values), "relevance of every pixel")]
    if picture.picture is not None:
        panels.insert(0, (np.asarray(picture.picture), "what the model saw"))
        panels.append((overlay(picture.picture, picture.values), "summed over small patches"))
    place.suptitle(_plain(picture.title), fontsize=10, fontweight="bold", color=_rgb(INK), x=0.02, ha="left")
    axes = place.subplots(1, len(panels), squeeze=False)[0]
    for axis, (pixels, label) in zip(axes, panels, strict=True):
        axis.imshow(pixels, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(label, fontsize=8, color=_rgb(SOFT))
        axis.spines[:].set_color(FAINT)
    scale = robust_scale(picture.values, 99.0)
    bar = _scale(place, list(axes), -scale, scale, "")
    bar.set_ticks([-scale, 0, scale], labels=["lowers", "0", "raises"])


def _scale(place: SubFigure, axes: Any, low: float, high: float, label: str, warm: tuple[int, int, int] = WARM) -> Any:
    """The colour scale beside a picture; 0 is white."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = ListedColormap(blended(np.linspace(low, high, 255), high, gamma=1.0, warm=warm) / 255)
    bar = place.colorbar(ScalarMappable(Normalize(low, high), shades), ax=axes, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(size=0, labelsize=7.5, labelcolor=_rgb(SOFT))
    bar.set_label(_plain(label), fontsize=8, color=_rgb(SOFT))
    return bar


@_height.register
def _(picture: Table) -> float:
    return 0.5 + 0.24 * (min(len(picture.rows), CUT) + 1)


@_draw.register(Table)
def _(picture: Table, place: SubFigure) -> None:
    axis = _axis(picture, place)
    axis.set_axis_off()
    shown = as_table(picture)
    cells = [[_short(number(cell)) for cell in row] for row in shown.rows[:CUT]]
    drawn = axis.table(
        cells or [[""] * len(shown.heads)], colLabels=[_short(h) for h in shown.heads], loc="upper center", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for cell in drawn.get_celld().values():
        cell.set_edgecolor(FAINT)
        cell.get_text().set_color(_rgb(INK))


def _chosen(picture: Steps) -> list[int]:
    count = len(picture.pictures)
    return sorted({round(i * (count - 1) / max(1, min(MOST, count) - 1)) for i in range(min(MOST, count))})


def _maps(picture: Steps) -> list[tuple[str, Any]]:
    """Where every step is a map of one image: the image, and each map beside the others, overlaid where there is an image."""
    if not all(isinstance(p, Pixels) for p in picture.pictures):
        return []
    seen = picture.pictures[0].picture  # type: ignore[attr-defined]
    panels = [] if seen is None else [("what the model saw", np.asarray(seen))]
    for name, p in zip(picture.names, picture.pictures, strict=True):
        values = p.values  # type: ignore[attr-defined]
        panels.append((name, relevance_map(values) if seen is None else overlay(seen, values)))
    return panels


@_height.register
def _(picture: Steps) -> float:
    if panels := _maps(picture):
        return 0.4 + 2.0 * -(-len(panels) // ACROSS)
    return sum(_height(picture.pictures[i]) for i in _chosen(picture))


@_draw.register(Steps)
def _(picture: Steps, place: SubFigure) -> None:
    if panels := _maps(picture):
        place.suptitle(_plain(picture.title), fontsize=10, fontweight="bold", color=_rgb(INK), x=0.02, ha="left")
        axes = place.subplots(-(-len(panels) // ACROSS), ACROSS, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, (name, pixels) in zip(axes, panels, strict=False):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(_short(name, 24), fontsize=8, color=_rgb(SOFT))
        return
    shown = [picture.pictures[i] for i in _chosen(picture)]
    names = [f"{picture.what} {picture.names[i]}" for i in _chosen(picture)]
    places = place.subfigures(len(shown), 1, height_ratios=[_height(p) for p in shown], squeeze=False)[:, 0]
    for one, name, below in zip(shown, names, places, strict=True):
        _draw(replace(one, title=f"{one.title}, {name}" if one.title else name), below)


def _axis(picture: Picture, place: SubFigure) -> Axes:
    """An axis with the title, and spines and letters that stand back."""
    axis = place.subplots()
    axis.set_title(_plain(picture.title), fontsize=10, fontweight="bold", color=_rgb(INK), loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[:].set_color(FAINT)
    axis.tick_params(color=FAINT, labelcolor=_rgb(SOFT), labelsize=8)
    for one in (axis.xaxis, axis.yaxis):
        one.label.set(fontsize=8.5, color=_rgb(SOFT))
    return axis


def _drawable(value: float, log: bool) -> bool:
    """Whether a number has a place on an axis."""
    return math.isfinite(value) and (value > 0 or not log)


def _rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    r, g, b = colour
    return r / 255, g / 255, b / 255


def _plain(text: str) -> str:
    """Text in which no `$` starts a formula, and nothing moves a cursor."""
    return printable(text).replace("$", r"\$")


def _short(text: str, most: int = 44) -> str:
    """A name that leaves room for the picture."""
    text = printable(text)
    return (text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}").replace("$", r"\$")
