"""What the options of several commands say: which model, and which class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from termwise.cli_map import HOW, OUTPUT, OWN_MODEL
from termwise.cli_words import MODELS, RULE_SETS, any_of

__all__ = [
    "ClassesOption", "ImageOption", "JsonOption", "ModelOption", "RulesOption", "SizeOption", "TargetOption", "TextOption",
    "WeightsOption", "as_target", "check_kind", "check_source", "chosen_subject",
]  # fmt: skip

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=any_of(MODELS),
        help="One of `termwise models`, or yours: file.py:name. WARNING: that file is run; use only what you trust.",
    ),
]
ImageOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture, for a model that takes one.")]
TextOption = Annotated[str | None, typer.Option(metavar="TEXT", help="A text, for a model that takes one.")]
TargetOption = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="The class to look at, by number or name.", show_default="what the model answers"),
]
RulesOption = Annotated[
    str,
    typer.Option(
        metavar="SET",
        autocompletion=any_of(RULE_SETS),
        rich_help_panel=HOW,
        help="How relevance passes an operation: default, zero, attnlrp, gamma, ... (README lists all).",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Its weights, a safetensors file; every key must match.", rich_help_panel=OWN_MODEL),
]
ClassesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names of its classes, one per line.", rich_help_panel=OWN_MODEL)
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="PIXELS", help="Side of the picture that it takes.", show_default="224", rich_help_panel=OWN_MODEL
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="JSON instead of a table.", rich_help_panel=OUTPUT)]


def check_source(image: Path | None, text: str | None, dataset: Path | None = None) -> None:
    """Exactly one of them is given."""
    if dataset is not None and not (image is None and text is None):
        raise ValueError("--dataset has its own pictures or texts: leave --image and --text out")
    if dataset is None and (image is None) == (text is None):
        raise ValueError("give either --image or --text")


def check_kind(subject: Any, model: str, image: Path | None) -> None:
    """What is given is what the model takes."""
    if subject.kind != ("text" if image is None else "image"):
        raise ValueError(f"{model} takes {'a text: give --text' if image is not None else 'a picture: give --image'}")


def chosen_subject(model: str, weights: Path | None, classes: Path | None, size: int | None) -> Any:
    """A model of the zoo, or the user's own."""
    from termwise.own_model import named_or_own

    return named_or_own(model, weights, classes, size)


def as_target(target: str | None) -> int | str | None:
    """A number as a number, so that its range is checked against the output."""
    if target is None:
        return None
    return int(target) if target.lstrip("-").isdecimal() else target
