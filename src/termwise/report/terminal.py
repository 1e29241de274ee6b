"""A decomposition in the terminal: its parts as bars, the sentence in colours, and the honest line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from termwise.core import pictures
from termwise.core.decomposition import Decomposition
from termwise.core.waterfall import bars, check_sample

from .reading import number
from .reading import table as as_table
from .tokens import printable, rich_text, words

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["classes_table", "lines", "rendered", "show", "show_pictures"]

WIDTH = 18
"""Characters of the longest bar."""


def show(decomposition: Decomposition, sample: int = 0, k: int = 10, console: Console | None = None) -> None:
    """Print one sample of a decomposition: the sentence if there is one, the parts, and the honest line.

    Args:
        decomposition: any.
        sample: which sample.
        k: how many parts to name.
        console: where to; the terminal when not given.

    Raises:
        ValueError: when there is no such sample.
    """
    (console or Console()).print(rendered(decomposition, sample, k))


def show_pictures(result: pictures.Pictured, sample: int = 0, k: int = 12, console: Console | None = None) -> None:
    """Print any result: its one line, and the numbers of its pictures as tables of at most `k` rows."""
    console = console or Console()
    for picture in result.pictures(sample):
        found = as_table(picture)
        if found.rows:
            console.print(Text(printable(picture.title), style="bold"))
            console.print(lines(replace(found, rows=found.rows[:k])))
            if len(found.rows) > k:
                console.print(Text(f"{len(found.rows) - k} more rows", style="dim"))
    console.print(Text("\n".join(map(printable, str(getattr(result, "summary", result.__repr__)()).splitlines())), style="bold"))


def rendered(decomposition: Decomposition, sample: int = 0, k: int = 10) -> RenderableType:
    """What `show` prints, to be put into other layouts."""
    whole = decomposition.whole
    check_sample(decomposition, sample)
    blocks: list[RenderableType] = [_title(decomposition, sample)]
    if sentence := words(decomposition, sample):
        blocks.append(Padding(rich_text(sentence), (1, 2)))
    blocks.append(
        _waterfall(decomposition, sample, k)
        if whole.ndim == decomposition.by_sample and not whole.is_complex()
        else _norms(decomposition, k)
    )
    one = decomposition[sample] if decomposition.by_sample else decomposition
    blocks.append(Text(one.summary(), style="bold green" if one.error() < 1e-4 else "bold yellow"))
    return Group(*blocks)


def classes_table(scores: Sequence[tuple[str, float]], explained: str = "") -> Table:
    """The model's most probable classes as bars."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, probability in scores:
        filled = Text("█" * round(WIDTH * probability), style="cyan")
        style = "bold" if name == explained else ""
        table.add_row(Text(printable(name), style=style), Text(f"{100 * probability:5.1f} %"), filled)
    return table


def lines(picture: pictures.Table) -> Table:
    """A table of a picture, names to the left and numbers to the right."""
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for i, head in enumerate(picture.heads):
        table.add_column(Text(printable(head)), justify="right" if i else "left", no_wrap=True)
    for row in picture.rows:
        table.add_row(*(Text(number(cell)) for cell in row))
    return table


def _title(decomposition: Decomposition, sample: int) -> Text:
    whole = decomposition.whole
    label = getattr(decomposition, "label", None)
    name = label(sample) if callable(label) and whole.ndim else type(decomposition).__name__
    line = Text(printable(name), style="bold")
    if whole.numel() == 1 or (whole.ndim == 1 and decomposition.by_sample):
        line.append(f" = {float((whole[sample] if whole.ndim else whole).real):.6g}")
    else:
        line.append(f"  whole {tuple(whole.shape)}")
    if decomposition.by_sample and len(whole) > 1:
        line.append(f"   (sample {sample % len(whole) + 1} of {len(whole)})", style="dim")
    return line


def _waterfall(decomposition: Decomposition, sample: int, k: int) -> Table:
    steps = bars(decomposition, k, sample)
    whole = steps[-1].value
    scale = max(abs(b.value) for b in steps) or 1.0
    table = Table(box=None, header_style="dim", padding=(0, 1))
    # where it is narrow, names are folded and bars shrink; figures are never cut
    table.add_column("part", overflow="fold", max_width=44)
    table.add_column("kind", style="dim", no_wrap=True)
    table.add_column("sum", justify="right", no_wrap=True)
    table.add_column("share", justify="right", style="dim", no_wrap=True)
    table.add_column("", max_width=WIDTH)
    for bar in steps:
        if bar.kind == "whole":
            table.add_section()
        share = f"{100 * bar.value / whole:.1f} %" if whole else "-"
        colour = "bright_black" if bar.kind == "whole" else "red" if bar.value > 0 else "blue"
        length = Bar(scale, 0, abs(bar.value), color=colour)
        kind = "" if bar.kind == bar.label else bar.kind
        table.add_row(Text(printable(bar.label)), Text(kind), f"{bar.value:+.5g}", share, length)
    return table


def _norms(decomposition: Decomposition, k: int) -> Table:
    """Where the whole is an array: sizes of the parts."""
    size = float(decomposition.whole.norm())
    norms = {name: float(value.norm()) for name, value in decomposition.contributions().items()}
    ranked = sorted(norms.items(), key=lambda item: -item[1])
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for column in ("part", "size", "of the whole", ""):
        table.add_column(column, justify="left" if column in ("part", "") else "right")
    scale = max([size, *norms.values()]) or 1.0
    for name, norm in [*ranked[:k], ("remainder", float(decomposition.remainder.norm())), ("whole", size)]:
        share = f"{100 * norm / size:.1f} %" if size else "-"
        table.add_row(Text(printable(name)), f"{norm:.5g}", share, Text("█" * round(WIDTH * norm / scale), style="cyan"))
    if len(ranked) > k:
        table.caption = f"{len(ranked) - k} smaller parts are not shown"
    return table
