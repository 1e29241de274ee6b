"""How data is handed in, and how a model is called with it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

__all__ = ["Batches", "call", "evaluating", "read_batches"]

CHUNK = 32
"""Samples per batch, at most, where one tensor holds all of them."""


@dataclass(frozen=True)
class Batches:
    """Three disjoint lists of batches.

    Attributes:
        fit: what statistics are taken from, half of them.
        select: what choices are made on, a quarter.
        report: what is measured on in the end, a quarter.
        apart: whether they are disjoint; one batch of one sample cannot be split.
        cut: whether one tensor, or one batch, was cut along its first axis.
    """

    fit: list[Any]
    select: list[Any]
    report: list[Any]
    apart: bool = True
    cut: bool = False

    @property
    def every(self) -> list[Any]:
        """All of them once, where nothing needs to be held out."""
        return list({id(batch): batch for batch in (*self.fit, *self.select, *self.report)}.values())


def read_batches(data: Any) -> Batches:
    """Read data and hold some of it out.

    Args:
        data: a tensor of samples; or batches, each a tensor, a tuple or list of positional arguments, or a mapping of keyword
            arguments: a list, a DataLoader, a generator. Of a tuple the model takes as many entries as its forward requires, so a
            loader of (inputs, labels) will do; where the others could be meant for optional arguments, `call` refuses. One
            batch alone is cut in four.

    Raises:
        TypeError: for data that is none of these.
        ValueError: when there is none, or a batch holds NaN.
    """
    if isinstance(data, Tensor):
        batches = list(data.split(max(1, min(CHUNK, -(-len(data) // 8))))) if data.ndim else []
    elif isinstance(data, Mapping):
        batches = [data]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        batches = list(data)
    else:
        raise TypeError(f"data is a tensor of samples or batches (a list, a DataLoader), got {type(data).__name__}")
    batches = [dict(batch) if isinstance(batch, Mapping) else batch for batch in batches]  # what tokenizers return is no dict
    whole = len(batches) == 1
    if whole:
        batches = _quarters(batches[0])
    cut = isinstance(data, Tensor) or (whole and len(batches) > 1)
    if not batches or not any(isinstance(leaf, Tensor) and leaf.numel() for leaf in pytree.tree_leaves(batches)):
        raise ValueError("data is empty: give a few batches of what the model takes")
    for i, batch in enumerate(batches):
        for leaf in pytree.tree_leaves(batch):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
                raise ValueError(f"batch {i} of data, shape {tuple(leaf.shape)}, holds NaN or infinity: clean it first")
    if len(batches) < 3:
        return Batches(batches[:1], batches[-1:], batches[-1:], apart=False, cut=cut)
    held = max(1, len(batches) // 4)
    _warn_where_sorted(batches[: -2 * held], batches[-held:])
    return Batches(batches[: -2 * held], batches[-2 * held : -held], batches[-held:], cut=cut)


def _warn_where_sorted(fit: list[Any], report: list[Any]) -> None:
    """Where tuples end with labels, and those to report on have none of those to fit on."""
    own = [{int(label) for batch in part for label in _labels(batch)} for part in (fit, report)]
    samples = sum(len(_labels(batch)) for batch in (*fit, *report))
    if all(own) and not own[0] & own[1] and 2 * len(own[0] | own[1]) <= samples:  # else they are numbers of samples
        warnings.warn(
            "data are sorted by label, and cut as they stand: the part to report on has no label of the part to fit on",
            UserWarning, stacklevel=4,
        )  # fmt: skip


def _labels(batch: Any) -> Tensor | tuple[()]:
    """What a tuple ends with, where that is one whole number for each sample."""
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not all(isinstance(leaf, Tensor) for leaf in batch):
        return ()
    x, labels = batch[0], batch[-1]
    whole = not labels.is_floating_point() and labels.ndim == 1 and len(labels) == len(x) and x.is_floating_point()
    return labels if whole else ()


def _quarters(batch: Any) -> list[Any]:
    """One batch as four, along the first axis of its tensors, where they all have one of the same length."""
    leaves, spec = pytree.tree_flatten(batch)
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or min(sizes) < 2:
        return [batch]
    step = -(-sizes.pop() // 4)
    split = [leaf.split(step) if isinstance(leaf, Tensor) else None for leaf in leaves]
    count = max(len(s) for s in split if s is not None)
    return [
        pytree.tree_unflatten([leaf if s is None else s[i] for leaf, s in zip(leaves, split, strict=True)], spec)
        for i in range(count)
    ]


def call(model: nn.Module, batch: Any) -> Any:
    """The model on one batch.

    Raises:
        ValueError: when the model does not take it; the message has the shapes. When a tuple goes on after what the model must be
            given, and labels could not be told from an optional argument, as a mask.
    """
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, tuple | list):
            return model(*batch[: _arguments(model, len(batch))])
        return model(batch)
    except (TypeError, RuntimeError, IndexError, ValueError) as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, batch)
        raise ValueError(f"the model does not take this batch of data, {shapes}: {problem}") from problem


def _arguments(model: nn.Module, given: int) -> int:
    """How many entries of a tuple its forward takes: those it requires, one at least; all of them where it takes any number."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return given
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = max(1, sum(p.default is p.empty for p in positional))
    if given > taken < len(positional):
        names = ", ".join(repr(p.name) for p in positional[taken:given])
        raise ValueError(
            f"the tuple has {given} entries and forward requires {taken}: if the others are for {names}, give mappings by name "
            f"of argument; if they are labels, leave them out"
        )
    return min(given, taken)


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """In evaluation mode for as long as this takes, every module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
