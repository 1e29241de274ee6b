r"""A residual network in powers of the strength of its branches: the paths through none of them, through one, through two, ...

    f_s = D o (1 + s g_n) o ... o (1 + s g_1) o E = sum_k f_k s^k,      z = E(x)
    f_0 = D(z),   f_1 = sum_i D'(z) g_i(z),   f_2 = sum_(i<j) D'(z) g_j'(z) g_i(z) + (1/2) D''(z)[G, G],   G = sum_i g_i(z)

Order k has C(n, k) ordered paths (and curvature of paths that meet), and is one coefficient of a jet in s: each block adds the
branch's series shifted by one, z_k <- z_k + [g(z)]_(k-1). The partial sum approximates the network only where that series
converges at the strength asked for, which for ordinary networks at s = 1 it does not.

Source: Dherin & Munn 2025, On residual network depth (the Residual Expansion Theorem).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import whole_number
from termwise.core.decomposition import Decomposition

from .expansion import Expansion
from .radius import Radius
from .residual_blocks import Tower

__all__ = ["ResidualExpansion", "residual_expansion"]

NO_APPROXIMATION = "its partial sum is no approximation"


@dataclass(frozen=True, repr=False, eq=False)
class ResidualExpansion(Expansion):
    """An `Expansion` in the strength of the residual branches: parts `order_0` ... `order_K` = f_k scale^k.

    Attributes:
        blocks: names of the branches, in order of execution.
        degree: of the polynomial that the network is in the strength (up to the first kink), where it ends by order K + 1: linear
            branches and head, or piecewise linear ones; -1 where it goes on.
    """

    blocks: tuple[str, ...] = ()
    degree: int = -1

    @property
    def radius(self) -> Radius:
        """How far the series reaches; inf for a polynomial."""
        return Radius(float("inf"), float("inf"), float("inf"), rough=False) if self.degree >= 0 else super().radius

    def diverges(self) -> bool:
        """Whether, as far as these orders tell, the series does not reach this strength: its partial sum is no approximation.

        It lies beyond a kink or the estimated radius; or at the edge of a rough estimate, and an earlier partial sum is nearer.
        """
        if abs(self.at) > self.kink_radius or self.degree >= 0 or self.order < 3:
            return abs(self.at) > self.kink_radius
        if super().diverges():
            return True
        reach, left = self.radius, self.whole
        sizes = [(left := left - part).norm().item() for part in self.parts.values()]
        rounding = torch.finfo(left.dtype).eps ** 0.5 * self.whole.norm().item()
        return reach.rough and abs(self.at) > reach.low and sizes[-1] >= max(min(sizes[:-1]), rounding)

    def summary(self) -> str:
        """One line: the remainder, and whether the series reaches as far as it was asked."""
        text = f"{len(self.blocks)} residual branches to order {self.order} at strength {self.at:g}"
        left = f"adds up to {self.error():.1e}"
        if abs(self.at) > self.kink_radius:
            kink = f"a unit changes its branch at {self.kink_radius:.3g} ({self.kink})"
            return f"{text}: THE SERIES ENDS before, {kink}; {NO_APPROXIMATION}: {left}"
        if self.degree >= 0:
            return f"{text}: a polynomial of degree {self.degree}, {left}"
        if self.order < 2:
            return f"{text}: {left}; too few orders to say how far the series reaches"
        if self.diverges():
            why = f"as far as these orders tell (radius {self.radius})"
            return f"{text}: THE SERIES DIVERGES there, {why}; {NO_APPROXIMATION}: {left}"
        return f"{text}: {left}, radius {self.radius}"

    _along = "strength"

    def _reach(self) -> str:
        """How far the series reaches, in words."""
        return f"The network is a polynomial of degree {self.degree} in the strength." if self.degree >= 0 else super()._reach()

    def paths(self, k: int = 1) -> Decomposition:
        """The terms of order 1, one for each branch, or of order 2, one for each pair.

        Args:
            k: 1: D'(z) g_i(z) scale, under the name of branch i. 2: D'(z) g_j'(z) g_i(z) scale^2 for i before j, with the head's
                curvature D''(z)[g_i, g_j], as `i > j`; and (1/2) D''(z)[g_i, g_i], as `i > i`.

        Returns:
            A Decomposition of the part `order_k`, which was computed without them.

        Raises:
            ValueError: for another k, or where there are fewer orders.
            RuntimeError: of an expansion that was loaded, moved or sliced, which has no model any more.

        Cost: one jet of order 1 per branch; one of order 2 per branch and pair.
        """
        if k not in (1, 2) or k > self.order:
            raise ValueError(f"paths are of order 1 or 2, up to the order of the expansion ({self.order}); got {k!r}")
        tower: Tower | None = getattr(self, "_tower", None)
        if tower is None:
            raise RuntimeError(
                "an expansion that was loaded, moved or sliced has no model to trace paths through: expand it anew"
            )
        one = torch.eye(len(self.blocks), dtype=tower.switches().dtype, device=tower.switches().device)
        singles = [_row(tower, e, k) for e in one]
        if k == 1:
            return Decomposition(self.parts["order_1"], {b: row * self.at for b, row in zip(self.blocks, singles, strict=True)})
        parts = {f"{b} > {b}": row * self.at**2 for b, row in zip(self.blocks, singles, strict=True)}
        for j, last in enumerate(self.blocks):
            for i, first in enumerate(self.blocks[:j]):  # polarisation: what the two make together and neither makes alone
                parts[f"{first} > {last}"] = (_row(tower, one[i] + one[j], 2) - singles[i] - singles[j]) * self.at**2
        return Decomposition(self.parts["order_2"], parts)


def residual_expansion(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    order: int = 4,
    scale: float = 1.0,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> ResidualExpansion:
    """Expand a residual network in powers of the strength of its branches.

        f_s = sum_(k <= order) f_k s^k + remainder,      z_k = z_(k-1) + s g_k(z_(k-1))

    Residual branches are found in the recorded operations: additions of which one operand is computed from what the other carries
    on. So ResNets (with projections and a ReLU behind the addition, too) and pre-norm transformers are expanded as they are.

    Args:
        model: in eval mode, as `capture` takes it.
        *inputs: its inputs.
        order: K, the highest power that is a part.
        scale: the strength s; 1 is the network as it is, another one the network with its branches multiplied by it.
        kwargs: keyword arguments of the model.
        select: picks the tensor to expand out of what the model returns, where it has no logits.

    Returns:
        A `ResidualExpansion`: parts order_0 ... order_K, the measured remainder, the estimated `radius`, `kink_radius` (in the
        strength), `paths(1)` and `paths(2)`. Where the series diverges at this strength its summary says so; `subset_expansion`
        is exact there too.

    Raises:
        ValueError: for a network without residual branches, or with a normalisation on the stream between them (post-norm); for a
            negative order, a strength of 0, an operation without a jet rule (named, with its place).

    Cost: one run over order + 2 coefficients, O(n order^2), and one forward pass; memory that of order + 2 forward passes.

    Example:
        >>> class Tower(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(4))
        ...
        ...     def forward(self, x):
        ...         for block in self.blocks:
        ...             x = x + block(x)
        ...         return x
        >>> e = tw.residual_expansion(Tower().double().eval(), torch.randn(2, 3, dtype=torch.float64), order=4)
        >>> e.degree, e.error() < 1e-12  # four linear branches: a polynomial of degree 4
        (4, True)

    Source: Dherin & Munn 2025, the Residual Expansion Theorem.
    """
    order = whole_number("order", order, 0)
    if scale == 0 or not abs(scale) < float("inf"):
        raise ValueError(f"scale is the strength of the branches, finite and not 0; got {scale!r}")
    tower = Tower(model, inputs, kwargs, select)
    rows, run = tower.along(tower.switches(1.0), order + 1, horizon=2 * scale)
    run.warn()
    degree = len(rows) - 1 if len(rows) < order + 2 else -1
    rows = torch.cat([rows, rows.new_zeros(order + 2 - len(rows), *rows.shape[1:])])
    whole = tower.whole() if scale == 1 else tower.at(tower.switches(scale))
    parts = {f"order_{k}": rows[k] * scale**k for k in range(order + 1)}
    kinks = run.kinks
    found = ResidualExpansion(
        whole, parts, rows.movedim(0, -1), float(scale), kinks.radius, kinks.where, tuple(kinks.blind), tuple(tower.names), degree
    )
    object.__setattr__(found, "_tower", tower)  # what `paths` runs again; no field, so it goes into no file
    return found


def _row(tower: Tower, direction: Tensor, k: int) -> Tensor:
    """The coefficient of order k at switches t * direction."""
    rows, _ = tower.along(direction, k)
    return rows[k] if k < len(rows) else torch.zeros_like(rows[0])
