r"""Convolutions as chains of cheaper ones, from a CP or a Tucker form of their kernel.

    cp        1 x 1 (c -> R),  kh x kw in R channels by themselves,  1 x 1 (R -> f)                       R (c + kh kw + f)
    tucker    1 x 1 (c -> q),  kh x kw (q -> p),  1 x 1 (p -> f)                                  c q + kh kw p q + p f
    both      1 x 1 (c -> q),  1 x 1 (q -> R),  kh x kw in R channels,  1 x 1 (R -> p),  1 x 1 (p -> f)

The one in the middle has the stride, padding and dilation, the last the bias. In the third, which is CP of the core of Tucker,
neighbours are merged where that stores fewer numbers.

Source: Lebedev et al. 2015 (cp), Kim et al. 2016 (tucker), Phan et al. 2020 (both, TKD-CPD-EPC).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .cp import CPDecomposition, cp, three_axes
from .epc import stable_cp
from .evidence import Evidence
from .factorization import Factorization
from .ladder import Fitted, Ladder, Replacement, with_dense
from .layers import Layer
from .low_rank import fit_svd, pairs
from .products import convolution
from .tucker import hosvd, tucker2

__all__ = ["cp_choices", "cp_layers", "decompose_conv", "fit_cp", "fit_tucker", "tucker_choices", "tucker_layers"]

STEPS = 8
"""Ranks of each kind that are fitted, from 1 to what saves something, in equal ratios."""


def decompose_conv(
    conv: nn.Conv2d,
    method: Literal["cp", "cp-epc", "tkd-cpd-epc"] = "cp-epc",
    rank: int = 1,
    *,
    ranks: tuple[int, int] | None = None,
    slack: float = 0.02,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A convolution as three or five, of torch's own classes.

    Args:
        conv: of one group; it is not changed.
        method: "cp" by least squares alone, "cp-epc" with terms that do not fight, "tkd-cpd-epc" the same of its Tucker core.
        rank: R, terms.
        ranks: (p, q) of "tkd-cpd-epc", channels out and in; min(f, R) and min(c, R) when not given.
        slack: of the error, that the correction may use.
        generator: of what is random; seed 0 when not given.

    Returns:
        `nn.Sequential` of `nn.Conv2d`.

    Raises:
        TypeError: for another module.
        ValueError: for a grouped convolution, an unknown method, or ranks that it cannot have.

    Example:
        >>> conv = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1)
        >>> [tuple(c.weight.shape) for c in decompose_conv(conv, "cp", rank=4)]
        [(4, 6, 1, 1), (4, 1, 3, 3), (8, 4, 1, 1)]
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"a convolution is taken apart, got {type(conv).__name__}")
    if conv.groups != 1:
        raise ValueError(f"a convolution of one group is taken apart, this one has {conv.groups}")
    if method not in ("cp", "cp-epc", "tkd-cpd-epc"):
        raise ValueError(f"method is 'cp', 'cp-epc' or 'tkd-cpd-epc', got {method!r}")
    layer = Layer("conv", conv)
    if method == "cp":
        return cp_layers(layer, cp(layer.kernel, rank, generator=generator)).module  # type: ignore[return-value]
    if method == "cp-epc":
        return cp_layers(layer, stable_cp(layer.kernel, rank, slack=slack, generator=generator)).module  # type: ignore[return-value]
    outer = tucker2(layer.kernel, ranks or (min(conv.out_channels, rank), min(conv.in_channels, rank)))
    inner = stable_cp(outer.factors["core"], rank, slack=slack, generator=generator)
    return _chain(layer, _outer(outer, inner, "out", "c", 1), inner.factors["a"], _outer(outer, inner, "in", "b", 0))


def cp_layers(layer: Layer, found: CPDecomposition) -> Replacement:
    """The three convolutions of a CP form of its kernel."""
    return Replacement(_chain(layer, [found.factors["c"]], found.factors["a"], [found.factors["b"].T]), found)


def tucker_layers(layer: Layer, found: Factorization) -> Replacement:
    """The three convolutions of a Tucker form of its kernel."""
    conv: nn.Conv2d = layer.module  # type: ignore[assignment]
    core = found.factors["core"]
    middle = convolution(conv, core.reshape(*core.shape[:2], *conv.kernel_size), None)
    return Replacement(
        nn.Sequential(_mix(layer, found.factors["in"].T), middle, _mix(layer, found.factors["out"], layer.bias)), found
    )


def _outer(outer: Factorization, inner: CPDecomposition, side: str, name: str, order: int) -> list[Tensor]:
    """The matrices of one side, in the order they act: two, or their product where that is smaller."""
    basis, factor = outer.factors[side], inner.factors[name]
    merged = basis @ factor
    if merged.numel() <= basis.numel() + factor.numel():
        return [merged if order else merged.T]
    return [factor, basis] if order else [basis.T, factor.T]


def _chain(layer: Layer, after: list[Tensor], a: Tensor, before: list[Tensor]) -> nn.Sequential:
    """Mixing, one kernel for each channel, mixing; the last has the bias."""
    conv: nn.Conv2d = layer.module  # type: ignore[assignment]
    middle = convolution(conv, a.T.reshape(-1, 1, *conv.kernel_size).contiguous(), None, groups=a.shape[1])
    last = len(after) - 1
    mixing = [_mix(layer, m, layer.bias if i == last else None) for i, m in enumerate(after)]
    return nn.Sequential(*(_mix(layer, m) for m in before), middle, *mixing)


def _mix(layer: Layer, matrix: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    return convolution(layer.module, matrix.to(layer.matrix)[:, :, None, None], bias, axes=(False, False))  # type: ignore[arg-type]


# -- as methods -------------------------------------------------------------------------------------------------------


def fit_cp(evidence: Evidence) -> Fitted:
    """CPD-EPC of several ranks; of linear layers and kernels of size 1, which are matrices, singular values."""
    kernel = evidence.layer.kernel
    f, c, s = three_axes(kernel).shape
    if s == 1:
        return fit_svd(evidence)
    limit = (kernel.numel() - 1) // (f + c + s)
    fitted: dict[str, Tensor] = {}
    for rank in _grid(limit):
        found = stable_cp(kernel, rank, rounds=1, max_sweeps=100, corrections=20, tol=1e-4)
        fitted |= {f"{rank}/{name}": factor for name, factor in found.factors.items()}
        fitted[f"{rank}/error"] = torch.tensor(found.error() ** 2, dtype=torch.float64)
    return fitted


def cp_choices(layer: Layer, fitted: Fitted) -> Ladder:
    """The ranks that were fitted."""
    if "left" in fitted:
        return pairs(layer, fitted)
    f, c, s = three_axes(layer.kernel).shape
    ranks = sorted(int(name.removesuffix("/error")) for name in fitted if name.endswith("/error"))

    def build(i: int) -> Replacement:
        factors = {name: fitted[f"{ranks[i]}/{name}"] for name in "cba"}
        return cp_layers(layer, CPDecomposition(layer.kernel, factors=factors))

    errors = np.array([float(fitted[f"{rank}/error"]) for rank in ranks])
    return with_dense(layer, [f"rank {r}" for r in ranks], np.array(ranks, dtype=np.int64) * (f + c + s), errors, build)


def fit_tucker(evidence: Evidence) -> Fitted:
    """Errors of all pairs of ranks; of linear layers and kernels of size 1 singular values."""
    t = three_axes(evidence.layer.kernel)
    return fit_svd(evidence) if t.shape[2] == 1 else {"pairs": hosvd(t)[2]}


def tucker_choices(layer: Layer, fitted: Fitted) -> Ladder:
    """Pairs of ranks that no other pair beats; their errors are those before the alternation, which can only lower them."""
    if "left" in fitted:
        return pairs(layer, fitted)
    f, c, s = three_axes(layer.kernel).shape
    errors = fitted["pairs"]
    tried = sorted((c * q + s * p * q + p * f, float(errors[p, q]), p, q) for p in _grid(f) for q in _grid(c))
    best: list[tuple[int, float, int, int]] = []
    for rung in tried:
        if not best or rung[1] < best[-1][1]:
            best.append(rung)
    return with_dense(
        layer,
        [f"ranks {p} and {q}" for *_, p, q in best],
        np.array([size for size, *_ in best], dtype=np.int64),
        np.array([error for _, error, *_ in best]),
        lambda i: tucker_layers(layer, tucker2(layer.kernel, best[i][2:])),
    )


def _grid(limit: int) -> list[int]:
    return sorted({int(r) for r in np.geomspace(1, max(limit, 1), STEPS).round()})
