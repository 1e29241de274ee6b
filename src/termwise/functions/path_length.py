r"""Average path length: how many active non-linear units a path through a network meets.

    normalized:  E(v) = mean_(u -> v) E(u) + s(v),         s = share of active units where v is an activation, else 0
    paths:       N(v) = sum over ways into v of N(u),   T(v) likewise, and T += s N at a unit;   T / N at the output
    jacobian:    the same, every way weighted by |weight| (and |phi'| at the inputs)

The first walks backward from the output and takes every branch of a sum with equal probability, a unit of a layer uniformly.
It is the one that says how deep a residual network is: counted by paths, a block of four dense layers of width 4 has 256 of them
against one past it, and the shortcut counts for nothing.

One pass in the order of the graph. N and T are what the network computes with ones (or |weights|) for its weights, and its
derivative by a factor at every active unit: sum over paths of s^(active units).

Source: Mehmeti-Goepel & Disselhoff 2023 (the first two). Deviation: the third is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from termwise.core.capture import arguments, capture
from termwise.core.interpret import interpret
from termwise.core.program import Program, describe, info, op_name

from .activations import CELLS, ELEMENTWISE
from .channel_slopes import PartlyLinear

__all__ = ["average_path_length"]

WEIGHTINGS = ("normalized", "paths", "jacobian")

LAYERS = {"linear", "addmm", "conv1d", "conv2d", "conv3d"}
MOVES = {
    "view", "reshape", "_unsafe_view", "transpose", "permute", "flatten", "unflatten", "unsqueeze", "squeeze", "slice", "select",
    "expand", "clone", "contiguous", "alias", "_to_copy", "to", "type_as", "pad", "constant_pad_nd", "cat", "mean", "avg_pool1d",
    "avg_pool2d", "adaptive_avg_pool2d", "sum", "getitem", "split", "chunk", "stack",
}  # fmt: skip
"""Run as they are on counts."""

NO_UNITS = {
    "add", "sub", "mul", "div", "neg", "bmm", "matmul", "mm", "baddbmm", "einsum", "lerp", "batch_norm", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool2d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "amin", "softmax", "_softmax", "log_softmax",
    "_log_softmax", "scaled_dot_product_attention", "dropout", "embedding", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "adaptive_avg_pool1d", "adaptive_avg_pool3d", "avg_pool3d", "upsample_bilinear2d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_bicubic2d", "fft_fft", "fft_fft2", "fft_fftn", "fft_rfft", "fft_irfft", "real", "gather",
    "index", "index_select", "masked_fill", "masked_scatter", "where", "repeat", "repeat_interleave", "roll", "rotary", "flip",
    "split_with_sizes", "t", "numpy_T", "movedim", "swapaxes", "topk", "sort", "unbind", "cumsum", "tile", "pixel_shuffle",
    "detach", "narrow", "unfold", "im2col", "linalg_vector_norm", "norm", "var_mean", "var", "std",
}  # fmt: skip
"""Besides layers and views: sums, products, pooling, norms, attention, what only moves values."""

BENDS = {"glu", "maximum", "minimum"}
"""Units, too, but no functions of one number: without a slope, and no ways lead through them."""

SUMS = {"add", "sub"}

POOLS = {"mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"}
"""An average over k values is k ways; by |weight|, 1/k each."""


def average_path_length(
    model: nn.Module, *inputs: Any, weighting: str = "normalized", kwargs: Mapping[str, Any] | None = None
) -> float:
    """The mean number of active non-linear units on a path from the inputs to the output.

        E(v) = mean_(u -> v) E(u) + s(v)

    Units are the channels of activations, and of every other element-wise function that bends (exp, pow), so also of a norm that
    is written out; max-pooling, softmax and norms are none. Additions of which nothing else reads the result are one sum, however
    it is written. A plain chain of L rectified layers has length
    L, n residual blocks with one rectified layer each n / 2.

    Args:
        model: in eval mode; a `PartlyLinear`, whose linear units do not count, or any other model.
        *inputs: an example of its inputs, from which the operations are recorded.
        weighting: "normalized": every branch of a sum alike; "paths": every way from unit to unit alike; "jacobian": by |weight|
            along the way and |phi'(x)| at these inputs, mean over outputs by their weight.
        kwargs: keyword arguments of the model.

    Returns:
        The average.

    Raises:
        ValueError: for another weighting; for an operation that hides its units (a recurrent layer) or is not known; with "paths"
            and "jacobian" for one by which paths cannot be counted (max-pooling, attention, products of two values). It is named
            with its place.

    Cost: "normalized" one pass over the graph, without arithmetic; the others two forward passes; "jacobian" three.

    Example:
        >>> layers = [m for _ in range(3) for m in (torch.nn.Linear(4, 4), torch.nn.ReLU())]
        >>> chain = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).eval()
        >>> [tw.functions.average_path_length(chain, torch.randn(2, 4), weighting=w) for w in ("normalized", "paths")]
        [3.0, 3.0]

    Source: Mehmeti-Goepel & Disselhoff 2023.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    if isinstance(model, PartlyLinear):
        program, values = model.program, model.values(*inputs, **(kwargs or {}))
        active = {a.node: (on, a.axis) for a, on in zip(model.layers, model.active.values(), strict=True)}
    else:
        model, positional, keywords = arguments(model, inputs, kwargs)  # type: ignore[assignment]
        program = capture(model, *positional, kwargs=keywords)
        values, active = program.bind(program.tensors(*positional, kwargs=keywords)), {}
    if weighting == "normalized":
        return _normalized(program, active)
    with torch.no_grad():
        ways = _Count(program, active, values, weighted=weighting == "jacobian").run()
    return (ways.t.sum() / ways.n.sum()).item()


Active = Mapping[str, tuple[Tensor, int]]


def _is_unit(node: fx.Node) -> bool:
    first = node.args[0] if node.args else None
    return op_name(node) in ELEMENTWISE and info(node).active and isinstance(first, fx.Node) and info(first).active


def _mixes(node: fx.Node, active: Active) -> bool:
    """Whether a node is where f(x) goes over into x."""
    return op_name(node) == "lerp" and isinstance(node.args[0], fx.Node) and node.args[0].name in active


def _branches(node: fx.Node) -> list[fx.Node]:
    """The values that a node reads, each as often as it does; of a chain of additions those of all of them."""
    found = []
    for a in pytree.tree_leaves((node.args, node.kwargs)):
        if isinstance(a, fx.Node) and info(a).active:
            inner = op_name(node) in SUMS and a.op == "call_function" and op_name(a) in SUMS and len(a.users) == 1
            found += _branches(a) if inner else [a]
    return found


def _normalized(program: Program, active: Active) -> float:
    """E at the output, by one pass."""
    found: dict[fx.Node, float] = {}
    for node in program.graph.nodes:
        before = [found[a] for a in _branches(node)] if node.op == "call_function" else []
        own = 0.0
        if _mixes(node, active):
            before = [found[node.args[0]]]  # (1 - a) f(x) + a x is one unit, and no sum of two branches
        elif node.op == "call_function" and _is_unit(node):
            own = active[node.name][0].double().mean().item() if node.name in active else 1.0
        elif before and op_name(node) in BENDS:
            own = 1.0
        elif before and info(node).active and op_name(node) not in NO_UNITS | LAYERS | MOVES:
            why = "its units lie within one operation" if op_name(node) in CELLS else "it is not known whether it has units"
            raise ValueError(f"active units on paths through {describe(node)} cannot be counted: {why}")
        found[node] = (sum(before) / len(before) if before else 0.0) + own
        if node.op == "output":
            return found[node.args[0]]
    raise ValueError("the graph has no output")


@dataclass(frozen=True)
class _Ways:
    """For every entry of a value: the weight of all paths to it, and that times the active units on them."""

    n: Tensor
    t: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> _Ways:
        return _Ways(f(self.n), f(self.t))


class _Count:
    """The interpreter of a program whose values are `_Ways`."""

    def __init__(self, program: Program, active: Active, values: Mapping[str, Tensor], *, weighted: bool) -> None:
        self.program, self.active, self.values, self.weighted = program, active, values, weighted
        self.slopes: dict[str, Tensor] = {}
        if weighted:
            interpret(program.graph, values, self._derive)

    def run(self) -> _Ways:
        """Of the output."""
        given: dict[str, Any] = dict(self.values)
        for node in self.program.graph.find_nodes(op="placeholder"):
            if info(node).active:
                given[node.name] = _ones(given[node.name])
        found: _Ways = interpret(self.program.graph, given, self._visit)
        return found

    def _derive(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a node as it is; of a unit keep phi'(x)."""
        if _is_unit(node):
            f: Callable[[Tensor], Tensor] = lambda x: node.target(x, *args[1:], **kwargs)  # type: ignore[operator]  # noqa: E731
            self.slopes[node.name] = torch.func.jvp(f, (args[0],), (torch.ones_like(args[0]),))[1].double()
        elif _mixes(node, self.active):
            before = node.args[0].name  # type: ignore[union-attr]
            self.slopes[before] = torch.lerp(self.slopes[before], torch.ones_like(self.slopes[before]), args[2].double())
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _visit(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat = [a for a in pytree.tree_leaves(args) if isinstance(a, _Ways)]
        run: Callable[..., Any] = node.target  # type: ignore[assignment]
        if not flat:
            value = run(*args, **kwargs)
            return _ones(value) if info(node).role == "cut" else value
        name, first = op_name(node), flat[0]
        if _mixes(node, self.active):
            return args[0]
        if name in ELEMENTWISE and isinstance(args[0], _Ways):
            return self._unit(node, first)
        if name in LAYERS and len(flat) == 1:
            if name == "addmm":
                return first.map(lambda v: v @ self._weight(args[2]))
            rest = args[3:] if name != "linear" else ()
            return first.map(lambda v: run(v, self._weight(args[1]), *([None] if rest else []), *rest, **kwargs))
        if name in SUMS:
            sides = [a if isinstance(a, _Ways) else first.map(lambda v: torch.zeros_like(v + a)) for a in args[:2]]
            if self.weighted:
                sides[1] = sides[1].map(lambda v: v * abs(kwargs.get("alpha", 1)))
            return _Ways(sides[0].n + sides[1].n, sides[0].t + sides[1].t)
        if name in ("mul", "div", "neg") and len(flat) == 1 and (isinstance(args[0], _Ways) or name == "mul"):
            factors = [a for a in args if not isinstance(a, _Ways)]
            return first.map(lambda v: run(v, *(self._weight(torch.as_tensor(f)) for f in factors)) if factors else v)
        if name == "batch_norm":
            scale = self._weight((args[1] if args[1] is not None else 1.0) * (args[4] + args[7]).rsqrt())
            return first.map(lambda v: v * scale.view(-1, *[1] * (v.ndim - 2)))
        if name in MOVES:
            ways = [pytree.tree_map(lambda a, k=k: getattr(a, k) if isinstance(a, _Ways) else a, args) for k in ("n", "t")]
            n, t = (run(*w, **kwargs) for w in ways)
            if isinstance(n, (tuple, list)):
                return [_Ways(*pair) for pair in zip(n, t, strict=True)]
            scale = 1.0 if self.weighted or name not in POOLS else _pooled(name, args, first.n, n)
            return _Ways(n.double() * scale, t.double() * scale)
        raise ValueError(
            f"paths through {describe(node)} cannot be counted: it is neither a layer, a sum, a unit nor a view. "
            'weighting="normalized" walks through pooling, attention, norms and products as well'
        )

    def _unit(self, node: fx.Node, x: _Ways) -> _Ways:
        if node.name in self.slopes:
            x = x.map(lambda v: v * self.slopes[node.name].abs())
        on, axis = self.active.get(node.name, (x.n.new_ones(1), -1))
        return _Ways(x.n, x.t + x.n * on.double().view(-1, *[1] * (-axis - 1)))

    def _weight(self, weight: Tensor) -> Tensor:
        return weight.abs().double() if self.weighted else torch.ones_like(weight, dtype=torch.float64)


def _ones(value: Tensor) -> _Ways:
    return _Ways(torch.ones_like(value, dtype=torch.float64), torch.zeros_like(value, dtype=torch.float64))


def _pooled(name: str, args: tuple[Any, ...], before: Tensor, after: Tensor) -> float:
    """How many ways an average is over."""
    if name.startswith("avg_pool"):
        sizes = list(args[1])
        return float(math.prod(sizes) * (sizes[0] ** (int(name[-2]) - 1) if len(sizes) == 1 else 1))
    return before.numel() / after.numel()
