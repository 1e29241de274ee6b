"""How the parts of a value go through an operation: the table of an interpreter that carries them beside it.

    value = bias row + constant row + sum_k row_k          (k: source tokens)

Linear operations act on every row. Statistics and attention weights are constants, taken from the whole value, so norms and
attention are linear too. A product of two values that both have parts gives half to each. Functions of one variable become a
slope and an offset. Constants that an operation adds are collected in the bias row, until they are shared.
An operation that is not in the table cannot be decomposed by token: an error, never a silent zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .rules.attention import FUSED, SOFTMAX
from .rules.elementwise import ELEMENTWISE
from .rules.linear import HOMOGENEOUS, MOVES, SUMS, WINNERS
from .rules.products import PRODUCTS

if TYPE_CHECKING:
    from .decompx import Place

__all__ = ["FOLLOWED", "HELD", "TABLE", "Parts", "each_row", "plain"]

BIAS, CONSTANT, FIRST = 0, 1, 2
"""Rows: collected biases, constants that are no token's, and from here on the tokens."""


class Parts:
    """A value and its rows, (rows, *shape of value); of several values a tuple of each.

    `pending`: whether the bias row holds something that is still to be shared.
    """

    __slots__ = ("pending", "rows", "value")

    def __init__(self, value: Any, rows: Any, pending: bool = False) -> None:
        """Hold them."""
        self.value, self.rows, self.pending = value, rows, pending


Rule = Callable[..., Parts]

TABLE: dict[str, Rule] = {}
"""Operator name -> rule, called as ``rule(place, y, *args, **kwargs)`` with the value y; returns the `Parts` of y."""

FOLLOWED: dict[str, tuple[int, ...]] = {}
"""Operator name -> the argument positions whose parts a rule can follow, where that is not all of them."""

HELD: dict[str, tuple[int, ...]] = {}
"""Operator name -> the argument positions whose value is held constant although it may have parts."""


def parts(*ops: str, follow: tuple[int, ...] | None = None, hold: tuple[int, ...] = ()) -> Callable[[Rule], Rule]:
    """Enter a function into the table."""

    def enter(rule: Rule) -> Rule:
        for op in ops:
            TABLE[op] = rule
            if follow is not None:
                FOLLOWED[op] = follow
            if hold:
                HELD[op] = hold
        return rule

    return enter


def plain(args: Any) -> Any:
    """Nested arguments with values in place of parts."""
    if isinstance(args, Parts):
        return args.value
    if isinstance(args, (tuple, list)):
        return type(args)(plain(a) for a in args)
    return {k: plain(v) for k, v in args.items()} if isinstance(args, dict) else args


LOOPED = ("masked_scatter", "adaptive_avg_pool1d")
"""What torch has no vectorised form of: row after row."""


def each_row(f: Callable[..., Any], *args: Any, loop: bool = False) -> Any:
    """`f` of every row of the parts among nested `args`, other arguments as they are."""
    # (no recursive closures here: they are cycles, and would keep the rows alive until the next collection)
    leaves, spec = pytree.tree_flatten(list(args))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Parts)]
    found = [leaves[i].rows for i in places]

    def of(*rows: Tensor) -> Any:
        given = dict(zip(places, rows, strict=True))
        return f(*pytree.tree_unflatten([given.get(i, leaf) for i, leaf in enumerate(leaves)], spec))

    if loop:
        return torch.stack([of(*rows) for rows in zip(*found, strict=True)])
    return torch.vmap(of)(*found)


def pending(args: Any) -> bool:
    """Whether any part among nested arguments has something to share."""
    if isinstance(args, (tuple, list)):
        return any(map(pending, args))
    return isinstance(args, Parts) and args.pending


# -- linear -----------------------------------------------------------------------------------------------------------


@parts(*MOVES, *SUMS, "detach", follow=(0,))
def linear_map(at: Place, y: Any, *args: Any, **kwargs: Any) -> Parts:
    """Every row by itself."""
    if at.name == "getitem":
        x, i = args
        return Parts(y, x.rows[i], x.pending) if isinstance(x.rows, (tuple, list)) else Parts(y, x.rows[:, i], x.pending)
    return Parts(y, each_row(lambda *a: at.op(*a, **kwargs), *args, loop=at.name in LOOPED), pending(args))


@parts("view_as", "expand_as", "type_as", follow=(0,), hold=(1,))
def like_another(at: Place, y: Tensor, x: Parts, other: Tensor) -> Parts:
    """Shaped as another value, which gives nothing but its shape."""
    return Parts(y, each_row(lambda row: at.op(row, other), x), x.pending)


@parts(
    "linalg_vector_norm",
    "norm",
    *WINNERS,
    *[op for op in HOMOGENEOUS if op not in ("relu", "leaky_relu", "abs", "_prelu_kernel", "prelu", "rrelu")],
)
def own_derivative(at: Place, y: Any, x: Parts, *args: Any, **kwargs: Any) -> Parts:
    """Of degree one, f(x) = x * grad f: the rows go through its own derivative, a winner's to the winner."""
    first = isinstance(y, (tuple, list))

    def f(x: Tensor) -> Tensor:
        found: Any = at.op(x, *args, **kwargs)
        return found[0] if first else found

    rows = torch.vmap(lambda row: torch.func.jvp(f, (x.value,), (row,))[1])(x.rows)
    return Parts(y, (rows, *[None] * (len(y) - 1)) if first else rows, x.pending)


@parts("add", "sub", "rsub")
def add(at: Place, y: Tensor, a: Any, b: Any, scale: float = 1, *, alpha: float = 1, **kwargs: Any) -> Parts:
    """Row by row; a constant operand is collected. What was collected is shared here."""
    scales = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}[at.name]
    alpha = alpha * scale
    scales = (scales[0] * alpha, scales[1]) if at.name == "rsub" else (scales[0], scales[1] * alpha)
    out: Parts | None = None
    for x, s in zip((a, b), scales, strict=True):
        if isinstance(x, Parts):
            rows = _expanded(x.rows, y)
            if out is None:
                out = Parts(y, rows * s if s != 1 else rows.clone(), x.pending)
            else:
                out = Parts(y, out.rows.add_(rows, alpha=s), out.pending or x.pending)
    assert out is not None
    for position, (x, s) in enumerate(zip((a, b), scales, strict=True)):
        if not isinstance(x, Parts):
            at.collect(out, x * s if s != 1 else x, is_bias=at.is_bias(position))
    return at.share_(out)


@parts(
    "cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "scatter_add", "index_put", "_unsafe_index_put",
    "index_add", "index_copy", "index_fill", "select_scatter", "slice_scatter", "diagonal_scatter", "pad", "constant_pad_nd",
    "concat", "concatenate", "dstack", "hstack", "vstack", "column_stack", "lerp", "diff", "copy",
)  # fmt: skip
def assemble(at: Place, y: Tensor, *args: Any, **kwargs: Any) -> Parts:
    """Put together from pieces, some constant (a class token, padding): y = J x + offset, the offset made of zeros."""
    offset = at.op(*_zeroed(args), **kwargs)
    offset = offset.masked_fill(offset.isinf(), 0)
    rows = each_row(lambda *a: at.op(*a, **kwargs), *args, loop=at.name in LOOPED)
    if not offset.any():
        return Parts(y, rows, pending(args))
    infinite = rows.isinf()
    rows = (rows - offset).masked_fill_(infinite, 0)
    return at.collected(Parts(y, rows, pending(args)), offset)


def _zeroed(args: Any) -> Any:
    if isinstance(args, (tuple, list)):
        return type(args)(_zeroed(a) for a in args)
    return torch.zeros_like(args.value) if isinstance(args, Parts) else args


# -- with parameters --------------------------------------------------------------------------------------------------


@parts("linear", follow=(0,))
def linear(at: Place, y: Tensor, x: Parts, weight: Tensor, bias: Tensor | None = None) -> Parts:
    """W row; the bias is collected, and shared at once unless attention is to mix it first."""
    return at.affine(Parts(y, torch.nn.functional.linear(x.rows, weight), x.pending), bias)


@parts("addmm", "addbmm", "baddbmm", "addmv", follow=(1,))
def bias_first(at: Place, y: Tensor, bias: Tensor, x: Parts, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Parts:
    """Beta b + alpha x W."""
    rows = each_row(lambda row: at.op(torch.zeros_like(bias), row, weight, beta=1, alpha=alpha), x)
    return at.affine(Parts(y, rows, x.pending), bias * beta)


@parts(
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", follow=(0,)
)  # fmt: skip
def convolution(at: Place, y: Tensor, x: Parts, weight: Tensor, bias: Any = None, *rest: Any) -> Parts:
    """As `linear`, with the channels behind the batch."""
    rows = at.op(x.rows.flatten(0, 1), weight, None, *rest).unflatten(0, x.rows.shape[:2])
    axis = 1 - y.ndim
    return at.affine(Parts(y, rows, x.pending), None if bias is None else _along(bias, axis), axis)


@parts("batch_norm", follow=(0,))
def batch_norm(
    at: Place, y: Tensor, x: Parts, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool, momentum: float,
    eps: float, *_: Any,
) -> Parts:  # fmt: skip
    """In eval mode g x + (beta - mu g)."""
    if training:
        raise ValueError(f"{at.where} takes its statistics from the batch: samples cannot be decomposed one by one")
    gain = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    offset = -mean * gain if bias is None else bias - mean * gain
    return at.affine(Parts(y, x.rows * _along(gain, 1 - y.ndim), x.pending), _along(offset, 1 - y.ndim), 1 - y.ndim)


# -- norms: statistics of the whole value, constants for every part -----------------------------------------------------


@parts("layer_norm", "native_layer_norm", follow=(0,))
def layer_norm(
    at: Place, y: Any, x: Parts, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Parts:
    """Gamma (row - mean row) / sigma, each row with its own mean; beta is shared."""
    x = at.shared(x)
    dims = [-1 - i for i in range(len(shape))]
    rows = x.rows - x.rows.mean(dims, keepdim=True)
    rows.mul_(torch.rsqrt(x.value.var(dims, correction=0, keepdim=True) + eps))
    rows = rows if weight is None else rows.mul_(weight)
    several = isinstance(y, (tuple, list))
    out = at.collected(Parts(y[0] if several else y, rows, x.pending), bias, is_bias=True)
    return Parts(y, (out.rows, None, None), out.pending) if several else out


@parts("rms_norm", "_fused_rms_norm", follow=(0,))
def rms_norm(at: Place, y: Any, x: Parts, *args: Any, **kwargs: Any) -> Parts:
    """W row / rms(x)."""
    x = at.shared(x)
    held = getattr(at.op, "constant", None)
    if held is not None:  # recognised from primitives: diagonal in x, with its statistic held
        gain = torch.func.jvp(lambda v: held(v, *args), (x.value,), (torch.ones_like(x.value),))[1]
    else:
        shape, weight, eps = [*args, None, None][:3]
        dims = [-1 - i for i in range(len(shape))]
        eps = torch.finfo(x.value.dtype).eps if eps is None else eps
        gain = torch.rsqrt(x.value.square().mean(dims, keepdim=True) + eps)
        gain = gain if weight is None else gain * weight
    rows = x.rows * gain
    return Parts(y, (rows, None), x.pending) if isinstance(y, (tuple, list)) else Parts(y, rows, x.pending)


@parts("group_norm", follow=(0,))
def group_norm(
    at: Place, y: Tensor, x: Parts, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Parts:
    """Per group of channels, as `layer_norm`."""
    x = at.shared(x)
    value, rows = (v.unflatten(v.ndim - y.ndim + 1, (groups, -1)) for v in (x.value, x.rows))
    dims = list(range(2 - value.ndim, 0))
    rows = (rows - rows.mean(dims, keepdim=True)) * torch.rsqrt(value.var(dims, correction=0, keepdim=True) + eps)
    rows = rows.reshape(x.rows.shape) * (1 if weight is None else _along(weight, 1 - y.ndim))
    out = Parts(y, rows, x.pending)
    return at.collected(out, None if bias is None else _along(bias, 1 - y.ndim), is_bias=True, axis=1 - y.ndim)


# -- functions of one variable ----------------------------------------------------------------------------------------


@parts(*ELEMENTWISE, "pow", "relu", "leaky_relu", "abs", "_prelu_kernel", "prelu", "rrelu", follow=(0,))
def function(at: Place, y: Tensor, x: Parts, *rest: Any, **kwargs: Any) -> Parts:
    """A slope for every row, and an offset."""
    x = at.shared(x)
    slope, offset = at.line(lambda u: at.op(u, *rest, **kwargs), x.value, y)
    return at.collected(Parts(y, x.rows * slope, x.pending), offset)


@parts("log_softmax", "_log_softmax", follow=(0,))
def log_softmax(at: Place, y: Tensor, x: Parts, *args: Any, **kwargs: Any) -> Parts:
    """X - log sum exp x, of which the second is a normaliser."""
    return at.collected(Parts(y, x.rows.clone(), x.pending), y - x.value)


@parts("sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide", *SOFTMAX, hold=(0, 1))
def constant(at: Place, y: Tensor, *args: Any, **kwargs: Any) -> Parts:
    """Attention weights and steps have no parts: their value is a constant. Never called."""
    raise AssertionError(f"{at.where} was followed")


# -- products ---------------------------------------------------------------------------------------------------------


@parts("mul", *PRODUCTS)
def product(at: Place, y: Tensor, *operands: Any, **kwargs: Any) -> Parts:
    """Of one value with parts, linear; of k of them, each in turn with the others whole, in equal shares."""
    mine = [i for i, v in enumerate(operands) if isinstance(v, Parts)]
    whole = plain(operands)
    rows = None
    for i in mine:
        if at.name in ("matmul", "bmm") and i == 1 and whole[0].ndim == whole[1].ndim:
            found = mixed(whole[0], operands[1].rows)
        elif at.name in ("matmul", "bmm") and i == 0 and whole[0].ndim == whole[1].ndim > 2:
            found = mixed(whole[1].mT, operands[0].rows.mT).mT  # (rows w) = (w' rows')'
        elif at.name == "mul":
            found = _expanded(operands[i].rows, y) * whole[1 - i]
        else:
            found = each_row(lambda *a: at.op(*a, **kwargs), *[v if i == j else whole[j] for j, v in enumerate(operands)])
        rows = found if rows is None else rows + found
    return Parts(y, rows / len(mine) if len(mine) > 1 else rows, pending(operands))


@parts("div", "true_divide")
def quotient(at: Place, y: Tensor, a: Any, b: Any, **kwargs: Any) -> Parts:
    """A / b: linear in a; a part of b counts as of b in a * (1 / b)."""
    if kwargs.get("rounding_mode"):
        raise ValueError(f"{at.where} rounds, and rounding cannot be decomposed by token")
    rows = None
    if isinstance(a, Parts):
        rows = _expanded(a.rows, y) / plain(b)
    if isinstance(b, Parts):
        of_b = _expanded(b.rows, y) * (y / b.value)
        rows = of_b if rows is None else (rows + of_b) / 2
    return Parts(y, rows, pending((a, b)))


@parts(*FUSED, follow=(2,), hold=(0, 1, 3))
def attention(at: Place, y: Tensor, q: Tensor, k: Tensor, v: Parts, *args: Any, **kwargs: Any) -> Parts:
    """A v with the weights A held; A is what the operation itself makes of an identity in place of v."""
    n = k.shape[-2]
    eye = torch.eye(n, dtype=k.dtype, device=k.device).expand(*k.shape[:-2], n, n)
    weights = at.op(q, k, eye, *args, **kwargs)
    heads, values = weights.shape[-3], v.rows.shape[-3]
    if heads == values:
        return Parts(y, mixed(weights, v.rows), v.pending)
    grouped = weights.unflatten(-3, (values, -1)).flatten(-3, -2)  # several query heads read one value head
    rows = mixed(grouped, v.rows).unflatten(-2, (-1, weights.shape[-2])).flatten(-4, -3)
    return Parts(y, rows, v.pending)


def mixed(weights: Tensor, rows: Tensor) -> Tensor:
    """Weights @ row for every row, as one product: the weights are not repeated per row. (..., i, j) and (r, ..., j, d)."""
    r, d = rows.shape[0], rows.shape[-1]
    wide = rows.movedim(0, -2).flatten(-2)
    return (weights @ wide).unflatten(-1, (r, d)).movedim(-2, 0)


def _expanded(rows: Tensor, y: Tensor) -> Tensor:
    """Rows of a value that was broadcast to the shape of y."""
    missing = y.ndim - (rows.ndim - 1)
    return rows.reshape(rows.shape[0], *[1] * missing, *rows.shape[1:]).expand(rows.shape[0], *y.shape)


def _along(vector: Tensor, axis: int) -> Tensor:
    """A vector laid along an axis counted from the right."""
    return vector.reshape(-1, *[1] * (-1 - axis))
