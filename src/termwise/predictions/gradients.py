"""The explained scalar as a function of the explained leaves, and its true gradient: what the baselines share.

    whole(z) = Σ_j w_j z_j,      w = d whole / d z at the given input

A leaf is a floating input, or for token ids what was looked up for them in an embedding. The weights w of a target (one-hot
for a class) are taken once, at the given input, so that another point of a path is asked about the same class. The
recording of the model is run node by node; nothing of the model is changed or hooked. An inference mode around it is left
for as long as it takes: nothing has a derivative there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from termwise.core.arguments import integer, whole_number
from termwise.core.capture import arguments
from termwise.core.interpret import interpret
from termwise.core.program import info

from .call import PredictionCall
from .explanation import Explanation
from .fill_ins import filled
from .labels import class_names, token_names
from .refusals import finite_inputs
from .targets import asked

__all__ = ["Differentiated", "Leaf"]


@dataclass(frozen=True, eq=False)
class Leaf:
    """An explained value: the node that holds it, the argument it belongs to, and how many of its axes a part keeps."""

    node: str
    name: str
    value: Tensor
    axes: int
    look_up: Callable[[int], Tensor] | None = None
    """For token ids: what another id gives in every place."""


class Differentiated:
    """A model, a target and an input, ready to be differentiated at any point.

    Attributes:
        leaves: the explained leaves with their values.
        whole: the explained scalar, (batch,).
        batch: number of samples.
        chunk: how many copies of the batch may run in one pass: 1 where the recording holds for this batch only.
    """

    @torch.inference_mode(False)
    def __init__(
        self, model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, target: Any, *, rows: int = 64
    ) -> None:
        """Record the model, find the leaves, take the weights of the target.

        Raises:
            ValueError: as `explain`.
        """
        rows = whole_number("batch_size", rows)
        model, args, keywords = arguments(model, inputs, kwargs)
        finite_inputs(args, keywords)
        self.call = PredictionCall(model, args, keywords, asked(target))
        self.batch = self.call.batch
        if self.call.wanted.several or self.call.alone:
            raise ValueError("this method explains one target of a batch of samples: a list of targets or a node is for explain")
        self.program, given, (pick,) = self.call.prepare(slice(0, self.batch))
        self.tensors = [_ordinary(tensor) for tensor in given]
        self.leaves: list[Leaf] = []
        output = self._run(self.tensors, self._found)
        with torch.enable_grad():
            output = output.detach().requires_grad_()
            whole = pick(output)
            (self.weights,) = torch.autograd.grad(whole.sum(), output) if whole.requires_grad else (torch.zeros_like(output),)
        self.dtype = whole.dtype
        for leaf in self.leaves:  # a model may give its answer in a coarser one
            self.dtype = torch.promote_types(self.dtype, leaf.value.dtype)
        self.whole = whole.detach().to(self.dtype)
        free = self.program.dynamic
        names = [p.name for p in self.program.placeholders.values() if p.kind == "input"]
        shared = all(0 in free.get(n, ()) for n, t in zip(names, self.tensors, strict=True) if self._batched(t))
        self.chunk = max(rows // max(self.batch, 1), 1) if shared else 1

    # -- asking -------------------------------------------------------------------------------------------------------

    def scalar(self, output: Tensor) -> Tensor:
        """The explained scalar of an output, (copies * batch,)."""
        weights = self.weights
        if len(output) != len(weights):
            weights = weights.repeat(len(output) // len(weights), *[1] * (weights.ndim - 1))
        return (output * weights).reshape(len(output), -1).sum(1)

    @torch.inference_mode(False)
    def values(self, points: Sequence[Tensor]) -> Tensor:
        """The scalar at other values of the leaves, (copies * batch,)."""
        with torch.no_grad():
            return self._at([_ordinary(p) for p in points])

    @torch.inference_mode(False)
    def gradients(self, points: Sequence[Tensor]) -> list[Tensor]:
        """Its gradient there, leaf by leaf, each of the shape of its point; 0 where nothing depends on a leaf."""
        with torch.enable_grad():
            leaves = [_ordinary(p).detach().requires_grad_() for p in points]
            whole = self._at(leaves)
            found = torch.autograd.grad(whole.sum(), leaves, allow_unused=True) if whole.requires_grad else [None] * len(leaves)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(points, found, strict=True)]

    @torch.inference_mode(False)
    def inner(self, node: str) -> tuple[Tensor, Tensor]:
        """The value of a node at the given input, and the gradient of the scalar with respect to it."""
        kept: list[Tensor] = []

        def watch(at: fx.Node, value: Any) -> Any:
            if at.name != node:
                return value
            kept.append(value.detach().requires_grad_())
            return kept[0]

        with torch.enable_grad():
            whole = self._at([leaf.value for leaf in self.leaves], watch)
            (gradient,) = torch.autograd.grad(whole.sum(), kept)
        return kept[0].detach(), gradient

    # -- answering ----------------------------------------------------------------------------------------------------

    def baseline(self, baseline: Any) -> list[Tensor]:
        """The values of the leaves at a baseline: a number, a tensor, a name of `fill_ins`; for token ids an id or None."""
        found = []
        for leaf in self.leaves:
            if leaf.look_up is not None:
                token = integer(baseline)
                if baseline is not None and token is None:
                    raise ValueError(f"the baseline of {leaf.name} is the id of a token, or None for zeros; got {baseline!r}")
                found.append(torch.zeros_like(leaf.value) if token is None else leaf.look_up(token))
                continue
            value = filled(leaf.value, 0.0 if baseline is None else baseline)
            if value is None:
                raise ValueError(f"nothing can be removed from {leaf.name}: give values as a baseline")
            found.append(value.expand_as(leaf.value))
        return found

    @torch.inference_mode(False)
    def explanation(
        self,
        relevance: Sequence[Tensor],
        method: str,
        *,
        constants: Mapping[str, Tensor] | None = None,
        names: Sequence[Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> Explanation:
        """An `Explanation` from one relevance per leaf, of its shape."""
        parts: dict[str, Tensor] = {}
        for leaf, value in zip(self.leaves, relevance, strict=True):
            part = _ordinary(value).detach().to(self.dtype)
            part = part.flatten(leaf.axes).sum(-1) if part.ndim > leaf.axes else part
            name = f"input:{leaf.name}"
            parts[name] = parts[name] + part if name in parts else part
        parts |= {f"constant:{name}": _ordinary(value).detach().to(self.dtype) for name, value in (constants or {}).items()}
        return Explanation(
            whole=self.whole,
            parts=parts,
            target=self.call.index[0],
            rules=method,
            names=token_names(names, self.batch),
            classes=class_names(classes, self.call.index[0]),
            asked=self.call.questions(),
        )

    # -- the recording ------------------------------------------------------------------------------------------------

    def _batched(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and tensor.shape[0] == self.batch

    def _at(self, points: Sequence[Tensor], watch: Callable[[fx.Node, Any], Any] | None = None) -> Tensor:
        """The scalar where the leaves have these values, each (copies * batch, ...)."""
        copies = len(points[0]) // self.batch
        tensors = self.tensors
        if copies > 1:
            tensors = [t.repeat(copies, *[1] * (t.ndim - 1)) if self._batched(t) else t for t in tensors]
        given = {leaf.node: point for leaf, point in zip(self.leaves, points, strict=True)}

        def visit(node: fx.Node, value: Any, args: Any, kwargs: Any) -> Any:
            value = given.get(node.name, value)
            return value if watch is None else watch(node, value)

        return self.scalar(self._run(tensors, visit, given))

    def _run(
        self, tensors: list[Tensor], visit: Callable[[fx.Node, Any, Any, Any], Any], given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The output, with each node's value handed to `visit`, which may give another."""
        values: dict[str, Any] = {name: _ordinary(value) for name, value in self.program.bind(tensors).items()}
        for node in self.program.graph.find_nodes(op="placeholder"):
            held = self.program.placeholders[node.name]
            if held.kind == "input" and values[node.name].is_floating_point():
                if given is None:
                    value = values[node.name].detach()
                    self.leaves.append(Leaf(node.name, held.name, value, value.ndim))
                else:
                    values[node.name] = visit(node, values[node.name], (), {})

        def one(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if given is not None and node.name in given:
                return visit(node, given[node.name], args, kwargs)
            return visit(node, node.target(*args, **kwargs), args, kwargs)  # type: ignore[operator]

        if given is None:
            with torch.no_grad():
                output: Tensor = interpret(self.program.graph, values, one)
            return output
        return interpret(self.program.graph, values, one)  # type: ignore[no-any-return]

    def _found(self, node: fx.Node, value: Any, args: Any, kwargs: Any) -> Any:
        """On the first run: keep what is looked up for token ids."""
        if info(node).role == "cut":
            weight, *rest = args
            if not isinstance(value, Tensor) or not isinstance(weight, Tensor) or not weight.is_floating_point():
                raise ValueError(
                    f"{info(node).origin} is pooled in a bag or one-hot, which gradients do not follow: use tw.explain, or "
                    "look the ids up in an nn.Embedding"
                )

            def look_up(token: int) -> Tensor:
                if not -len(weight) <= token < len(weight):
                    raise ValueError(f"token id {token} is out of range: there are {len(weight)}")
                ids = pytree.tree_map(lambda a: torch.full_like(a, token) if isinstance(a, Tensor) else a, rest)
                found: Tensor = node.target(weight, *ids, **kwargs)  # type: ignore[operator]
                return found.detach()

            self.leaves.append(Leaf(node.name, info(node).origin, value.detach(), value.ndim - (weight.ndim - 1), look_up))
        return value


def _ordinary(value: Tensor) -> Tensor:
    """A tensor that autograd takes: a copy of one made in inference mode."""
    return value.clone() if value.is_inference() else value
