r"""Value and slope side by side: how each operation takes a first-order jet, by torch's fused kernels.

    (x, x')   ->   (f(x), D f(x) x')

The jet rules at order 1 say the same, over rows of one tensor and by recurrences that know every order. Here value and slope
are two tensors. A linear operation runs on each; a product has a slope by Leibniz; an element-wise function, softmax and a layer
norm without its gain have symmetric Jacobians, so that D f(x) x' is what torch's own backward kernel gives for x'. An operation
that is not in this table takes its jet rule.

Cost: for a linear layer whose input and weight both move three matrix products, x W^T, x' W^T and x V^T; nothing before the first
value that moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from termwise.core.composite import Composite
from termwise.core.interpret import interpret
from termwise.core.program import Program, op_name

from .jet import Run
from .jet_rules import Jet
from .taylor import Taylor

__all__ = ["PAIR_RULES", "Pair", "run_pairs"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Pair:
    """A value that moves, and its slope, of the same shape."""

    value: Tensor
    slope: Tensor


PAIR_RULES: dict[str, Callable[..., Any]] = {}
"""Operator name -> rule, called as ``rule(op, *args, **kwargs)`` with at least one `Pair` among its arguments."""


def run_pairs(program: Program, values: Mapping[str, Any]) -> Any:
    """The program's output, given a pair or a tensor for every placeholder: a `Pair`, or a tensor that does not move.

    At the very kink of a piecewise operation the slope is torch's own subgradient, so that it is linear in the slopes given.

    Raises:
        ValueError: for an operation that has no rule here nor among the jet rules, with its place.
    """
    rows = Run(Taylor(1), ties="torch")

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if not (_moves(args) or _moves(tuple(kwargs.values()))):
            # what vmap makes of a value may lie otherwise in memory than when it was recorded
            return (aten.reshape if target is aten.view.default else target)(*args, **kwargs)
        if isinstance(target, Composite):
            names = [n.name for n in target.graph.find_nodes(op="placeholder")]
            return interpret(target.graph, dict(zip(names, args, strict=True)), visit)
        rule = PAIR_RULES.get(op_name(node))
        if rule is not None:
            return rule(target, *args, **kwargs)
        return _pairs(rows.visit(node, _jets(args), {k: _jets(v) for k, v in kwargs.items()}))

    return interpret(program.graph, values, visit)


def _moves(value: Any) -> bool:
    return isinstance(value, Pair) or (isinstance(value, (tuple, list)) and any(map(_moves, value)))


def _jets(value: Any) -> Any:
    """Pairs as rows of one tensor."""
    if isinstance(value, Pair):
        return Jet(torch.stack([value.value, value.slope]))
    return type(value)(map(_jets, value)) if isinstance(value, (tuple, list)) else value


def _pairs(value: Any) -> Any:
    """And back; one row does not move."""
    if isinstance(value, Jet):
        return Pair(value.rows[0], value.rows[1]) if len(value.rows) > 1 else value.rows[0]
    return type(value)(map(_pairs, value)) if isinstance(value, (tuple, list)) else value


def _apart(value: Any) -> tuple[Any, Any]:
    """Value and slope; None for the slope of what does not move."""
    return (value.value, value.slope) if isinstance(value, Pair) else (value, None)


def _sum(*terms: Tensor | None) -> Tensor | None:
    """Of those that are there."""
    found = None
    for term in terms:
        found = term if found is None else found if term is None else found + term
    return found


def _pair(value: Tensor, slope: Tensor | None) -> Any:
    """A slope that lacks axes is that of every entry along them."""
    return value if slope is None else Pair(value, slope if slope.shape == value.shape else slope.expand(value.shape))


def pair_rule(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table as the rule of these operators."""

    def enter(rule: Callable[..., Any]) -> Callable[..., Any]:
        PAIR_RULES.update(dict.fromkeys(ops, rule))
        return rule

    return enter


# -- linear in one value ----------------------------------------------------------------------------------------------


@pair_rule(
    "transpose", "t", "permute", "unsqueeze", "squeeze", "select", "slice", "flatten", "unflatten", "narrow", "expand", "roll",
    "flip", "split", "split_with_sizes", "chunk", "unbind", "mean", "sum", "clone", "neg", "index_select", "diagonal",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "contiguous", "repeat", "movedim", "tril", "triu",
)  # fmt: skip
def on_each(op: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation of the value, and of the slope."""
    value, slope = op(x.value, *args, **kwargs), op(x.slope, *args, **kwargs)
    return type(value)(map(Pair, value, slope)) if isinstance(value, (tuple, list)) else Pair(value, slope)


@pair_rule("view", "reshape", "_unsafe_view")
def reshaped(op: Any, x: Any, size: Any) -> Any:
    """A slope may lie otherwise in memory than its value."""
    return Pair(x.value.reshape(size), x.slope.reshape(size))


@pair_rule("dropout", "alias", "detach", "lift_fresh_copy", "positive")
def same(op: Any, x: Any, *_: Any, **__: Any) -> Any:
    """Nothing happens: the model is in eval mode."""
    return x


@pair_rule("getitem")
def getitem(op: Any, values: Any, index: Any) -> Any:
    """One of several values."""
    return values[index]


@pair_rule("embedding")
def embedding(op: Any, table: Any, ids: Tensor, *_: Any, **__: Any) -> Any:
    """Rows of a table that moves."""
    return Pair(F.embedding(ids, table.value), F.embedding(ids, table.slope))


@pair_rule("cat", "concat", "stack")
def together(op: Any, tensors: Any, axis: int = 0) -> Any:
    """Pieces; those that do not move have no slope."""
    parts = [_apart(t) for t in tensors]
    slopes = [torch.zeros_like(value) if slope is None else slope for value, slope in parts]
    return Pair(op([value for value, _ in parts], axis), op(slopes, axis))


@pair_rule("add", "sub")
def add(op: Any, a: Any, b: Any, alpha: float = 1) -> Any:
    """A sum; where one of them does not move the slope is the other's."""
    (a, da), (b, db) = _apart(a), _apart(b)
    if da is not None and db is not None:
        slope = op(da, db, alpha=alpha)
    else:
        slope = da if db is None else db * (alpha if _name(op) == "add" else -alpha)
    return _pair(op(a, b, alpha=alpha), slope)


def _name(op: Any) -> str:
    """Without the overload."""
    return str(op.__name__).partition(".")[0]


# -- products ---------------------------------------------------------------------------------------------------------


@pair_rule("mul", "matmul", "mm", "bmm")
def product(op: Any, a: Any, b: Any) -> Any:
    """(a b)' = a' b + a b'."""
    (a, da), (b, db) = _apart(a), _apart(b)
    return _pair(op(a, b), _sum(None if da is None else op(da, b), None if db is None else op(a, db)))


@pair_rule("div")
def div(op: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """(a / b)' = (a' - (a / b) b') / b."""
    (a, da), (b, db) = _apart(a), _apart(b)
    value = op(a, b, **kwargs)
    slope = _sum(da, None if db is None else -value * db)
    assert slope is not None
    return _pair(value, slope / b)


@pair_rule("linear")
def linear(op: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """The value x W^T + b, the slope x V^T + b' + x' W^T; the last one is added within its matrix product."""
    (x, dx), (w, dw), (b, db) = _apart(x), _apart(weight), _apart(bias)
    value = F.linear(x, w, b)
    slope = db if dw is None else F.linear(x, dw, db)
    return _pair(value, slope if dx is None else _plus(slope, dx, w.t()))


@pair_rule("addmm")
def addmm(op: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Of value beta bias + alpha a b."""
    (c, dc), (a, da), (b, db) = _apart(bias), _apart(a), _apart(b)
    slope = None if dc is None else dc * beta
    for left, right in ((a, db), (da, b)):
        if left is not None and right is not None:
            slope = _plus(slope, left if alpha == 1 else left * alpha, right)
    return _pair(torch.addmm(c, a, b, beta=beta, alpha=alpha), slope)


def _plus(known: Tensor | None, x: Tensor, matrix: Tensor) -> Tensor:
    """Add x @ matrix."""
    if known is None:
        return x @ matrix
    flat = x.reshape(-1, x.shape[-1])
    known = known if known.ndim == 1 else known.reshape(-1, known.shape[-1])
    return torch.addmm(known, flat, matrix).reshape(*x.shape[:-1], matrix.shape[-1])


@pair_rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(op: Any, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Any:
    """As a linear layer."""
    (x, dx), (w, dw), (b, db) = _apart(x), _apart(weight), _apart(bias)
    value = op(x, w, b, *rest)
    alone = None
    if dw is not None:
        alone = op(x, dw, db, *rest)
    elif db is not None:
        alone = db.reshape(-1, *[1] * (w.ndim - 2))
    return _pair(value, _sum(alone, None if dx is None else op(dx, w, None, *rest)))


@pair_rule("scaled_dot_product_attention")
def attention(
    op: Any, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """S' = (q' k^T + q k'^T) scale, P' = P (S' - sum P S'), out' = P' v + P v'; the mask is in S, and never in S'."""
    (q, dq), (k, dk), (v, dv), (mask, dmask) = _apart(q), _apart(k), _apart(v), _apart(mask)
    if enable_gqa:
        heads = q.shape[-3] // k.shape[-3]
        k, dk, v, dv = (None if t is None else t.repeat_interleave(heads, -3) for t in (k, dk, v, dv))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, keys = q * scale, k.transpose(-1, -2)
    scores = q @ keys
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # a row that is hidden altogether attends to nothing
    p = torch.softmax(scores, -1) if mask is None else aten._safe_softmax(scores, -1)
    slope = _sum(None if dq is None else (dq * scale) @ keys, None if dk is None else q @ dk.transpose(-1, -2), dmask)
    dp = None if slope is None else _through_softmax(p, slope.expand_as(p), -1)
    return _pair(p @ v, _sum(None if dp is None else dp @ v, None if dv is None else p @ dv))


# -- functions of one value -------------------------------------------------------------------------------------------


def _through_softmax(p: Tensor, slope: Tensor, axis: int) -> Tensor:
    """P (S' - sum P S'): the Jacobian of softmax is symmetric."""
    return aten._softmax_backward_data(slope, p, axis, p.dtype)  # type: ignore[no-any-return]


@pair_rule("softmax")
def softmax(op: Any, x: Any, axis: int, dtype: Any = None) -> Any:
    """Of the dtype that is asked for."""
    p = torch.softmax(x.value, axis, dtype)
    return Pair(p, _through_softmax(p, x.slope.to(p.dtype), axis))


@pair_rule("gelu")
def gelu(op: Any, x: Any, *, approximate: str = "none") -> Any:
    """Of value x Phi(x) and slope Phi(x) + x phi(x)."""
    return Pair(op(x.value, approximate=approximate), aten.gelu_backward(x.slope, x.value, approximate=approximate))


@pair_rule("relu")
def relu(op: Any, x: Any) -> Any:
    """Where the value is positive; at 0 the slope is 0."""
    return Pair(op(x.value), aten.threshold_backward(x.slope, x.value, 0))


_SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exp": lambda dx, x, y: dx * y,
    "log": lambda dx, x, y: dx / x,
    "sqrt": lambda dx, x, y: dx / (2 * y),
    "rsqrt": lambda dx, x, y: dx * y.pow(3) * -0.5,
    "square": lambda dx, x, y: 2 * dx * x,
    "reciprocal": lambda dx, x, y: -dx * y.square(),
    "sin": lambda dx, x, y: dx * x.cos(),
    "cos": lambda dx, x, y: -dx * x.sin(),
    "tanh": lambda dx, x, y: aten.tanh_backward(dx, y),
    "sigmoid": lambda dx, x, y: aten.sigmoid_backward(dx, y),
    "silu": lambda dx, x, y: aten.silu_backward(dx, x),
    "mish": lambda dx, x, y: aten.mish_backward(dx, x),
    "erf": lambda dx, x, y: dx * (-x.square()).exp() * (2 / math.sqrt(math.pi)),
}
"""f(x), given x', x and f(x): f'(x) x'."""


@pair_rule(*_SLOPES)
def elementwise(op: Any, x: Any) -> Any:
    """A function of each entry."""
    value = op(x.value)
    return Pair(value, _SLOPES[_name(op)](x.slope, x.value, value))


# -- norms ------------------------------------------------------------------------------------------------------------


@pair_rule("layer_norm")
def layer_norm(op: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    """n(x) w + b, and n(x) w' + b' + (D n(x) x') w: the Jacobian of n is symmetric."""
    (x, dx), (w, dw), (b, db) = _apart(x), _apart(weight), _apart(bias)
    value, mean, scale = torch.native_layer_norm(x, shape, w, b, eps)
    slope = db if dw is None else F.layer_norm(x, shape, dw, db, eps)
    if dx is not None:
        through = aten.native_layer_norm_backward(dx, x, shape, mean, scale, None, None, [True, False, False])[0]
        if slope is not None and w is not None:
            slope = torch.addcmul(slope, through, w)
        else:
            slope = _sum(slope, through if w is None else through * w)
    return _pair(value, slope)


@pair_rule("batch_norm")
def batch_norm(
    op: Any, x: Any, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float, *_: Any
) -> Any:
    """In eval mode an affine map of every channel."""
    (x, dx), (w, dw), (b, db) = _apart(x), _apart(weight), _apart(bias)

    def affine(x: Tensor, mean: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, w, b, False, momentum, eps)

    alone = None
    if dw is not None:
        alone = affine(x, mean, dw, db)
    elif db is not None:
        alone = db.reshape(-1, *[1] * (x.ndim - 2))
    return _pair(affine(x, mean, w, b), _sum(alone, None if dx is None else affine(dx, torch.zeros_like(mean), w, None)))
