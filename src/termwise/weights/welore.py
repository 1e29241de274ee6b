r"""WeLore: one threshold on the normalised singular values of all matrices, and a rank for each that follows from it.

    s^_i = (s_i - min s) / (max s - min s),      k_l = #{i : s^_i >= theta}  in matrix l,      theta the same for all

theta removes the wanted share of all singular values together. A matrix with k < min(m, n) / 2 is a low-rank component (LRC): it
becomes (U sqrt(S)) (sqrt(S) V^T), and is what fine-tuning trains; the others stay dense. Data are not looked at.

k < min(m, n) / 2 always saves numbers, for (m + n) / 2 <= max(m, n); where that is next to nothing, a layer stays dense. Within a
budget, theta is the least of the largest s^ that are left out: the allocator's "max" on ladders whose error at rank k is s^_{k+1}
squared, exact over all ranks.

Source: Jaiswal et al. 2024 (WeLore), section 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from termwise.core.pictures import MANY, Bars, Line, Lines, Picture, Pictured

from .allocation import Allocation, allocate
from .batches import evaluating
from .compressed import Compressed
from .evidence import Evidence
from .ladder import Curve, Fitted, Ladder, Replacement, with_dense
from .layers import Layer, find_layers, put, sharing_copy
from .low_rank import at_rank, fit_aware
from .products import pair_size

__all__ = [
    "GradientRank", "LowRankSplit", "fine_tune", "fit_welore", "fit_welore_aware", "gradient_rank", "low_rank_split",
    "lrc_parameters", "normalised_spectrum", "one_threshold", "spectral", "welore",
]  # fmt: skip

MIN_RATIO = 0.5
"""Below this share of its full rank a matrix is a low-rank component."""

Loss = Callable[[nn.Module, Any], Tensor]
"""Of a model on one batch, a scalar."""


def normalised_spectrum(weight: Tensor) -> Tensor:
    """s^ = (s - min s) / (max s - min s), shape (min(m, n),), descending, float64.

    Args:
        weight: W, shape (m, n). Singular values that are all alike, those of zeros among them, give ones: there is no tail.

    Raises:
        ValueError: for something else than a matrix, or entries that are not finite.

    Example:
        >>> normalised_spectrum(torch.diag(torch.tensor([5.0, 3.0, 1.0]))).tolist()
        [1.0, 0.5, 0.0]
    """
    if weight.ndim != 2 or not weight.numel() or not weight.isfinite().all():
        raise ValueError(
            f"a spectrum is of a matrix of finite numbers, got shape {tuple(weight.shape)}, or NaN or infinity in it"
        )
    return _normalised(torch.linalg.svdvals(weight.detach().double()), weight)


def _normalised(s: Tensor, weight: Tensor) -> Tensor:
    spread = s[0] - s[-1]
    rounding = torch.finfo(weight.dtype).eps * max(weight.shape) * s[0]
    return torch.ones_like(s) if spread <= rounding else (s - s[-1]) / spread


@dataclass(frozen=True)
class LowRankSplit(Pictured):
    """Which matrices of a model are of low rank.

    Attributes:
        threshold: theta.
        ranks: k, by layer.
        sizes: min(m, n), by layer.
        low_rank: the layers with k < min_ratio min(m, n): the LRCs.
    """

    threshold: float
    ranks: Mapping[str, int]
    sizes: Mapping[str, int]
    low_rank: tuple[str, ...]

    @property
    def rank_reduction(self) -> float:
        """Share of all singular values that theta removes, those of matrices that stay dense among them."""
        return 1 - sum(self.ranks.values()) / sum(self.sizes.values())

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The rank of each layer as a share of what it could be, the lowest first."""
        names = sorted(self.ranks, key=lambda n: self.ranks[n] / self.sizes[n])[:MANY]
        low = [n in self.low_rank for n in names]
        share = [self.ranks[n] / self.sizes[n] for n in names]
        values = {
            "of low rank": [s if is_low else math.nan for s, is_low in zip(share, low, strict=True)],
            "stays dense": [math.nan if is_low else s for s, is_low in zip(share, low, strict=True)],
        }
        more = f" The {len(names)} lowest of {len(self.ranks)} are shown." if len(names) < len(self.ranks) else ""
        note = f"{len(self.low_rank)} of {len(self.ranks)} layers are of low rank below the threshold {self.threshold:.3g}.{more}"
        return [Bars("Ranks of the layers", names, values, y="rank over its largest", note=note)]


def low_rank_split(
    model: nn.Module, rank_reduction: float = 0.5, *, min_ratio: float = MIN_RATIO, keep: Sequence[str] = ()
) -> LowRankSplit:
    """One threshold for all layers of a model, and the layers that are of low rank below it.

    Args:
        model: any model with `nn.Linear` or `nn.Conv2d`.
        rank_reduction: sum of (min(m, n) - k) over sum of min(m, n) that is wanted, from 0 up to and without 1. It is no share of
            parameters: a square matrix of half the rank is as large as it was.
        min_ratio: see `LowRankSplit`.
        keep: patterns of paths left alone.

    Returns:
        The split whose reduction is the nearest there is: within one singular value, but for values that are equal (each
        matrix has one of 0), which go together.

    Raises:
        ValueError: for a share outside of its range, or a model with no such layers.

    Cost: the singular values of each layer, and one sort of all of them.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        >>> model[0].weight.data = torch.diag(0.5 ** torch.arange(8.0))  # a heavy head, and a tail
        >>> model[1].weight.data = torch.diag(8 - torch.arange(8.0))
        >>> low_rank_split(model, 0.5).low_rank
        ('0',)
    """
    if not 0 <= rank_reduction < 1:
        raise ValueError(f"rank_reduction is a share from 0 up to 1, and not 1: each matrix keeps a term; got {rank_reduction!r}")
    if not 0 < min_ratio <= 1:
        raise ValueError(f"min_ratio is a share above 0 and up to 1, got {min_ratio!r}")
    spectra = {name: normalised_spectrum(layer.matrix) for name, layer in find_layers(model, keep)[0].items()}
    theta = _threshold(torch.cat(list(spectra.values())), rank_reduction)
    ranks = {name: int((s >= theta).sum()) for name, s in spectra.items()}
    low = tuple(name for name, s in spectra.items() if ranks[name] < min_ratio * len(s))
    return LowRankSplit(theta, ranks, {name: len(s) for name, s in spectra.items()}, low)


def _threshold(values: Tensor, share: float) -> float:
    """The one below which there is this share of the values, or the nearest to it."""
    union = values.sort().values
    wanted = min(round(share * len(union)), len(union) - 1)
    first, after = (int(torch.searchsorted(union, union[wanted], right=right)) for right in (False, True))
    removed = after if after < len(union) and after - wanted < wanted - first else first
    return float(union[removed])


def welore(
    model: nn.Module,
    rank_reduction: float = 0.5,
    *,
    data: Any,
    min_ratio: float = MIN_RATIO,
    keep: Sequence[str] = (),
    outputs: bool = False,
) -> Compressed:
    """Factor the low-rank components of a model at one threshold, as published.

    For a budget of parameters instead of ranks: `compress(model, 0.9, data=data, method="welore")`.

    Args:
        model: it is not changed; what stays is shared with the result.
        rank_reduction: see `low_rank_split`.
        data: see `compress`; only what the change of the output is measured on, unless `outputs`.
        min_ratio: at most which share of the full rank is factored. Above a half, ranks that would save nothing stay dense.
        keep: patterns of paths left alone.
        outputs: take the best terms for the layer's own output instead of the singular ones, at the same ranks.

    Returns:
        A `Compressed`; its `parts` are the LRCs.

    Raises:
        ValueError: as `low_rank_split` and `compress`.

    Cost: the singular value decomposition of each layer, twice.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        >>> model[0].weight.data = torch.diag(0.5 ** torch.arange(8.0))
        >>> model[1].weight.data = torch.diag(8 - torch.arange(8.0))
        >>> list(welore(model, 0.5, data=torch.randn(80, 8)).parts)
        ['0']
    """
    from .compress import compress
    from .methods import Method

    split = low_rank_split(model, rank_reduction, min_ratio=min_ratio, keep=keep)

    def at_these_ranks(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
        wanted = {name: f"rank {split.ranks[name]}" if name in split.low_rank else "dense" for name in ladders}
        choice = {
            name: list(ladder.labels).index(wanted[name]) if wanted[name] in ladder.labels else len(ladder) - 1
            for name, ladder in ladders.items()
        }
        worst = max(float(curves[name].errors[i]) for name, i in choice.items())
        return Allocation(choice, sum(float(curves[name].costs[i]) for name, i in choice.items()), worst, worst, 0.0)

    fit = fit_welore_aware if outputs else fit_welore
    method = Method(
        fit, partial(spectral, min_ratio=min_ratio), at_these_ranks, data=outputs, name="welore-aware" if outputs else "welore"
    )
    return compress(model, 1.0, data=data, method=method, keep=keep, progress=False)


def fit_welore(evidence: Evidence) -> Fitted:
    """U sqrt(S), sqrt(S) V^T and s^ of a layer."""
    matrix = evidence.layer.matrix
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    left, right = u * s.sqrt(), s.sqrt()[:, None] * v
    return {"left": left.to(matrix.dtype), "right": right.to(matrix.dtype), "spectrum": _normalised(s, matrix)}


def fit_welore_aware(evidence: Evidence) -> Fitted:
    """The best terms for the layer's own output, and s^: WeLore's ranks with better terms than WeLore's."""
    return {**fit_aware(evidence), "spectrum": normalised_spectrum(evidence.layer.matrix)}


def spectral(layer: Layer, fitted: Fitted, *, min_ratio: float = MIN_RATIO) -> Ladder:
    """Every rank below `min_ratio` of the full one as two layers; the error is the square of the largest s^ left out."""
    spectrum = fitted["spectrum"].numpy()
    ranks = np.arange(1, len(spectrum))
    ranks = ranks[ranks < min_ratio * len(spectrum)]

    def build(i: int) -> Replacement:
        return at_rank(layer, fitted, int(ranks[i]))

    params = np.array([pair_size(layer.shape, int(r)) for r in ranks], dtype=np.int64)
    return with_dense(layer, [f"rank {r}" for r in ranks], params, spectrum[ranks] ** 2, build)


def one_threshold(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
    """The least theta, the same for all layers, that keeps the budget."""
    return allocate(curves, budget, objective="max")


def lrc_parameters(small: Compressed) -> list[nn.Parameter]:
    """The parameters of the layers that were factored: what an optimizer is given to train low-rank components only.

    Args:
        small: what `welore` or `compress` returned.

    Raises:
        ValueError: when nothing was factored.
    """
    if not small.parts:
        raise ValueError("no layer was factored, so there are no low-rank components: compress more, or raise rank_reduction")
    return [parameter for name in small.parts for parameter in small.model.get_submodule(name).parameters()]


def fine_tune(small: Compressed, loss: Loss, batches: Iterable[Any], *, rate: float = 1e-3) -> nn.Module:
    """Train the low-rank components, factored as they are, and nothing else.

    Args:
        small: what `welore` or `compress` returned; it is not changed, and neither is the model that it was made of.
        loss: `loss(model, batch)`, a scalar.
        batches: one step of Adam for each; anything that `loss` takes.
        rate: of learning.

    Returns:
        The trained model, which shares all that is not factored. It is trained in evaluation mode: norms keep their statistics.

    Raises:
        ValueError: when nothing was factored, there are no batches, or the loss is not finite.

    Cost: a forward and a backward pass per batch; gradients and moments of the factors alone.
    """
    tuned = sharing_copy(small.model)
    lrc_parameters(small)  # raises where there are none
    for name in small.parts:
        put(tuned, name, copy.deepcopy(tuned.get_submodule(name)))
    trained = [parameter.requires_grad_() for name in small.parts for parameter in tuned.get_submodule(name).parameters()]
    optimizer = torch.optim.Adam(trained, lr=rate)
    steps = 0
    with evaluating(tuned), torch.enable_grad():
        for batch in batches:
            value = loss(tuned, batch)
            if not value.isfinite():
                raise ValueError(f"the loss is {value.item()} at step {steps}: lower rate={rate}, or look at the batch")
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            steps += 1
    if not steps:
        raise ValueError("there are no batches to train on")
    optimizer.zero_grad()
    return tuned


@dataclass(frozen=True, eq=False)
class GradientRank(Pictured):
    """How low the rank of a layer's gradients is.

    Attributes:
        stable: |dL/dW|_F^2 / |dL/dW|_2^2 for each batch, shape (batches,); from 1 for a single term.
        spectrum: `normalised_spectrum` of each, shape (batches, min(m, n)).
    """

    stable: Tensor
    spectrum: Tensor

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The spectrum of the gradients, in the mean over batches and from the least to the largest; and their stable rank."""
        mean, low, high = (v.tolist() for v in (self.spectrum.mean(0), self.spectrum.amin(0), self.spectrum.amax(0)))
        line = Line("mean, least to largest of the batches", list(range(1, len(mean) + 1)), mean, low, high)
        rank = Line("stable rank", list(range(1, len(self.stable) + 1)), self.stable.tolist())
        note = f"In the mean the stable rank is {float(self.stable.mean()):.3g}, of {len(mean)}."
        return [
            Lines("Spectrum of the gradients", [line], x="singular value", y="normalised: 1 the largest, 0 the least", note=note),
            Lines("Stable rank by batch", [rank], x="batch", y="|gradient|² over its largest term's"),
        ]


def gradient_rank(model: nn.Module, loss: Loss, batches: Iterable[Any], *, keep: Sequence[str] = ()) -> dict[str, GradientRank]:
    """The rank of the gradients of each layer; call it at several moments of a training to see where they settle.

    Args:
        model: as it is; weights, gradients and modes are afterwards as they were.
        loss: `loss(model, batch)`, a scalar.
        batches: one gradient for each.
        keep: patterns of paths left out.

    Returns:
        By layer. One that the loss does not depend on is missing.

    Raises:
        ValueError: when there are no batches, or no weight that needs a gradient.

    Cost: a forward and a backward pass per batch, and the singular values of each layer.
    """
    layers = {name: layer for name, layer in find_layers(model, keep)[0].items() if layer.module.weight.requires_grad}
    if not layers:
        raise ValueError("no layer's weight needs a gradient: call model.requires_grad_() first")
    seen: dict[str, list[Tensor]] = {}
    count = 0
    with evaluating(model), torch.enable_grad():
        for batch in batches:
            count += 1
            weights = [layer.module.weight for layer in layers.values()]
            found = torch.autograd.grad(loss(model, batch), weights, allow_unused=True)  # type: ignore[arg-type]
            for (name, layer), gradient in zip(layers.items(), found, strict=True):
                if gradient is not None:
                    seen.setdefault(name, []).append(torch.linalg.svdvals(layer.as_matrix(gradient).double()))
    if not count:
        raise ValueError("there are no batches to take gradients of")
    ranks = {}
    for name, spectra in seen.items():
        matrix = layers[name].matrix
        stable = torch.stack([s.square().sum() / s[0].square().clamp_min(1e-300) for s in spectra])
        ranks[name] = GradientRank(stable, torch.stack([_normalised(s, matrix) for s in spectra]))
    return ranks
