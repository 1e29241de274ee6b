r"""Atomic feature mimicking: the affine map of low rank that best mimics what a layer or a table puts out.

    Cov(y) = U S U^T,    y' = U_r U_r^T (y - E[y]) + E[y],    E |y - y'|^2 = sum of the eigenvalues left out

A linear layer y = W x + b becomes U_r^T W, then U_r with the bias b + (I - U_r U_r^T) W E[x]: the projector of `projection` for
the covariance, which the layer needs a bias for and is given one. A table E (n, d) puts out the rows that are looked up, so its
moments are weighted by how often each id is: with p = share of an id

    mu = p^T E,    C = (E - mu)^T diag(p) (E - mu),    table' = (E - mu) U_r,    row = U_r table'[id] + mu

What must stay linear in the rows (a bag adds them up, a padded row is zero) keeps mu = 0, and C is then E^T diag(p) E.

Source: Yu & Wu 2023, Compressing transformers: features are low-rank, but weights are not! (AFM), eq. 3 to 6; Yu et al. 2024,
Unified low-rank compression framework for click-through rate prediction, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from termwise.core.arguments import integer

from .calibration import LayerStats
from .evidence import Evidence
from .ladder import Fitted, Ladder
from .layers import Layer
from .low_rank import fit_aware, pairs, shift
from .low_rank_linear import LowRankEmbedding
from .products import linear, pair
from .projection import project

__all__ = ["affine_pairs", "afm_embedding", "afm_linear", "fit_afm", "is_affine", "low_rank_table", "table_stats"]

Table = nn.Embedding | nn.EmbeddingBag

CHUNK = 2**16
"""Rows that are looked at together."""


def fit_afm(evidence: Evidence) -> Fitted:
    """The best terms for the covariance of the layer's own output; errors are shares of it."""
    return fit_aware(dataclasses.replace(evidence, new_bias=True))


def affine_pairs(layer: Layer, fitted: Fitted) -> Ladder:
    """Every rank that saves something as two layers, the second with a bias."""
    return pairs(layer, fitted, new_bias=True)


def afm_linear(module: nn.Module, stats: LayerStats, rank: int) -> nn.Sequential:
    """A layer as two, the affine map of a rank that is nearest to it on the data.

    Args:
        module: `nn.Linear` or `nn.Conv2d` of one group, of matrix W (m, n).
        stats: of the rows it reads, see `LayerStats.of` and `CalibrationStats.collect`.
        rank: from 1 to min(m, n).

    Returns:
        The layer of U_r^T W, and that of U_r with a bias.

    Raises:
        ValueError: for a rank out of range; for statistics of rows of another size.

    Cost: an eigenproblem of size min(m, n) and three products.

    Example:
        >>> layer, x = torch.nn.Linear(6, 8, dtype=torch.float64), torch.randn(90, 6, dtype=torch.float64) + 1
        >>> small = afm_linear(layer, LayerStats.of(x), rank=2)
        >>> energies = torch.linalg.eigvalsh(torch.cov(layer(x).T, correction=0))  # ascending
        >>> bool(((layer(x) - small(x)).square().sum(1).mean() - energies[:-2].sum()).abs() < 1e-9)
        True
    """
    layer = Layer("", module)
    _check_rank(rank, min(layer.shape), f"a layer of shape {layer.shape}")
    left, right = project(layer.matrix, stats.covariance).factors(rank)
    made = pair(layer, left, right, shift(layer, left, right, stats.mean)).module
    assert isinstance(made, nn.Sequential)
    return made


def afm_embedding(emb: Table, id_counts: Tensor, rank: int) -> LowRankEmbedding:
    """A table of rows of low rank, nearest to it on the stream of ids.

    Args:
        emb: a table (n, d). It is not changed; its padding, mode and sparse gradients are those of the narrow one.
        id_counts: how often each id was looked up, shape (n,): counts or shares, `torch.bincount(ids, minlength=n)`.
        rank: from 1 to min(n, d).

    Returns:
        Narrow table and linear layer. Where `padding_idx` is set, and in a bag, no mean is taken out, so that a row of zeros
        stays one and sums of rows are sums of rows.

    Raises:
        TypeError: when it is no table.
        ValueError: for counts that are no counts of its ids, a rank out of range, a bag of "max" or a table with `max_norm`,
            which are not linear in the rows, or a table that holds NaN.

    Cost: O(n d^2), and an eigenproblem of size d. Memory: the narrow table.

    Example:
        >>> emb, ids = torch.nn.Embedding(50, 6, dtype=torch.float64), torch.randint(50, (400,)) // 2
        >>> counts = torch.bincount(ids, minlength=50)
        >>> small = afm_embedding(emb, counts, rank=2)
        >>> energies = torch.linalg.eigvalsh(torch.cov(emb(ids).T, correction=0))
        >>> bool(((emb(ids) - small(ids)).square().sum(1).mean() - energies[:-2].sum()).abs() < 1e-9)
        True
    """
    check_table(emb)
    n, d = emb.weight.shape
    _check_rank(rank, min(n, d), f"a table of shape ({n}, {d})")
    counts = torch.as_tensor(id_counts)
    if counts.shape != (n,):
        raise ValueError(f"id_counts has one count for each of the {n} ids, shape ({n},), got {tuple(counts.shape)}")
    counts = counts.double()
    if not counts.isfinite().all() or (counts < 0).any() or not counts.any():
        raise ValueError("id_counts are counts or shares: finite, none below zero, and not all zero")
    if isinstance(emb, nn.EmbeddingBag) and emb.padding_idx is not None:
        counts = counts.clone()
        counts[emb.padding_idx] = 0  # a bag leaves it out
    stats = table_stats(emb.weight, counts)
    vectors = project(torch.eye(d), stats.covariance if is_affine(emb) else stats.gram).left[:, :rank]
    return low_rank_table(emb, vectors, stats.mean)


def check_table(emb: nn.Module) -> None:
    """Raise what `afm_embedding` says of tables."""
    if not isinstance(emb, nn.Embedding | nn.EmbeddingBag):
        raise TypeError(f"a table is an nn.Embedding or nn.EmbeddingBag, got {type(emb).__name__}")
    if (why := why_not_table(emb)) is not None:
        raise ValueError(f"this table of shape {tuple(emb.weight.shape)} cannot be one of low rank: {why}")


def why_not_table(emb: Table) -> str | None:
    """Why a table cannot be taken apart, or None."""
    if emb.max_norm is not None:
        return "it has max_norm, and scales rows as they are looked up: scale its weight once and set max_norm=None"
    if isinstance(emb, nn.EmbeddingBag) and emb.mode == "max":
        return 'its mode is "max", which is not linear in the rows'
    if not emb.weight.is_floating_point():
        return f"its weights are {emb.weight.dtype}: take a model that is not quantised"
    return None if emb.weight.isfinite().all() else "it holds NaN or infinity"


def is_affine(emb: nn.Module) -> bool:
    """Whether a constant may be added to the rows of a table."""
    return isinstance(emb, nn.Embedding) and emb.padding_idx is None


def table_stats(weight: Tensor, counts: Tensor) -> LayerStats:
    """Statistics of the rows of a table (n, d) as often as they were looked up, counts (n,)."""
    d = weight.shape[1]
    total = counts.double().sum()
    p = counts.double() / total
    mean, abs_mean, covariance = p.new_zeros(d), p.new_zeros(d), p.new_zeros(d, d)
    for rows, share in _chunks(weight, p):
        mean += share @ rows
        abs_mean += share @ rows.abs()
    for rows, share in _chunks(weight, p):
        covariance += ((rows - mean) * share[:, None]).T @ (rows - mean)
    count = max(1, round(float(total)))
    return LayerStats(count, mean, covariance * count, abs_mean)


def _chunks(weight: Tensor, shares: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a table in float64, some at a time: tables may be as large as memory."""
    for rows, share in zip(weight.detach().split(CHUNK), shares.split(CHUNK), strict=True):
        yield rows.double(), share


def low_rank_table(emb: Table, vectors: Tensor, mean: Tensor) -> LowRankEmbedding:
    """A table by its coefficients on orthonormal vectors (d, r), about a mean (d,) where it may be."""
    centre = mean if is_affine(emb) else torch.zeros_like(mean)
    narrow = torch.cat([((rows.double() - centre) @ vectors).to(rows) for rows in emb.weight.detach().split(CHUNK)])
    own = {"padding_idx": emb.padding_idx, "scale_grad_by_freq": emb.scale_grad_by_freq, "sparse": emb.sparse}
    if isinstance(emb, nn.EmbeddingBag):
        own |= {"mode": emb.mode, "include_last_offset": emb.include_last_offset}
    table = type(emb).from_pretrained(narrow, freeze=False, **own)
    return LowRankEmbedding(table, linear(vectors.to(emb.weight), mean.to(emb.weight) if is_affine(emb) else None))


def _check_rank(rank: int, most: int, what: str) -> None:
    if integer(rank) is None or not 1 <= rank <= most:
        raise ValueError(f"rank of {what} lies in 1..{most}, got {rank!r}")
