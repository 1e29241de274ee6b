"""What the options of several commands say: which model, and which class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["ModelOption", "SizeOption", "as_target", "check_kind", "check_source", "chosen_subject"]

ModelOption = Annotated[
    str,
    typer.Option(
        help="A name from `termwise models`, or path/to/file.py:factory. WARNING: the file is run; use only what you trust."
    ),
]
SizeOption = Annotated[int | None, typer.Option(min=1, help="Side of the picture that your model takes; 224 by default.")]


def check_source(image: Path | None, text: str | None) -> None:
    """Exactly one of them is given."""
    if (image is None) == (text is None):
        raise ValueError("give either --image or --text")


def check_kind(subject: Any, model: str, image: Path | None) -> None:
    """What is given is what the model takes."""
    if subject.kind != ("text" if image is None else "image"):
        raise ValueError(f"{model} takes {'a text: give --text' if image is not None else 'a picture: give --image'}")


def chosen_subject(model: str, weights: Path | None, classes: Path | None, size: int | None) -> Any:
    """A model of the zoo, or the user's own."""
    if ":" in model or model.endswith(".py"):
        from termwise import own_model

        names = None if classes is None else own_model.read_names(classes)
        return own_model.load(model, weights, classes=names, size=224 if size is None else size)
    if weights is not None or classes is not None or size is not None:
        raise ValueError(
            f"--weights, --classes and --size are for a model of your own (path/to/file.py:factory); {model} has its own"
        )
    from termwise import zoo

    return zoo.load(model)


def as_target(target: str | None) -> int | str | None:
    """A number as a number, so that its range is checked against the output."""
    if target is None:
        return None
    return int(target) if target.lstrip("-").isdecimal() else target
