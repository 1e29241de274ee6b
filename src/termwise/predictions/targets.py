"""Targets: what a user may ask of an output, and the starts of relevance that this means.

Entries, contrasts, weightings and tokens are starts (`termwise.predictions.starts`): they act on a recording that is there
already. A function of the output may be anything; unless it only picks an entry (`termwise.predictions.picked`) it is
recorded with the model, and its operations have rules like all others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from termwise.core.arguments import integer
from termwise.core.meaning import meaning

from .starts import Choice, Column, Contrast, Entry, NextToken, Node, Start, Weighting

__all__ = [
    "Asked", "Field", "Scored", "Target", "asked", "continuation", "contrast", "next_token", "node", "weighting",
]  # fmt: skip

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
    entry = a if isinstance(a, Start) else _start(a)
    if not isinstance(entry, Choice):
        raise TypeError(f"contrast sets one entry of the output against others, {a!r} is none")
    if isinstance(b, str) and b != "probabilities":
        raise ValueError(f"unknown contrast {b!r}: a class, None for the mean of the rest, or 'probabilities'")
    if not (b is None or isinstance(b, str | Tensor) or integer(b) is not None or _integers(b)):
        raise TypeError(f"contrast is against a class, an integer or one per sample, got {b!r}")
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
    if not isinstance(weights, Tensor) or weights.is_complex():
        given = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights must be a tensor of real numbers, got {given}")
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
    return NextToken(_position("position", position))


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
    start, stop = _position("start", start), _position("stop", stop)
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
    return Node(_position("index", index), target)


def _integers(given: Any) -> bool:
    """Whether it is a list or an array of them."""
    return isinstance(given, list | np.ndarray) and np.ndim(given) == 1 and all(integer(i) is not None for i in given)


def _position(name: str, value: Any) -> int:
    """A place, counted from the end where it is negative."""
    found = integer(value)
    if found is None:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return found


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
        self.picks, self._meaning = picks, tuple(map(meaning, picks))

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
        return isinstance(other, Scored) and other._meaning == self._meaning

    def __hash__(self) -> int:
        return hash(self._meaning)


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
