"""Linear operations: the ratio goes back through the operation's own vector-Jacobian product, c_x = J^T c.

    y = J x + offset:     R_x = x * (J^T c),     R_offset = offset * c,     sum R = sum y c exactly.

Sums, means, moves, selections of winners (max, sort, topk), poolings and interpolations need no rule beyond autograd.
What they may need is the offset: their constant operands are leaves with relevance of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .maps import bias_axis, one_activation, proportional, shared
from .norms import own_statistics
from .table import active, hold, rule, share

MOVES = (
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "numpy_T", "mT", "expand", "expand_as", "repeat",
    "squeeze",
    "unsqueeze", "flatten", "unflatten", "select", "slice", "narrow", "index", "index_select", "gather", "take",
    "take_along_dim", "flip", "roll", "rot90", "as_strided", "masked_select", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "tril", "triu", "diagonal", "diag", "diag_embed", "split", "split_with_sizes", "chunk", "unbind",
    "clone",
    "contiguous", "alias", "_to_copy", "to", "type_as", "lift_fresh", "lift_fresh_copy", "movedim", "swapaxes", "unfold",
    "unfold_copy", "im2col", "col2im", "repeat_interleave", "view_as_real", "view_as_complex", "_conj", "conj",
    "resolve_conj",
    "conj_physical", "_conj_physical", "real", "imag", "getitem", "view_copy", "expand_copy", "permute_copy",
    "_reshape_copy", "positive", "atleast_1d", "atleast_2d", "squeeze_", "broadcast_to", "tensor_split",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "_pad_circular", "dropout", "native_dropout", "alpha_dropout", "feature_dropout", "ravel", "resolve_neg", "nan_to_num",
)  # fmt: skip
"""Each output entry is one input entry."""

SUMS = (
    "neg", "sum", "mean", "cumsum", "trace", "nansum", "nanmean",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "_fft_r2c", "_fft_c2c", "_fft_c2r", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
    "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfft", "fft_ihfft", "fft_fftshift",
    "fft_ifftshift",
    "rotary", "stft", "istft",
)  # fmt: skip
"""Each output entry is a fixed weighted sum of input entries."""

WINNERS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "amax", "amin",
    "sort", "topk", "median", "nanmedian", "kthvalue", "mode", "cummax", "cummin", "aminmax", "msort",
)  # fmt: skip
"""Each output entry is the input entry that won: locally a move."""

HOMOGENEOUS = (
    "std",
    "std_mean",
    "relu",
    "leaky_relu",
    "abs",
    "_prelu_kernel",
    "prelu",
    "rrelu",
    "linalg_matrix_norm",
    "frobenius_norm",
)
"""Of degree one, f(t x) = t f(x) for t > 0: x * grad f = f by Euler's theorem, so the own derivative conserves."""


@rule(*MOVES, *SUMS, *WINNERS, *HOMOGENEOUS)
def own(at: Any, *args: Any, **kwargs: Any) -> Any:
    """c_x = J^T c: the operation's own derivative."""
    return at.op(*args, **kwargs)


@rule("linalg_vector_norm", "norm", "linalg_norm")
def vector_norm(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Of degree one; but order 0 counts the entries that are not 0, and a count is a constant."""
    order = args[0] if args else kwargs.get("ord")
    return at.op(x.detach() if isinstance(order, (int, float)) and order == 0 else x, *args, **kwargs)


@rule("detach")
def detach(at: Any, x: Tensor) -> Tensor:
    """Stops training, not the value: for a prediction an identity."""
    return x.view_as(x)


@rule("copy")
def copy(at: Any, x: Tensor, source: Tensor, *_: Any) -> Tensor:
    """`source` in place of x, whose values are gone. (The operator itself has no derivative.)"""
    return source.to(x).expand_as(x)


@rule("add", "sub", "rsub")
def add(at: Any, a: Any, b: Any, scale: float = 1, *, alpha: float = 1, **kwargs: Any) -> Tensor:
    """Y = a + alpha b: own derivative; a constant operand is a leaf."""
    alpha = alpha * scale  # with a number for b, alpha comes by position
    name = getattr(at.op, "_overloadname", "")
    y = (
        at.op(a, b, alpha, **kwargs)
        if name == "Scalar"
        else at.op(a, b, alpha=alpha, **kwargs)
        if alpha != 1
        else at.op(a, b, **kwargs)
    )
    name = at.op.__name__ if hasattr(at.op, "__name__") else ""
    signs = (-1, 1) if name.startswith("rsub") else (1, -1) if name.startswith("sub") else (1, 1)
    # rsub is alpha-scaled on its first operand
    scales = (signs[0] * alpha, signs[1]) if name.startswith("rsub") else (signs[0], signs[1] * alpha)
    for position, (value, scale) in enumerate(zip((a, b), scales, strict=True)):
        if not active(value):
            at.adds(y, value if scale == 1 else value * scale, at.constant_name(position))
    return y


@rule(
    "cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "scatter_add", "index_put", "_unsafe_index_put",
    "index_add",
    "index_copy", "index_fill", "select_scatter", "slice_scatter", "diagonal_scatter", "pad",
    "constant_pad_nd", "fill", "concat", "concatenate", "dstack", "hstack", "vstack", "lerp", "column_stack", "block_diag",
    "complex", "diff",
)  # fmt: skip
def assemble(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Put together from pieces, some of them constant (a class token, padding, a fill value): y = J x + offset.

    The offset is what the operation makes of zeros in place of its activations.
    """
    y = at.op(*args, **kwargs)
    if at.ledger.complete and y.requires_grad and _has_constant(at, (args, tuple(kwargs.values()))):
        zeros = _zeroed(args)
        offset = at.op(*zeros, **kwargs)
        at.adds(y, offset.expand_as(y), at.constant_name(_first_constant(args)))
    return y


def _zeroed(args: Any) -> Any:
    if isinstance(args, (tuple, list)):
        return type(args)(_zeroed(a) for a in args)
    if isinstance(args, Tensor):
        return torch.zeros_like(args) if args.requires_grad else args.detach()
    return args


def _flat(args: Any) -> list[Any]:
    return [x for a in args for x in _flat(a)] if isinstance(args, (tuple, list)) else [args]


FILLING = ("where", "masked_fill", "scatter", "index_fill", "pad", "constant_pad_nd", "fill")
"""Those that may take a number as a value; in the others numbers are axes and lengths."""


def _has_constant(at: Any, args: Any) -> bool:
    """Whether any operand that may be a summand is constant: a floating tensor, or a number other than 0."""
    numbers = getattr(at.op, "__name__", "").partition(".")[0] in FILLING
    return any(
        (isinstance(a, Tensor) and not a.requires_grad and (a.is_floating_point() or a.is_complex()) and a.numel())
        or (numbers and isinstance(a, (int, float)) and a != 0)
        for a in _flat(args)
    )


def _first_constant(args: Any) -> int:
    """Position (flattened over tensor arguments) of the first constant floating tensor."""
    for i, a in enumerate(_flat(args)):
        if isinstance(a, Tensor) and not a.requires_grad and (a.is_floating_point() or a.is_complex()):
            return i
    return 0


# -- with parameters --------------------------------------------------------------------------------------------------


@rule(
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_tbc",
)
def affine(at: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
    """Y = W x + b: c_x = W^T c, the bias gets b * c. A weight that is an activation itself shares half and half."""
    if active(bias):  # a bias that a network makes: a summand of degree 1
        y = share(at.op(x, weight, torch.zeros_like(bias), *rest, **kwargs), 1 / max(1, active(x, weight)))
        y = y if active(x, weight) else as_leaf(at, y, 0)
        return y + bias.reshape(-1, *[1] * (y.ndim - 1 - bias_axis(at, y) % y.ndim))
    if at.biases in ("zero", "distribute") and one_activation(at, (x, weight, bias)):
        return shared(at, (x, weight, bias, *rest), kwargs, proportional, absolute=False)
    y = at.op(x, weight, bias, *rest, **kwargs)
    at.adds(y, bias, f"bias:{at.site.path}", channel=bias_axis(at, y))
    return share(y, 1 / max(1, active(x, weight)))


@rule("addmm", "addmv", "addbmm", "baddbmm", "addr")
def affine_bias_first(at: Any, bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Y = beta b + alpha x W."""
    if at.biases in ("zero", "distribute") and at.op.__name__.startswith("addmm") and one_activation(at, (bias, x, weight)):
        return shared(at, (bias, x, weight), {"beta": beta, "alpha": alpha}, proportional, absolute=False)
    y = at.op(bias, x, weight, beta=beta, alpha=alpha)
    if active(bias) and not active(x, weight):
        at.adds(y, at.op(torch.zeros_like(bias), x, weight, beta=1, alpha=alpha), at.constant_name(1))
    if active(x, weight) == 2:  # the product is of degree 2, the summand of degree 1
        product = share(at.op(torch.zeros_like(bias), x, weight, beta=1, alpha=alpha), 1 / 2)
        y = product + beta * bias
    if not active(bias):
        # a vector is a bias; more axes are a mask or positions
        at.adds(y, bias if beta == 1 else bias * beta, f"bias:{at.site.path}" if bias.ndim == 1 else at.constant_name(0))
    return y


@rule("batch_norm")
def batch_norm(
    at: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, training: bool, momentum: float,
    eps: float, *rest: Any,
) -> Tensor:  # fmt: skip
    """In eval mode y = g x + (beta - mu g), g = gamma / sqrt(var + eps): affine, the parenthesis is its bias."""
    if training:  # a layer that keeps no running statistics
        return own_statistics(at, x, weight, bias, [0, *range(2, x.ndim)], eps)
    y = at.op(x, weight, bias, mean, var, training, momentum, eps, *rest)
    if at.ledger.complete or at.biases in ("distribute", "zero"):
        gain = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
        offset = -mean * gain if bias is None else bias - mean * gain
        if at.biases == "distribute":  # to the one entry it stands beside
            at.without(y, offset.reshape(-1, *[1] * (y.ndim - 2)))
        else:
            at.adds(y, offset, f"bias:{at.site.path}", channel=1)
    return y


@rule("bilinear")
def bilinear(at: Any, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = a W b + bias: the product in equal shares."""
    y = share(at.op(a, b, weight, None), 1 / max(1, active(a, b, weight)))
    if bias is not None:
        y = (y if active(y) else as_leaf(at, y, 2)) + bias
        if not active(bias):
            at.adds(y, bias, f"bias:{at.site.path}", channel=-1)
    return y


@rule("embedding")
def looked_up(at: Any, table: Tensor, ids: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows of a table that is an activation: a move. Padding and scaling by frequency change training, not the value."""
    return at.op(table, ids)


@rule("embedding_bag", "_embedding_bag")
def bag(at: Any, table: Tensor, ids: Tensor, offsets: Tensor, by_frequency: bool = False, *args: Any, **kwargs: Any) -> Any:
    """Sums of rows, weighted or not."""
    weighted = [a for a in args if isinstance(a, Tensor)]
    value, *others = at.op(table, ids, offsets, False, *args, **kwargs)
    return share(value, 1 / max(1, active(table, *weighted))), *others


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sampled(at: Any, x: Tensor, grid: Tensor, *args: Any) -> Tensor:
    """Interpolation: linear in the picture. Where it is sampled is a position, held constant."""
    return at.op(x, *hold(grid), *args)


@rule("as_strided_scatter")
def as_strided_scatter(at: Any, x: Tensor, source: Tensor, *place: Any) -> Tensor:
    """`source` in some places of x. (torch's own derivative keeps the overwritten entries of x in place of the others.)"""
    covered = at.op(torch.zeros_like(x), torch.ones_like(source), *place) != 0
    y = torch.where(covered, at.op(torch.zeros_like(x), source, *place), x)
    if not active(x):
        at.adds(y, y.detach().masked_fill(covered, 0), at.constant_name(0))
    if not active(source):
        at.adds(y, y.detach().masked_fill(~covered, 0), at.constant_name(1))
    return y


@rule("scatter_reduce")
def scatter_reduce(at: Any, x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, **kwargs: Any) -> Tensor:
    """By sum or mean put together; by amax or amin the winner takes all."""
    if reduce == "prod":
        raise ValueError(f"{at.site.name} multiplies what it scatters, and has no rule for that: give it one in `rules`")
    return at.op(as_leaf(at, x, 0), dim, index, as_leaf(at, source, 1), reduce, **kwargs)


def as_leaf(at: Any, value: Tensor, position: int, axis: Any = None) -> Tensor:
    """A constant operand of an operation that is no sum: a leaf of its own, whose part is value * c."""
    if active(value) or not at.ledger.complete:
        return value
    leaf = value.detach().requires_grad_()
    at.adds(leaf, leaf, at.constant_name(position), axis=axis)
    return leaf
