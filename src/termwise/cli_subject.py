"""What the options of several commands say: which model, and which class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["as_target", "chosen_subject"]


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
