"""What users call things: the tokens of each sample, and the classes of the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["class_names", "token_names"]


def token_names(names: Sequence[Any] | None, batch: int) -> list[list[str]] | None:
    """The tokens of each sample; one list is that of the only sample.

    Raises:
        TypeError: for a string.
        ValueError: when there are not as many lists as samples.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"names is a list of tokens for each sample, got the string {names!r}: split it into tokens")
    if not isinstance(names, Sequence) or any(isinstance(row, str) != isinstance(names[0], str) for row in names):
        raise TypeError(f"names is a list of tokens for each sample, got {names!r}")
    if not all(isinstance(row, Sequence) for row in names):
        raise TypeError(f"names is a list of tokens for each sample, got a list of {type(names[0]).__name__}")
    rows = [list(names)] if names and isinstance(names[0], str) else [list(row) for row in names]
    if len(rows) != batch:
        raise ValueError(f"names has {len(rows)} lists of tokens for {batch} samples")
    return rows


def class_names(classes: Sequence[str] | None, target: Tensor | None, several: int = 0) -> list[str] | None:
    """Names of the classes, as many as are needed.

    Args:
        classes: as the user gave them.
        target: the explained class or entry of each sample, where there is one.
        several: how many classes are explained at once, where that is so.

    Raises:
        TypeError: for a string.
        ValueError: when an explained class has no name.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        raise TypeError(f"classes is a list of names, got the string {classes!r}")
    if not isinstance(classes, Sequence):
        raise TypeError(f"classes is a list of names, got {type(classes).__name__}")
    last = -1 if target is None else int(target[..., -1].max() if target.ndim > 1 else target.max())
    last = max(last, several - 1)
    if last >= len(classes):
        raise ValueError(f"classes has {len(classes)} names, and class {last} is explained: name every class of the output")
    return list(classes)
