"""Starts: which number of an output is explained, and so where relevance begins.

    whole = sum_j w_j z_j,      c_j = d whole / d z_j = w_j

A start is linear in the recorded output z (what makes its weights from z, a largest class or a softmax, is held), so that it
acts on a recording that is there already, and the whole is what the parts add up to. One scalar per sample:

    z_a                         an entry                   z_a - z_b                one class against another
    z_a - mean_(j != a) z_j     against the rest           z_a - sum_j softmax(z)_j z_j        against what the model says

A function of the output may be anything; it is recorded with the model, and its operations have rules like all others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Asked", "Seen", "Start", "Target", "asked", "continuation", "contrast", "next_token", "node", "weighting"]


@dataclass(frozen=True)
class Seen:
    """What a start knows of the call besides the output.

    Attributes:
        batch: how many samples the output has.
        rows: which of all samples they are: everything, unless a call is done in pieces.
        total: how many there are in all; `batch` when None.
        ids: the tokens that the output belongs to, (batch, tokens): those of the decoder where there are two.
        mask: which of them are text, (batch, tokens).
    """

    batch: int
    rows: slice = field(default_factory=lambda: slice(None))
    total: int | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], batch: int, rows: slice, total: int) -> Seen:
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


class Choice(Start):
    """A start that picks one entry: of a row of scores per sample, the one at an index."""

    def place(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The rows (batch, classes), the index in each (batch,), and the index of the whole entry as it is reported."""
        raise NotImplementedError

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The entry."""
        row, index, entry = self.place(output, seen)
        return (row[:, 0] if index is None else row[torch.arange(len(row), device=row.device), index]), entry


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
            output = output[rows, _last(output, seen)]
        elif output.ndim > 3:
            raise ValueError(
                f"the output has shape {tuple(output.shape)}: say which entry, target=(i, j, ...) with {output.ndim - 1} "
                "indices, or a function from the output to a tensor of shape (batch,)"
            )
        index = _classes(self.target, output, seen)
        return output, index, index


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
        if self.against is None:
            return value - (row.sum(1) - value) / (n - 1), entry
        return value - row[rows, _classes(self.against, row, seen)], entry


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


# -- what a user writes ------------------------------------------------------------------------------------------------


Target = int | tuple[Any, ...] | Tensor | Start | Callable[[Any], Tensor] | None


def contrast(a: int | tuple[Any, ...] | Tensor | Start | None = None, b: int | Tensor | str | None = None) -> Start:
    """Ask why one class rather than another: the start z_a - z_b.

    Relevance that both classes share cancels. The shared part is often most of it: a language model's scores all rise
    together.

    Args:
        a: the class, as `explain` takes a target: an int, one per sample (batch,), a tuple of indices into each sample's
            output, `next_token` or `node`; None for the largest.
        b: another class of the same row (an int, or one per sample). None: the mean of all others. "probabilities": the
            mean of all, weighted by softmax(z), which is held: z_a - sum_j p_j z_j.

    Returns:
        A start, for `target`.

    Raises:
        ValueError: for another word than "probabilities".
        TypeError: when `a` is no single entry.

    Example:
        >>> model = torch.nn.Linear(4, 3).eval()
        >>> x = torch.randn(2, 4)
        >>> why = tw.explain(model, x, target=contrast(0, 2)).check()
        >>> bool(torch.allclose(why.inputs["input"], x * (model.weight[0] - model.weight[2]), atol=1e-6))
        True

    With "probabilities" relevance starts from c = e_a - softmax(z), the gradient of log softmax(z)_a.
    """
    entry = a if isinstance(a, Start) else Entry(a)
    if not isinstance(entry, Choice) or callable(a):
        raise TypeError(f"contrast sets one entry of the output against others, {a!r} is none")
    if isinstance(b, str) and b != "probabilities":
        raise ValueError(f"unknown contrast {b!r}: a class, None for the mean of the rest, or 'probabilities'")
    return Contrast(entry, b)


def weighting(weights: Tensor) -> Start:
    """Explain a weighted sum of the whole output: sum_j w_j z_j.

    Args:
        weights: of the shape of one sample's output, or of all of it with the batch first. They are constants.

    Returns:
        A start, for `target`.

    Example:
        >>> model, x = torch.nn.Linear(4, 3).double().eval(), torch.randn(2, 4, dtype=torch.float64)
        >>> both = tw.explain(model, x, target=weighting(torch.tensor([1.0, 0.0, 1.0])))
        >>> bool(torch.allclose(both.whole, model(x)[:, 0] + model(x)[:, 2]))
        True
    """
    return Weighting(weights)


def next_token(position: int) -> Start:
    """Explain the token that stands at a position of the given text: its score one position earlier.

    For language models: an output (batch, tokens, vocabulary) for ids (batch, tokens). With an encoder and a decoder the
    decoder's text is meant.

    Args:
        position: of the token, counted from 0; negative from the end. The first has no position before it.

    Returns:
        A start, for `target`; see `continuation` for every token of a generated text.
    """
    return NextToken(position)


def continuation(start: int, stop: int) -> list[Start]:
    """Targets that explain every token of a generated text in one call: one forward pass, one backward pass per token.

    Args:
        start: the position of the first generated token, which is the length of the prompt.
        stop: the length of the whole text.

    Returns:
        `next_token` of each position, for ``target=``.

    Raises:
        ValueError: when there is no token between, or the first of all is asked for.

    Example:
        >>> len(continuation(5, 8))
        3
    """
    if not 1 <= start < stop:
        raise ValueError(f"continuation({start}, {stop}) holds no token that another predicts: 1 <= start < stop")
    return [NextToken(t) for t in range(start, stop)]


def node(index: int, target: int | None = None) -> Start:
    """Explain one node of a graph network whose call has no axis of samples: output (nodes, classes) or (nodes,).

    The whole call is one sample: `whole` has shape (1,), every part gets a leading axis of 1. Where the graph has a batch
    axis, (batch, nodes, classes), the tuple ``target=(node, class)`` says the same.

    Args:
        index: the node.
        target: its class; None for the largest.

    Returns:
        A start, for `target`.
    """
    return Node(index, target)


# -- from a target to starts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A target, understood: its starts, whether there was a list of them, and what of the output is recorded for them."""

    starts: tuple[Start, ...]
    several: bool
    select: Callable[[Any], Tensor] | None


def asked(target: Any) -> Asked:
    """Read what `explain` was given as its target.

    Raises:
        TypeError: for something that is no target, or functions mixed with others.
        ValueError: for an empty list, or entries of different outputs.
    """
    several = isinstance(target, list)
    targets = list(target) if several else [target]
    if not targets:
        raise ValueError("target is an empty list: nothing is asked")
    functions = [t for t in targets if callable(t) and not isinstance(t, Start)]
    if functions:
        if len(functions) < len(targets):
            raise TypeError("functions of the output are recorded with the model, other targets are not: two calls of explain")
        if not several:
            return Asked((Entry(None),), False, Scored(functions[0]))
        return Asked(tuple(Column(i) for i in range(len(functions))), True, Scored(*functions))
    fields = {t[0] for t in targets if isinstance(t, tuple) and t and isinstance(t[0], str)}
    if len(fields) > 1 or (fields and not all(isinstance(t, tuple) and t[:1] == (*fields,) for t in targets)):
        raise ValueError("the targets of a list are entries of one output; these are of several. Make one call for each output")
    starts = tuple(_start(t[1:] if fields else t) for t in targets)
    if len({s.alone for s in starts}) > 1:
        raise ValueError("node(...) takes the call as one sample, other targets take it as a batch: make two calls of explain")
    return Asked(starts, several, Field(*fields) if fields else None)


def _start(target: Any) -> Start:
    if isinstance(target, Start):
        return target
    if target is not None and not isinstance(target, (tuple, Tensor)) and not hasattr(target, "__index__"):
        raise TypeError(
            f"target must be an integer class index, got {target!r}. Else: a tuple of indices, a tensor of one class per sample, "
            "contrast(...), weighting(...), next_token(...), node(...), a function of the output, or a list of these"
        )
    return Entry(target)


class Scored:
    """Functions of a user's as part of the recorded model: their operations need rules like any other."""

    def __init__(self, *picks: Callable[[Any], Tensor]) -> None:
        """Hold them."""
        self.picks = picks

    def __call__(self, output: Any) -> Tensor:
        """The values of one, (batch,), or of several, (batch, functions)."""
        values = []
        for pick in self.picks:
            value = pick(output)
            if not isinstance(value, Tensor) or value.ndim != 1:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"target must give one scalar per sample, shape (batch,); it gave {shape}")
            values.append(value)
        return values[0] if len(values) == 1 else torch.stack(values, 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scored) and other.picks == self.picks

    def __hash__(self) -> int:
        return hash(self.picks)


@dataclass(frozen=True)
class Field:
    """One of the named outputs of a model, such as "pred_boxes"."""

    name: str

    def __call__(self, output: Any) -> Tensor:
        """That output.

        Raises:
            ValueError: when there is none of that name.
        """
        names = list(output) if isinstance(output, Mapping) else [n for n in vars(output) if not n.startswith("_")]
        value = output[self.name] if isinstance(output, Mapping) and self.name in names else getattr(output, self.name, None)
        if not isinstance(value, Tensor):
            close = difflib.get_close_matches(self.name, names, n=1)
            raise ValueError(
                f"the output has no tensor {self.name!r}"
                + (f": did you mean {close[0]!r}?" if close else f": it has {', '.join(map(str, names))}")
            )
        return value


# -- indices ----------------------------------------------------------------------------------------------------------


def _samples(output: Tensor, seen: Seen) -> None:
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
    return (index[seen.rows] if index.ndim == 1 else index).expand(seen.batch)


def _last(output: Tensor, seen: Seen) -> Int[Tensor, " batch"]:
    """The last position of each sample that its mask allows."""
    length = output.shape[1]
    if isinstance(seen.mask, Tensor) and seen.mask.shape == output.shape[:2]:
        positions = torch.arange(length, device=output.device)
        return (positions * (seen.mask != 0)).argmax(-1)
    return torch.full((seen.batch,), length - 1, device=output.device)
