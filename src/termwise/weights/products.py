"""From two factors of a matrix to a module that computes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .factorization import Factorization
from .ladder import Replacement
from .layers import Layer
from .low_rank_linear import Pivoted

__all__ = [
    "convolution", "interchanged", "like", "linear", "pair", "pair_size", "pivoted", "pivoted_size", "triple", "triple_size",
]  # fmt: skip


def pair_size(shape: tuple[int, int], rank: int) -> int:
    """Numbers in a pair: r (m + n)."""
    return rank * sum(shape)


def pivoted_size(shape: tuple[int, int], rank: int) -> int:
    """Numbers in a pivoted layer: r (m + n - r)."""
    return rank * (sum(shape) - rank)


def triple_size(shape: tuple[int, int], rank: int) -> int:
    """Numbers in a triple: r (m + n + r)."""
    return rank * (sum(shape) + rank)


def pair(layer: Layer, left: Tensor, right: Tensor, shift: Tensor | None = None) -> Replacement:
    """The layer as two: `right` first, `left` second.

    Args:
        layer: whose place it takes.
        left: shape (m, r).
        right: shape (r, n).
        shift: added to the bias, shape (m,); a layer that has none gets one.

    Returns:
        `nn.Sequential` of two layers of the kind it was: a convolution is one with r filters, and one of kernel 1.
    """
    first = like(layer, right, None)
    second = _mixing(layer, left, _bias(layer, shift))
    return Replacement(nn.Sequential(first, second), _factorization(layer, left, right))


def triple(layer: Layer, columns: Tensor, link: Tensor, rows: Tensor) -> Replacement:
    """The layer as three: `rows` first, then `link`, `columns` last, with the bias.

    Args:
        layer: whose place it takes.
        columns: C, shape (m, r).
        link: U, shape (r, r).
        rows: R, shape (r, n).

    Returns:
        `nn.Sequential` of three layers of the kind it was: a convolution is one with r of its filters, and two of kernel 1.
    """
    matrix = layer.matrix
    modules = like(layer, rows, None), _mixing(layer, link, None), _mixing(layer, columns, layer.bias)
    factors = {"C": columns.to(matrix), "U": link.to(matrix), "R": rows.to(matrix)}
    return Replacement(nn.Sequential(*modules), Factorization(matrix, form="cur", factors=factors))


def pivoted(layer: Layer, left: Tensor, right: Tensor, shift: Tensor | None = None) -> Replacement:
    """The layer as r of its own outputs, and the other outputs made of them: see `Pivoted`.

    The rows are chosen by Gaussian elimination with partial pivoting on an orthonormal basis of the columns, so that each output
    is made of others with coefficients that stay small.

    Args:
        layer: whose place it takes.
        left: shape (m, r), r < m.
        right: shape (r, n).
        shift: added to the bias, shape (m,); a layer that has none gets one.
    """
    basis, triangle = torch.linalg.qr(left)
    m, rank = left.shape
    factored, pivots = torch.linalg.lu_factor(basis)
    order = interchanged(pivots, m)
    chosen, rest = order[:rank], order[rank:]
    lower = factored.tril(-1)
    lower[:rank] += torch.eye(rank, dtype=left.dtype, device=left.device)
    mix = torch.linalg.solve_triangular(lower[:rank], lower[rank:], upper=False, left=False, unitriangular=True)
    rows = basis[chosen] @ (triangle @ right)
    bias = _bias(layer, shift)
    own = None if bias is None else bias[chosen]
    first = like(layer, rows, own)
    other = _mixing(layer, mix, None if bias is None else bias[rest] - mix.to(bias) @ bias[chosen])
    return Replacement(Pivoted(first, other, order.argsort()), _factorization(layer, left, right))


def interchanged(pivots: Tensor, size: int) -> Tensor:
    """The order that rows 0 ... size - 1 are in after LAPACK's interchanges, which count from 1."""
    order = torch.arange(size, device=pivots.device)
    for i, p in enumerate((pivots - 1).tolist()):
        order[[i, p]] = order[[p, i]]
    return order


def _factorization(layer: Layer, left: Tensor, right: Tensor) -> Factorization:
    matrix = layer.matrix
    return Factorization(matrix, factors={"left": left.to(matrix), "right": right.to(matrix)})


def _bias(layer: Layer, shift: Tensor | None) -> Tensor | None:
    if shift is None:
        return layer.bias
    return (shift if layer.bias is None else layer.bias.double() + shift).to(layer.matrix)


def like(layer: Layer, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the same kind, geometry and dtype with another matrix."""
    matrix = matrix.to(layer.matrix)
    if not isinstance(layer.module, nn.Conv2d):
        return linear(matrix, bias)
    conv = layer.module
    return convolution(conv, matrix.reshape(len(matrix), conv.in_channels, *conv.kernel_size), bias)


def _mixing(layer: Layer, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer that mixes channels at one place."""
    matrix = matrix.to(layer.matrix)
    if not isinstance(layer.module, nn.Conv2d):
        return linear(matrix, bias)
    return convolution(layer.module, matrix[:, :, None, None], bias, axes=(False, False))


def convolution(
    like: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, axes: tuple[bool, bool] = (True, True), groups: int = 1
) -> nn.Conv2d:
    """`nn.Conv2d` of a weight (f, c / groups, kh, kw) that moves as another one does.

    Args:
        like: whose stride, padding and dilation it has.
        weight: its weight.
        bias: shape (f,), or None.
        axes: along the height, along the width; where not, the stride is 1 and nothing is padded.
        groups: of channels.
    """
    stride, padding, dilation = (
        tuple(own if along else rest for own, along in zip(given, axes, strict=True)) if isinstance(given, tuple) else given
        for given, rest in ((like.stride, 1), (like.padding, 0), (like.dilation, 1))
    )
    mode = like.padding_mode if any(axes) else "zeros"
    f, c, *kernel = weight.shape
    new = nn.utils.skip_init(
        nn.Conv2d, c * groups, f, tuple(kernel), stride, padding if any(axes) else 0, dilation,
        groups, bias is not None, mode, dtype=weight.dtype, device=weight.device,
    )  # fmt: skip
    _fill(new, weight, bias)
    return new


def linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    """`nn.Linear` of a matrix (m, n)."""
    out, inputs = matrix.shape
    new = nn.utils.skip_init(nn.Linear, inputs, out, bias=bias is not None, dtype=matrix.dtype, device=matrix.device)
    _fill(new, matrix, bias)
    return new


def _fill(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight.data.copy_(weight)  # type: ignore[operator,union-attr]
    if bias is not None:
        module.bias.data.copy_(bias)  # type: ignore[operator,union-attr]
