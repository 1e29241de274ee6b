"""Linear operations act row by row; a constant summand touches the first row only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import Jet, axes_of, jet_rule, leveled, like, moves, rows_of, values

aten = torch.ops.aten


@jet_rule(
    "flatten", "unflatten", "narrow", "index_select", "gather", "take_along_dim", "take", "flip", "rot90", "roll", "repeat",
    "tile", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "tril", "triu", "diagonal", "diag", "diag_embed", "chunk",
    "split", "split_with_sizes", "tensor_split", "unbind", "movedim", "swapaxes", "unfold", "unfold_copy", "im2col", "col2im",
    "repeat_interleave", "masked_select", "as_strided", "cumsum", "trace", "adaptive_avg_pool1d", "upsample_nearest1d",
    "upsample_linear1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "fft_rfft", "fft_irfft", "fft_fft",
    "fft_ifft", "fft_rfft2", "fft_irfft2", "fft_fft2", "fft_ifft2", "fft_rfftn", "fft_irfftn", "avg_pool1d", "index",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "view_as_real", "view_as_complex",
    "diff", "constant_pad_nd", "pad", "adaptive_avg_pool2d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
)  # fmt: skip
def linear_in_rows(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums and moves: f(x_k) for every k at once. What is filled in (padding with a number) fills the first row only."""
    name = at.op.__name__.partition(".")[0]
    if name in ("pad", "constant_pad_nd") and any(_number(a) and a for a in args[2:]):
        return _filling(at, args, [0.0 if _number(a) else a for a in args[2:]], kwargs)
    if name == "diff" and len(args) + len(kwargs) > 3:
        raise ValueError(f"{at.where} joins something to its input: join them before (torch.cat), and then take differences")
    return at.by_rows(at.op, *args, **kwargs)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _filling(at: Any, args: Any, empty: list[Any], kwargs: Any) -> Jet:
    """An operation that fills in a number: linear where that is 0 (`empty`: its last arguments then), and a constant more."""
    rows = at.by_rows(at.op, *args[: len(args) - len(empty)], *empty, **kwargs).rows
    return Jet(at.series.shifted(rows, at.op(*values((torch.zeros_like(args[0].value), *args[1:])), **kwargs)))


@jet_rule(
    "masked_scatter", "scatter_add", "scatter", "index_add", "index_copy", "index_put", "index_fill", "select_scatter",
    "slice_scatter",
)  # fmt: skip
def assembled(at: Any, *args: Any, **kwargs: Any) -> Jet:
    """Values put among others: a constant one of them is zero in the later rows."""
    if kwargs.get("reduce") is not None:
        raise ValueError(f"{at.where} reduces while it scatters: there is a jet rule for putting and adding only")
    if _number(args[-1]) and ("value" in at.overload or "Scalar" in at.overload):
        return _filling(at, args, [0.0], kwargs)

    def series(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return Jet(at.series.constant(value)) if floating else value

    found: Jet = at.by_rows(at.op, *map(series, args), **kwargs)
    return found


@jet_rule("view", "reshape", "_unsafe_view", "expand", "view_copy", "_reshape_copy")
def sized(at: Any, x: Jet, size: Any, **_: Any) -> Jet:
    """A new shape for every row."""
    size = [int(s) for s in size]
    if at.op.__name__.startswith("expand"):
        size = [x.rows.shape[1 + i - (len(size) - x.ndim)] if s == -1 else s for i, s in enumerate(size)]
        rows = x.rows.reshape(len(x.rows), *[1] * (len(size) - x.ndim), *x.rows.shape[1:])
        return Jet(rows.expand(len(rows), *size))
    return Jet(x.rows.reshape(len(x.rows), *size))


@jet_rule("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "positive", "dropout")
def same(at: Any, x: Jet, *args: Any, **__: Any) -> Jet:
    """Nothing happens."""
    if at.op.__name__.startswith("dropout") and len(args) > 1 and args[1] and args[0]:
        raise ValueError(f"{at.where} drops at random: call model.eval(), or pass training=False")
    return x


@jet_rule("_to_copy", "to", "type_as")
def cast(at: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """Another dtype for every row; integers do not move."""
    if not isinstance(x, Jet):  # type_as a value that moves
        return at.op(x, *values(args), **kwargs)
    value = at.op(x.value, *values(args), **kwargs)
    return Jet(x.rows.to(value.dtype)) if value.is_floating_point() or value.is_complex() else value


@jet_rule("transpose")
def transpose(at: Any, x: Jet, a: int, b: int) -> Jet:
    """Two axes change places."""
    return Jet(x.rows.transpose(a % x.ndim + 1, b % x.ndim + 1))


@jet_rule("t")
def t(at: Any, x: Jet) -> Jet:
    """The two axes of a matrix."""
    return Jet(x.rows.transpose(-1, -2)) if x.ndim == 2 else x


@jet_rule("permute")
def permute(at: Any, x: Jet, axes: Any) -> Jet:
    """Axes in another order."""
    return Jet(x.rows.permute(0, *(a % x.ndim + 1 for a in axes)))


@jet_rule("unsqueeze")
def unsqueeze(at: Any, x: Jet, axis: int) -> Jet:
    """One axis more."""
    return Jet(x.rows.unsqueeze(axis % (x.ndim + 1) + 1))


@jet_rule("squeeze")
def squeeze(at: Any, x: Jet, axis: Any = None) -> Jet:
    """Axes of size 1 go."""
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    gone = [a % x.ndim + 1 for a in axes if x.rows.shape[a % x.ndim + 1] == 1] if x.ndim else []
    return Jet(x.rows.squeeze(gone) if gone else x.rows)


@jet_rule("select")
def select(at: Any, x: Jet, axis: int, index: Any) -> Jet:
    """One entry of an axis."""
    return Jet(x.rows.select(axis % x.ndim + 1, index))


@jet_rule("slice")
def sliced(at: Any, x: Jet, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Jet:
    """Some entries of an axis."""
    return Jet(aten.slice.Tensor(x.rows, axis % x.ndim + 1, start, end, step))


@jet_rule("cat", "stack", "concat")
def together(at: Any, tensors: Any, axis: int = 0) -> Jet:
    """Pieces, some of them constant: these have zeros in the later rows."""
    # torch lets an empty list of numbers be joined to all
    rows = leveled(rows_of(at, v) for v in tensors if moves(v) or v.shape != (0,))
    stacks = at.op.__name__.startswith("stack")
    return Jet((torch.stack if stacks else torch.cat)(rows, axis % (rows[0].ndim - 1 + stacks) + 1))


@jet_rule("sum", "mean")
def summed(at: Any, x: Jet, axes: Any = None, keepdim: bool = False, **kwargs: Any) -> Jet:
    """Over some axes, or all."""
    axes = axes_of(x, axes)
    if not axes:
        return x
    return Jet(getattr(torch, at.op.__name__.partition(".")[0])(x.rows, axes, keepdim, dtype=kwargs.get("dtype")))


@jet_rule("add", "sub", "rsub")
def add(at: Any, a: Any, b: Any, alpha: float = 1, **_: Any) -> Jet:
    """A + alpha b; a constant in it touches the first row only."""
    name = at.op.__name__.partition(".")[0]
    if name == "rsub":
        a, b = b, a
    jet = a if moves(a) else b
    return Jet(at.series.added(like(a, jet), like(b, jet), alpha if name == "add" else -alpha))


@jet_rule("neg")
def neg(at: Any, x: Jet) -> Jet:
    """-x."""
    return Jet(-x.rows)


@jet_rule("embedding")
def embedding(at: Any, table: Jet, ids: Tensor, *_: Any, **__: Any) -> Jet:
    """Rows of a table that moves."""
    return Jet(table.rows[:, ids])
