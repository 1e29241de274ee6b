"""What verbs of every room ask of an argument, and the words in which it is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["a_module", "file_path", "seeded", "uninitialised", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A number to count with.

    Raises:
        ValueError: for one below the least, or anything else (True is no number).
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be at least {least}, a whole number; got {value!r}")
    return value


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
    """A module whose tensors have values.

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
    return model


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


def _kind(value: Any) -> str:
    """The name of a value's class; of a class itself, that it is one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
