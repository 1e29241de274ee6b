"""Methods side by side: one table, and one picture of their maps or sentences.

Knows rows of numbers and decompositions, not how they came about.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from termwise.core.decomposition import Decomposition

from .colour import blended, robust_scale
from .heatmap import overlay, relevance_map
from .tokens import printable, words

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["cells", "figure", "page", "table"]

HEADS = {"error": "error", "cancellation": "cancels", "passes": "passes", "seconds": "seconds"}
"""Columns that every comparison has, after its metrics, as a reader calls them."""


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and texts of the table, one list per method.

    Args:
        rows: mappings with "method", metrics with their "_low" and "_high", and the columns of `HEADS`; "problem" says why
            a method could not run.
    """
    metrics = list(dict.fromkeys(k.removesuffix("_low") for row in rows for k in row if k.endswith("_low")))
    heads = ["method", *metrics, *HEADS.values()]
    found = []
    for row in rows:
        line = [printable(str(row["method"]))]
        if row["problem"]:
            found.append([*line, printable(row["problem"])])
            continue
        for name in metrics:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            line.append(f"{row[name]:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"))
        said = {
            "error": f"{row['error']:.0e}" if row["error"] else "0",
            "cancellation": f"{row['cancellation']:.3g}x",
            "passes": f"{row['passes']:.1f}",
            "seconds": f"{row['seconds']:.3g}",
        }
        found.append([*line, *("" if math.isnan(row[name]) else said[name] for name in HEADS)])
    return heads, found


def table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The table for a terminal; below it, what did not run and why."""
    heads, lines = cells(rows)
    found = Table(box=None, header_style="dim", padding=(0, 1))
    for head in heads:
        found.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    problems = []
    for line in lines:
        if len(line) == 2:
            problems.append(Text(f"{line[0]} does not run: {line[1]}", style="yellow"))
        else:
            found.add_row(*map(Text, line))
    return Group(found, *problems)


def figure(explained: Sequence[tuple[str, Decomposition]], *, sample: int = 0, picture: Any = None, title: str = "") -> bytes:
    """Maps of one image beside each other, or one line of coloured words per method, as a PNG.

    Args:
        explained: (name, decomposition), each with a `heatmap` or with `names`.
        sample: which sample.
        picture: (height, width, 3), 0 to 255, drawn below the maps and beside them.
        title: set above.

    Raises:
        ValueError: when there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not explained:
        raise ValueError("no method ran: there is nothing to draw")
    if any(n.startswith("input:") and p.ndim == 4 for n, p in explained[0][1].parts.items()):
        fig = _maps(Figure, explained, sample, picture)
    else:
        fig = _lines(Figure, explained, sample)
    FigureCanvasAgg(fig)
    if title:
        fig.suptitle(title.replace("$", r"\$"), fontsize=12, fontweight="bold", color="#1b1f24")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def page(
    rows: Sequence[Mapping[str, Any]], explained: Sequence[tuple[str, Decomposition]], *, picture: Any, title: str, lead: str
) -> str:
    """A self-contained HTML page: the picture above the table."""
    import base64

    from .page import rendered

    heads, lines = cells(rows)
    drawn = base64.b64encode(figure(explained, picture=picture)).decode() if explained else ""
    return rendered(
        "comparison.html", title=title, lead=lead, heads=heads, lines=lines, drawn=drawn, footer="", interactive=False
    )


def _maps(make: Any, explained: Sequence[tuple[str, Any]], sample: int, picture: Any) -> Any:
    panels = [(name, why.heatmap(sample=sample)) for name, why in explained]
    count = len(panels) + (picture is not None)
    across = min(count, 4)
    down = -(-count // across)
    fig = make(figsize=(2.5 * across, 2.75 * down + 0.3), dpi=150, facecolor="white", layout="constrained")
    axes = fig.subplots(down, across, squeeze=False).flatten()
    pictures = [] if picture is None else [("the input", picture)]
    pictures += [(n, relevance_map(heat) if picture is None else overlay(picture, heat)) for n, heat in panels]
    for axis, (name, pixels) in zip(axes, pictures, strict=False):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(name.replace("$", r"\$"), fontsize=9, color="#3a424d")
    for axis in axes:
        axis.set_axis_off()
    return fig


def _lines(make: Any, explained: Sequence[tuple[str, Any]], sample: int) -> Any:
    """One row of coloured cells per method: the words of a sentence, or the features of a row of numbers."""
    found = []
    for name, why in explained:
        said = words(why, sample)
        part = next(p for n, p in why.parts.items() if n.startswith("input:"))
        values = [w.value for w in said] or part[sample].flatten().tolist()
        found.append((name, [printable(w.text) for w in said] or [str(i) for i in range(len(values))], values))
    count = max(len(values) for _, _, values in found)
    fig = make(figsize=(min(1.6 + 0.55 * count, 16), 0.9 + 0.5 * len(found)), dpi=150, facecolor="white", layout="constrained")
    axis = fig.subplots()
    axis.set_xlim(0, count)
    axis.set_ylim(len(found), 0)
    for row, (_, _, values) in enumerate(found):
        colours = blended(values, robust_scale(values, 100)) / 255
        for column, colour in enumerate(colours):
            axis.add_patch(_cell(column, row, colour))
    axis.set_yticks([r + 0.5 for r in range(len(found))], [n.replace("$", r"\$") for n, _, _ in found], fontsize=8.5)
    texts = [t.replace("$", r"\$") for t in found[0][1]]
    axis.set_xticks([c + 0.5 for c in range(len(texts))], texts, fontsize=8, rotation=45, ha="left")
    axis.xaxis.tick_top()
    axis.tick_params(size=0, labelcolor="#3a424d")
    for side in axis.spines.values():
        side.set_visible(False)
    return fig


def _cell(column: int, row: int, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column + 0.03, row + 0.06), 0.94, 0.88, facecolor=tuple(colour), edgecolor="#e3e6ea", linewidth=0.5)
