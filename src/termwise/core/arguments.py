"""What verbs of every room ask of an argument, and the words in which it is refused."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Samples",
    "a_module",
    "chosen_samples",
    "file_path",
    "integer",
    "number",
    "plain_integers",
    "seeded",
    "strings",
    "uninitialised",
    "whole_number",
]

Samples: TypeAlias = int | slice | Sequence[int] | np.ndarray | Tensor
"""Which samples: one by its number, a stretch, several by number, or a mask with a boolean for each."""


def integer(value: Any) -> int | None:
    """The integer that it is, of Python, numpy or torch (a tensor without axes); None for anything else, True and 2.0 too."""
    value = _scalar(value)
    if not hasattr(value, "__index__") or isinstance(value, bool | type | Tensor | np.ndarray):
        return None
    return operator.index(value)


def number(value: Any) -> float | None:
    """The real number that it is, of Python, numpy or torch (a tensor without axes); None for anything else, True too."""
    value = _scalar(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def plain_integers(given: Any) -> None:
    """The whole numbers among the fields of a frozen dataclass, as Python's: others overflow, and are no JSON."""
    for field in dataclasses.fields(given):
        if (found := integer(getattr(given, field.name))) is not None:
            object.__setattr__(given, field.name, found)


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A number to count with, as a Python integer.

    Raises:
        ValueError: for one below the least, or anything else (True is no number).
    """
    found = integer(value)
    if found is None or found < least:
        raise ValueError(f"{name} must be at least {least}, a whole number; got {value!r}")
    return found


def chosen_samples(samples: Any, count: int) -> slice | Tensor:
    """What chooses these samples along an axis of so many, which it keeps.

    Raises:
        IndexError: for a sample that there is not, or a mask of another length.
        TypeError: for what is no `Samples`.
    """
    one = integer(samples)
    if one is not None:
        if not -count <= one < count:
            raise IndexError(f"sample {one} is out of range: there are {count}")
        return slice(one % count, one % count + 1)
    if isinstance(samples, slice):
        return samples
    rows = _row_of_numbers(samples)
    if rows is None:
        raise TypeError(
            f"samples are chosen by number, slice, list, array or tensor, got {samples!r}; parts by name are in .parts"
        )
    if rows.dtype in (torch.bool, torch.uint8):  # both are masks to torch
        if len(rows) != count:
            raise IndexError(f"a mask of {len(rows)} samples is given: there are {count}")
        return rows.nonzero().flatten()
    if bool((beyond := (rows < -count) | (rows >= count)).any()):
        raise IndexError(f"sample {int(rows[beyond][0])} is out of range: there are {count}")
    return rows


def _row_of_numbers(given: Any) -> Tensor | None:
    """A list, an array or a tensor of integers or booleans as a tensor of one axis; None for anything else."""
    if isinstance(given, str | tuple | Mapping):  # a tuple indexes several axes
        return None
    try:
        row = torch.as_tensor(given if isinstance(given, Tensor | np.ndarray) else list(given)).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    row = row if row.numel() else row.long()  # of an empty list it is floating
    whole = not (row.is_floating_point() or row.is_complex())
    return (row if row.dtype in (torch.bool, torch.uint8) else row.long()) if row.ndim == 1 and whole else None


def strings(given: Any) -> list[str] | None:
    """What a list, an array, a generator, the keys or values of a mapping hold; None where it is a string, or holds others."""
    try:
        found = None if isinstance(given, str) else list(given)
    except TypeError:
        return None
    return None if found is None or not all(isinstance(text, str) for text in found) else [str(text) for text in found]


def seeded(generator: Any) -> torch.Generator:
    """The generator, or one seeded with 0 when none is given.

    Raises:
        TypeError: for a seed in its place.
    """
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator, got {kind}: torch.Generator().manual_seed(seed) makes one")
    return generator


def a_module(model: Any, what: str) -> nn.Module:
    """A module whose tensors have values; the model itself where `torch.compile` wrapped it.

    Args:
        model: what a user gave.
        what: is done with its layers or parameters, for the message.

    Raises:
        TypeError: when it is none.
        ValueError: when a parameter is on the meta device or not initialised.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, {what}; got {_kind(model)}")
    if name := uninitialised(model):
        raise ValueError(f"{name} of {type(model).__name__} is not initialised (a lazy module): run the model once before")
    if on_meta := next((name for name, p in model.named_parameters() if p.is_meta), None):
        raise ValueError(f"{on_meta} of {type(model).__name__} is on the meta device, without values: load its weights first")
    return getattr(model, "_orig_mod", model)  # type: ignore[no-any-return]


def uninitialised(model: Any) -> str | None:
    """The name of a parameter or buffer that a lazy module has not made yet."""
    if not isinstance(model, nn.Module):
        return None
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    return next((name for name, t in tensors if torch.nn.parameter.is_lazy(t)), None)


def file_path(path: Any, suffix: str) -> Path:
    """Where a file is or shall be; a suffix is appended where there is none.

    Raises:
        TypeError: for something that is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a file is named by its path, got {_kind(path)}")
    found = Path(path)
    return found if found.suffix else found.with_suffix(suffix)


def _scalar(value: Any) -> Any:
    """The Python number inside an array or a tensor without axes, or a number of numpy; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _kind(value: Any) -> str:
    """The name of a value's class; of a class itself, that it is one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
