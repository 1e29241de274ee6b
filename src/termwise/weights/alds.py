r"""ALDS: the largest relative error of any layer made as small as the budget allows, over ranks and numbers of groups.

    min over (k_l, j_l)  max_l |W_l - W_l'| / |W_l|      subject to   sum_l size(k_l, j_l) <= budget

The local step is in `grouped`, the global one in `alternation`. `search="alternate"` is the paper's: ranks for given groups and
groups for given sizes, in turn. `search="exact"` solves the same problem at once, and no alternation ends below it.

Source: Liebenwein, Maalouf, Gal, Feldman & Rus 2021, Compressing neural networks: towards determining the optimal layer-wise
decomposition, algorithms 1 and 2. Errors are bounded with their factor sqrt(k), and rank j leaves sigma_{j+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from .alternation import alternate
from .compress import compress
from .compressed import Compressed
from .grouped import Bound, fit_grouped, grouped_choices
from .methods import Method
from .task import Unit

__all__ = ["alds"]

Search = Literal["alternate", "exact"]


def alds(
    model: nn.Module,
    budget: float = 0.5,
    *,
    data: Any,
    schemes: Sequence[int] = (0,),
    seeds: int = 15,
    iterations: int = 4,
    bound: Bound = "paper",
    search: Search = "alternate",
    unit: Unit = "params",
    keep: Sequence[str] = (),
    progress: bool = True,
    generator: torch.Generator | None = None,
) -> Compressed:
    """Make a model smaller by products of low rank in groups of channels, the worst layer as good as can be.

    Args:
        model: as of `compress`; it is not changed.
        budget: as of `compress`.
        data: some inputs, to measure the change of the output on. No choice looks at them.
        schemes: ways to fold a convolution, of 0 to 3, see `grouped`; (0, 1, 2, 3) is the paper's ALDS+.
        seeds: starts of the alternation: 1, 3, 5, 7, 9 groups and random ones.
        iterations: of each.
        bound: what stands for a layer's error, see `group_errors`.
        search: "alternate", the paper's, or "exact".
        unit: as of `compress`.
        keep: as of `compress`.
        progress: show a bar.
        generator: of the random starts; seed 0 when not given.

    Returns:
        A `Compressed`; its layers' errors are squares of the bound.

    Raises:
        ValueError: as of `compress`, and for unknown schemes, bounds or searches.

    Cost: for each layer the singular values for every number of groups, some three times those of its weight. "exact": one
    bisection; "alternate": `seeds * iterations` of them.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 5))
        >>> small = alds(model, 0.6, data=torch.randn(400, 20), progress=False)
        >>> small.kept <= 0.6, max(row.error for row in small.layers) < 1
        (True, True)
    """
    if search not in ("alternate", "exact"):
        raise ValueError(f"search is 'alternate' or 'exact', got {search!r}")
    if not schemes or not set(schemes) <= {0, 1, 2, 3}:
        raise ValueError(f"schemes are some of 0, 1, 2 and 3, got {tuple(schemes)}")
    if seeds < 1 or iterations < 0:
        raise ValueError(f"there is at least one start and no negative number of iterations, got {seeds} and {iterations}")
    method = Method(
        partial(fit_grouped, schemes=schemes, bound=bound),
        partial(grouped_choices, schemes=schemes),
        partial(alternate, seeds=seeds if search == "alternate" else 0, iterations=iterations, generator=generator),
        data=False,
        name="alds",
    )
    return compress(model, budget, data=data, unit=unit, method=method, keep=keep, progress=progress, generator=generator)
