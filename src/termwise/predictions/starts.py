"""Starts: which number of an output is explained, and so where relevance begins.

    whole = sum_j w_j z_j,      c_j = d whole / d z_j = w_j

A start is linear in the recorded output z (what makes its weights from z, a largest class or a softmax, is held), so that it
acts on a recording that is there already, and the whole is what the parts add up to. One scalar per sample:

    z_a                         an entry                   z_a - z_b                one class against another
    z_a - mean_(j != a) z_j     against the rest           z_a - sum_j softmax(z)_j z_j        against what the model says
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Choice", "Column", "Contrast", "Entry", "NextToken", "Node", "Seen", "Start", "Weighting", "last_position"]


@dataclass(frozen=True)
class Seen:
    """What a start knows of the call besides the output.

    Attributes:
        batch: how many samples the output has.
        rows: which of all samples they are, a slice or their numbers: everything, unless a call is done in pieces.
        total: how many there are in all; `batch` when None.
        ids: the tokens that the output belongs to, (batch, tokens): those of the decoder where there are two.
        mask: which of them are text, (batch, tokens).
    """

    batch: int
    rows: slice | Tensor = field(default_factory=lambda: slice(None))
    total: int | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], batch: int, rows: slice | Tensor, total: int) -> Seen:
        """From the tensors of a call by argument name."""
        decoder = any(name.startswith("decoder_input") for name in tensors)
        prefix = "decoder_" if decoder else ""
        ids = tensors.get(f"{prefix}input_ids")
        if ids is None and not decoder:
            texts = [t for t in tensors.values() if not t.is_floating_point() and t.dtype != torch.bool and t.ndim == 2]
            ids = texts[0] if texts else None
        return cls(batch, rows, total, ids, tensors.get(f"{prefix}attention_mask"))


class Start:
    """One scalar per sample of an output. `template` says in words what it is; "{}" stands for the class."""

    template = "{}"
    alone = False
    """Whether the call has no axis of samples: all of it is one."""

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The scalars, shape (batch,), and the index of the class or entry, where there is one."""
        raise NotImplementedError

    def scores(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor] | None:
        """The row of scores (batch, classes) that it chooses from, and the place in it; None where it chooses none."""
        return None

    def held(self, row: Tensor, index: Tensor) -> Start:
        """The same question about changed inputs: what was left to this output is named, from its `scores`."""
        return self


class Choice(Start):
    """A start that picks one entry: of a row of scores per sample, the one at an index."""

    def place(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The rows (batch, classes), the index in each (batch,), and the index of the whole entry as it is reported."""
        raise NotImplementedError

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The entry."""
        row, index, entry = self.place(output, seen)
        return (row[:, 0] if index is None else row[torch.arange(len(row), device=row.device), index]), entry

    def scores(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor] | None:
        """The row and the place in it."""
        row, index, _ = self.place(output, seen)
        return None if index is None else (row, index)


@dataclass(frozen=True, eq=False)
class Entry(Choice):
    """None, a class, a class per sample, or a tuple of indices into each sample's output."""

    target: Any = None

    def place(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of a sequence of outputs without further word: the last position that the mask allows."""
        _samples(output, seen)
        if output.ndim == 1:
            if self.target is not None:
                raise ValueError(f"the output is one number per sample, shape {tuple(output.shape)}: leave target out")
            return output[:, None], None, None
        rows = torch.arange(seen.batch, device=output.device)
        if isinstance(self.target, tuple):
            entry = _indices(self.target, output, seen)
            return output[(rows, *entry[:-1])], entry[-1], torch.stack(entry, 1)
        if output.ndim == 3:  # a sequence of outputs
            output = output[rows, last_position(output, seen)]
        elif output.ndim > 3:
            raise ValueError(
                f"the output has shape {tuple(output.shape)}: say which entry, target=(i, j, ...) with {output.ndim - 1} "
                "indices, or a function from the output to a tensor of shape (batch,)"
            )
        index = _classes(self.target, output, seen)
        return output, index, index

    def held(self, row: Tensor, index: Tensor) -> Start:
        """The class that was the largest."""
        return Entry(index) if self.target is None else self


@dataclass(frozen=True, eq=False)
class NextToken(Choice):
    """The token that stands at a position, among all that could: the scores one position earlier."""

    position: int

    @property
    def template(self) -> str:  # type: ignore[override]
        """In words."""
        return f"{{}} as token {self.position}"

    def place(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The scores at position t - 1, and the id of token t."""
        ids, t = seen.ids, self.position
        if ids is None or output.ndim != 3 or ids.shape != output.shape[:2]:
            raise ValueError(
                f"next_token({t}) needs a model that scores the next token at each: an output (batch, tokens, vocabulary) "
                f"for ids (batch, tokens). Here the output is {tuple(output.shape)}, ids "
                f"{'are none' if ids is None else tuple(ids.shape)}"
            )
        n = ids.shape[1]
        if not -n < t < n or t == 0:
            raise ValueError(f"next_token({t}): there are {n} tokens, the first is predicted by nothing: say 1 to {n - 1}")
        if seen.mask is not None and seen.mask.shape == ids.shape and not bool(seen.mask[:, [t, t - 1]].all()):
            raise ValueError(f"next_token({t}): in some sample the mask hides token {t} or the one before it")
        if bool((ids[:, t] >= output.shape[2]).any()):
            raise ValueError(f"next_token({t}): an id there is beyond the {output.shape[2]} that the model scores")
        return output[:, t - 1 if t > 0 else n + t - 1], ids[:, t], ids[:, t]

    def held(self, row: Tensor, index: Tensor) -> Start:
        """The token that stood there, whatever stands there now."""
        return Entry((self.position - 1, index))


@dataclass(frozen=True, eq=False)
class Node(Choice):
    """A row of an output that has no axis of samples."""

    index: int
    target: Any = None
    alone = True

    @property
    def template(self) -> str:  # type: ignore[override]
        """In words."""
        return f"{{}} of node {self.index}"

    def place(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The scores of the node."""
        if output.ndim not in (1, 2) or not -len(output) <= self.index < len(output):
            raise ValueError(
                f"node({self.index}) of an output of shape {tuple(output.shape)}: it must be (nodes, classes) or (nodes,), and "
                "have that node"
            )
        if output.ndim == 1 and self.target is not None:
            raise ValueError(f"the output is one number per node, shape {tuple(output.shape)}: leave the class out")
        row = output[self.index].reshape(1, -1)
        index = None if output.ndim == 1 else _classes(self.target, row, Seen(1))
        return row, index, index


@dataclass(frozen=True, eq=False)
class Contrast(Start):
    """An entry against another, the mean of the rest, or the mean under the model's own probabilities."""

    entry: Choice
    against: Any

    @property
    def template(self) -> str:  # type: ignore[override]
        """In words."""
        b = self.against
        rest = "the rest" if b is None else b if isinstance(b, str) else "another" if isinstance(b, Tensor) else f"class {b}"
        return f"{self.entry.template} against {rest}"

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """As the entry."""
        return self.entry.alone

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The difference."""
        row, index, entry = self.entry.place(output, seen)
        n = row.shape[1]
        if index is None or n < 2:
            raise ValueError(f"contrast needs several classes to set one against, the output is {tuple(output.shape)}")
        rows = torch.arange(len(row), device=row.device)
        value = row[rows, index]
        if isinstance(self.against, str):
            return value - (row.detach().softmax(1) * row).sum(1), entry
        if isinstance(self.against, Tensor) and self.against.is_floating_point():  # probabilities of another output
            return value - (self.against[seen.rows] * row).sum(1), entry
        if self.against is None:
            return value - (row.sum(1) - value) / (n - 1), entry
        return value - row[rows, _classes(self.against, row, seen)], entry

    def scores(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor] | None:
        """Those of the entry."""
        return self.entry.scores(output, seen)

    def held(self, row: Tensor, index: Tensor) -> Start:
        """The entry, and the probabilities that it is set against."""
        entry = self.entry.held(row, index)
        assert isinstance(entry, Choice)
        return Contrast(entry, row.detach().softmax(1) if isinstance(self.against, str) else self.against)


@dataclass(frozen=True, eq=False)
class Weighting(Start):
    """A weighted sum of all of an output."""

    weights: Tensor
    template = "weighted output"

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The sum."""
        _samples(output, seen)
        w = self.weights.detach().to(output)
        if w.shape != output.shape[1:]:
            w = w[seen.rows] if w.ndim == output.ndim else w
            if w.shape != output.shape:
                raise ValueError(
                    f"weighting has shape {tuple(self.weights.shape)}, the output {tuple(output.shape)}: give weights of that "
                    f"shape, or {tuple(output.shape[1:])} for all samples alike"
                )
        return (output * w).reshape(len(output), -1).sum(1), None


@dataclass(frozen=True, eq=False)
class Column(Start):
    """One of several functions of the output that were recorded with the model."""

    index: int
    template = "output"

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """Its values."""
        _samples(output, seen)
        return output[:, self.index], None


# -- indices ----------------------------------------------------------------------------------------------------------


def _samples(output: Tensor, seen: Seen) -> None:
    if output.is_complex():
        raise TypeError(f"the output is {output.dtype}, and numbers are explained: pass target=<function>, as of its .abs()")
    if output.ndim == 0 or output.shape[0] != seen.batch:
        raise ValueError(
            f"the output has shape {tuple(output.shape)} for {seen.batch} samples: there is no scalar per sample. "
            "Pass target=<function from the model's output to a tensor of shape (batch,)>"
        )


def _classes(target: Any, output: Tensor, seen: Seen) -> Int[Tensor, " batch"]:
    """The index of each sample's class."""
    n = output.shape[-1]
    if target is None:
        return output.detach().argmax(-1)
    index = _per_sample(target, seen, output.device, "target")
    if bool((index < -n).any() | (index >= n).any()):
        raise ValueError(f"target {target} is out of range: the output has {n} classes, 0 to {n - 1}")
    return index % n


def _indices(target: tuple[Any, ...], output: Tensor, seen: Seen) -> list[Tensor]:
    """One index per sample for every axis behind the batch."""
    if len(target) != output.ndim - 1:
        raise ValueError(f"target {target} has {len(target)} indices, each sample's output has {output.ndim - 1} axes")
    found = []
    for axis, (i, n) in enumerate(zip(target, output.shape[1:], strict=True), start=1):
        index = _per_sample(i, seen, output.device, f"axis {axis} of target")
        if bool((index < -n).any() | (index >= n).any()):
            raise ValueError(f"target {target} is out of range: axis {axis} of the output has size {n}")
        found.append(index % n)
    return found


def _per_sample(target: Any, seen: Seen, device: torch.device, what: str) -> Int[Tensor, " batch"]:
    """An index for all, or one for each."""
    index = torch.as_tensor(target, device=device)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"{what} must be an integer class index, got {target!r}")
    total = seen.batch if seen.total is None else seen.total
    if index.ndim > 1 or (index.ndim == 1 and len(index) != total):
        raise ValueError(f"{what} has shape {tuple(index.shape)} for {total} samples: one index each, or one for all")
    return (index[seen.rows] if index.ndim == 1 else index).long().expand(seen.batch)  # bytes would choose as masks do


def last_position(output: Tensor, seen: Seen) -> Int[Tensor, " batch"]:
    """The last position of each sample that its mask allows."""
    length = output.shape[1]
    if isinstance(seen.mask, Tensor) and seen.mask.shape == output.shape[:2]:
        positions = torch.arange(length, device=output.device)
        return (positions * (seen.mask != 0)).argmax(-1)
    return torch.full((seen.batch,), length - 1, device=output.device)
