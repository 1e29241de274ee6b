"""What users call things: the tokens of each sample, and the classes of the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from termwise.core.arguments import strings

__all__ = ["class_names", "token_names", "token_rows"]


def token_names(names: Iterable[Any] | None, batch: int) -> list[list[str]] | None:
    """The tokens of each sample; one list is that of the only sample.

    Raises:
        TypeError: for a string.
        ValueError: when there are not as many lists as samples.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"names is a list of tokens for each sample, got the string {names!r}: split it into tokens")
    rows = token_rows(names)
    if rows is None:
        raise TypeError(f"names is a list of tokens for each sample, got {names!r}")
    if len(rows) != batch:
        raise ValueError(f"names has {len(rows)} lists of tokens for {batch} samples")
    return rows


def token_rows(names: Any) -> list[list[str]] | None:
    """A list of tokens for each sample, of one for the only sample or one for each; None where it is neither."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return None
    given = list(names)
    alone = strings(given) if given else None
    rows = [strings(row) for row in given] if alone is None else [alone]
    return None if any(row is None for row in rows) else [row for row in rows if row is not None]


def class_names(classes: Iterable[str] | None, target: Tensor | None, several: int = 0) -> list[str] | None:
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
    if not isinstance(classes, Iterable) or (isinstance(classes, Mapping) and strings(classes) is None):
        raise TypeError(f"classes is a list of names, got {type(classes).__name__}")
    found = [str(name) for name in classes]
    last = -1 if target is None else int(target[..., -1].max() if target.ndim > 1 else target.max())
    last = max(last, several - 1)
    if last >= len(found):
        raise ValueError(f"classes has {len(found)} names, and class {last} is explained: name every class of the output")
    return found
