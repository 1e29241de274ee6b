"""What a picture shows, as plain data: the one visual language of the house.

A result says *what* is to be seen of it (`pictures`), in the few kinds below; how it is drawn is the business of
`termwise.report`, which knows each kind three times: as an interactive chart of a page, as a matplotlib figure for a
paper, and as a table that a screen reader reads. A room that gives `pictures` has them all.

    Waterfall   terms one after the other, from 0 to the whole
    Lines       curves over an axis, with intervals
    Bars        sizes side by side
    Matrix      a table of numbers as colours, symmetric about zero
    Points      a cloud, and its Pareto front
    Words       a text, coloured
    Pixels      an image, coloured
    Table       rows to read
    Steps       one picture for each position of a slider
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "MANY", "Bar", "Bars", "Line", "Lines", "Matrix", "Picture", "Pictured", "Pixels", "Points", "Steps", "Table", "Waterfall",
    "Words", "over",
]  # fmt: skip

MANY = 40
"""Bars that can be read in one chart: who has more shows some, and says so."""


@dataclass(frozen=True)
class Picture:
    """What all kinds have.

    Attributes:
        title: a short heading, plain text.
        note: a sentence below it: how to read it, or what it says.
    """

    title: str
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Bar:
    """One step of a waterfall: what it is, its kind, what it adds, and where it starts and ends."""

    label: str
    kind: str
    value: float
    start: float
    end: float


@dataclass(frozen=True)
class Waterfall(Picture):
    """Terms one after the other; the last bar is the whole itself, from 0.

    Attributes:
        bars: in order.
    """

    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: as the legend calls it.
        x: numbers, or names of places.
        y: as many numbers.
        low, high: an interval around each, where there is one.
        role: "term" (drawn in the colours of the house, in order), "remainder" (what is left over), "chance" (what to
            compare with, grey) or "whole".
        markers: points alone, without a line.
        stems: each number as a line of its own, up from the axis: what is at some places and nothing between them.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    role: str = "term"
    markers: bool = False
    stems: bool = False

    def __post_init__(self) -> None:
        lengths = {len(values) for values in (self.x, self.y, self.low or self.y, self.high or self.y)}
        if len(lengths) > 1:
            raise ValueError(
                f"line {self.name!r} has {len(self.x)} places, {len(self.y)} values, {len(self.low)} and {len(self.high)} ends"
            )
        if self.role not in ROLES:
            raise ValueError(f"line {self.name!r}: a role is one of {', '.join(ROLES)}, got {self.role!r}")


ROLES = ("term", "remainder", "chance", "whole")


@dataclass(frozen=True)
class Lines(Picture):
    """Curves over one axis: deletion curves, spectra, errors along a run.

    Attributes:
        lines: the curves.
        x, y: what the axes are, with units.
        log_x, log_y: logarithmic axes; what is not above 0 has no place there and is left out.
    """

    lines: Sequence[Line]
    x: str = ""
    y: str = ""
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Bars(Picture):
    """Sizes side by side.

    Attributes:
        names: of the bars; those called "remainder" and "whole" have the colours of these.
        values: by series, one number per bar.
        y: what the numbers are.
        signed: whether the sign is the message: what is below 0 is drawn cool, above it warm.
        stacked: the series on top of one another, as shares of one thing.
        log: a logarithmic axis.
    """

    names: Sequence[str]
    values: dict[str, Sequence[float]]
    y: str = ""
    signed: bool = False
    stacked: bool = False
    log: bool = False

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if len(values) != len(self.names):
                raise ValueError(f"series {name!r} has {len(values)} values for {len(self.names)} bars")


@dataclass(frozen=True)
class Matrix(Picture):
    """A table of numbers as colours; 0 is the colour of the paper.

    Attributes:
        values: rows of numbers.
        rows, columns: names.
        value: what a number is.
        x, y: what columns and rows are.
        top: the number in full colour, where pictures are to be compared; the largest of all when 0.
        signed: whether numbers lie on both sides of 0, warm and cool; where they are sizes there is one colour.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    value: str = ""
    x: str = ""
    y: str = ""
    top: float = 0.0
    signed: bool = True

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(
                f"a matrix of {len(self.rows)} rows and {len(self.columns)} columns was given {len(self.values)} rows"
            )


@dataclass(frozen=True)
class Points(Picture):
    """A cloud of points, and the ones that no other beats: small is good on both axes.

    Attributes:
        names: of the points.
        x, y: their places.
        x_name, y_name: what the axes are.
        front: whether to join those of the Pareto front.
    """

    names: Sequence[str]
    x: Sequence[float]
    y: Sequence[float]
    x_name: str = ""
    y_name: str = ""
    log_x: bool = False
    log_y: bool = False
    front: bool = True

    def pareto(self) -> list[int]:
        """The points that no other is at least as good as on both axes and better on one, from left to right.

        Example:
            >>> Points("", names="abc", x=[1, 2, 3], y=[3, 1, 2]).pareto()
            [0, 1]
        """
        best, found = float("inf"), []
        known = [i for i, place in enumerate(zip(self.x, self.y, strict=True)) if all(map(math.isfinite, place))]
        for i in sorted(known, key=lambda i: (self.x[i], self.y[i])):
            if self.y[i] < best:
                best = self.y[i]
                found.append(i)
        return found


@dataclass(frozen=True)
class Words(Picture):
    """A text whose tokens or words are coloured by their values.

    Attributes:
        tokens: as the tokenizer names them; sub-words are merged into words where they are drawn.
        values: one per token.
        layers: names of layers, where it is known what each token carries at each of them.
        by_layer: (layers, tokens).
    """

    tokens: Sequence[str]
    values: Sequence[float]
    layers: Sequence[str] = ()
    by_layer: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Pixels(Picture):
    """An image and the values of its pixels.

    Attributes:
        values: (height, width), an array.
        picture: (height, width, 3), 0 to 255, where the image itself is there.
        layers: names of layers, where it is known what each patch carries at each of them.
        by_layer: (layers, rows, columns) of a grid of patches, an array.
    """

    values: Any
    picture: Any = None
    layers: Sequence[str] = ()
    by_layer: Any = ()


@dataclass(frozen=True)
class Table(Picture):
    """Rows to read; numbers stay numbers, and are printed with four digits.

    Attributes:
        heads: of the columns.
        rows: cells, as text or numbers.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Steps(Picture):
    """One picture for each position of a slider: orders, ranks, steps.

    Attributes:
        what: what the slider moves through, as "order".
        names: of its positions.
        pictures: one for each.
    """

    what: str
    names: Sequence[str]
    pictures: Sequence[Picture]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.pictures) or not self.pictures:
            raise ValueError(f"a slider needs one picture for each position, got {len(self.pictures)} for {len(self.names)}")


class Pictured:
    """What can be looked at: a class that gives `pictures` can be plotted, written as a page, and shown in a notebook."""

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What there is to be seen, most important first.

        Args:
            sample: which sample, where there are several.
        """
        raise NotImplementedError

    def show(self, sample: int = 0) -> None:
        """Print its numbers as tables in the terminal.

        Args:
            sample: which sample, where there are several.
        """
        from termwise.report.terminal import show_pictures

        show_pictures(self, sample)

    def plot(self, sample: int = 0, *, picture: Any = None) -> Figure:
        """Draw it with matplotlib, for a paper: `.savefig("why.svg")`.

        Args:
            sample: which sample, where there are several.
            picture: the image that was explained, (height, width, 3), 0 to 255, to be drawn beside and below its map.

        Raises:
            ValueError: when there is no such sample.
        """
        from termwise.report.figures import figure

        return figure([over(p, picture) for p in self.pictures(sample)])

    def to_html(self, path: str | Path, title: str = "", sample: int = 0, *, picture: Any = None) -> Path:
        """Write a self-contained page, which needs no network and no server.

        Args:
            path: where to; its folder is made when missing, an older file is replaced once the new one is whole.
            title: of the page; what is explained, or the class, when not given.
            sample: which sample.
            picture: the image that was explained, (height, width, 3), 0 to 255: `subject.picture(x)` of a model of the zoo.

        Returns:
            The path written.

        Raises:
            ValueError: when there is no such sample, or the path cannot be written.
        """
        from termwise.report import Section, page, write

        label = getattr(self, "label", None)
        title = title or (label(sample) if callable(label) else type(self).__name__)
        return write(path, page([Section(self, sample=sample, picture=picture)], title=title))

    def _repr_html_(self) -> str:
        from termwise.report import fragment

        return fragment(self)


def over(shown: Picture, picture: Any) -> Picture:
    """A map over the image that was explained, where it is one and the image is there."""
    return replace(shown, picture=picture) if isinstance(shown, Pixels) and picture is not None else shown
