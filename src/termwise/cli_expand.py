"""`termwise expand`: a model around one input, order by order, along a random direction or towards another input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from termwise.cli_map import HOW, OUTPUT, TAKE_APART, examples
from termwise.cli_subject import (
    ImageOption,
    JsonOption,
    ModelOption,
    SizeOption,
    TargetOption,
    TextOption,
    WeightsOption,
    as_target,
    check_kind,
    check_source,
    chosen_subject,
)

if TYPE_CHECKING:
    from termwise.functions import Expansion

__all__ = ["register"]

DRAWINGS = (".png", ".svg", ".pdf", ".jpg")
"""What the terms can be drawn as."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    lines = (
        "termwise expand --model mobilenet-v2 --image photo.jpg --order 4",
        "termwise expand --model mobilenet-v2 --image a.jpg --to b.jpg --out of.png",
    )
    app.command(rich_help_panel=TAKE_APART, epilog=examples(*lines))(expand)


def expand(
    model: ModelOption,
    image: ImageOption = None,
    text: TextOption = None,
    target: TargetOption = None,
    order: Annotated[int, typer.Option(min=0, metavar="N", help="Highest order that is a part.", rich_help_panel=HOW)] = 4,
    at: Annotated[
        float, typer.Option(metavar="STEP", help="How far along the direction, whose length is one.", rich_help_panel=HOW)
    ] = 1.0,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go towards this picture.", show_default="a random direction", rich_help_panel=HOW),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, metavar="N", help="Of the random direction.", rich_help_panel=HOW)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the sizes of the terms (.png, .svg).", rich_help_panel=OUTPUT)
    ] = None,
    as_json: JsonOption = False,
    weights: WeightsOption = None,
    size: SizeOption = None,
) -> None:
    """Take an answer apart by order: value, slope, curvature, ...

    f(x + h) = f(x) + slope + curvature + ... + remainder, along a random direction of the input or towards another picture.
    Of a text the direction lies in its embedding.
    """
    import torch

    from termwise.functions import expand as expansion

    check_source(image, text)
    if to is not None and image is None:
        raise ValueError("--to goes from one picture to another: give --image")
    if out is not None:
        from termwise.report.output import check_writable

        check_writable(out)
        if out.suffix.lower() not in DRAWINGS:
            raise ValueError(f"--out {out} is drawn by its suffix, one of {', '.join(DRAWINGS)}")
    subject = chosen_subject(model, weights, None, size)
    check_kind(subject, model, image)
    subject.model.to(torch.float64)
    x = subject.prepare(text if image is None else image)
    x = x if isinstance(x, dict) else {"": x}
    inputs = {name: v.double() if v.is_floating_point() else v for name, v in x.items()}
    if to is not None:
        h = subject.prepare(to).double() - inputs[""]
    else:
        first = next(iter(inputs.values()))
        shape = first.shape if first.is_floating_point() else (*first.shape, _width(subject.model, inputs))
        h = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        h = h / h.norm()
    given = (inputs[""],) if "" in inputs else ()
    found = expansion(subject.model, *given, h, kwargs=inputs if not given else None, order=order, at=at)
    chosen = as_target(target)
    scores = found.whole[0]
    index = int(scores.argmax()) if chosen is None else subject.index(chosen) if isinstance(chosen, str) else chosen
    if scores.ndim != 1 or not -len(scores) <= index < len(scores):
        raise ValueError(f"target {target} is none of {tuple(scores.shape)} scores")
    _print(found, index, subject.classes, as_json)
    if out is not None:
        found.plot().savefig(out, dpi=150)


def _width(model: Any, inputs: Any) -> int:
    """Of the embedding in which these ids are looked up."""
    import torch

    from termwise.core.capture import capture
    from termwise.core.program import info

    with torch.no_grad():
        program = capture(model, kwargs=inputs)
    cut = next((node for node in program.nodes if info(node).role == "cut"), None)
    if cut is None:
        raise ValueError("the model looks its ids up in no embedding: there is no direction to go in")
    return int(cut.meta["val"].shape[-1])


def _print(found: Expansion, index: int, classes: Any, as_json: bool) -> None:
    """The terms of one class."""
    terms = {name: part[0, index].item() for name, part in found.parts.items()}
    whole, left = found.whole[0, index].item(), found.remainder[0, index].item()
    if as_json:
        radius = None if found.order < 2 else found.radius.value
        facts = {"class": index, "at": found.at, "value": whole, "terms": terms, "remainder": left}
        reach = {"radius": radius, "kink_radius": found.kink_radius}
        finite = {name: v if v is not None and math.isfinite(v) else None for name, v in reach.items()}
        typer.echo(json.dumps(facts | finite, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from termwise.report.tokens import printable

    table = Table(box=None, header_style="dim", padding=(0, 1))
    table.add_column("term")
    table.add_column(Text(printable(classes[index])) if classes else f"class {index}", justify="right")
    for name, value in terms.items():
        table.add_row(name, f"{value:+.6g}")
    table.add_row("remainder", f"{left:+.2e}")
    table.add_row("value", f"{whole:+.6g}")
    console = Console()
    console.print(table)
    console.print(found.summary(), markup=False, highlight=False)
