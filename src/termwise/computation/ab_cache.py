r"""AB-Cache: an Adams-Bashforth step and an Euler step with one forecast agree, so that old outputs say the next.

    F^_i = sum_{j=1..k} (-1)^{j+1} C(k, j) F_{i-j}           (2, -1;  3, -3, 1;  4, -6, 4, -1)

The k-th difference is set to zero: a polynomial of degree k - 1 through the last k outputs, with an error of O(h^k). That needs
outputs which were *computed*, at their true distances; forecasts fed back diverge from k = 2 on. Forecasting the output of the
model is a linear multistep method on the sampler's grid. Yu et al. 2025 (arXiv 2504.10540).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Method, Now, every, whole

__all__ = ["ABCache", "adams_bashforth_reuse_weights", "adams_bashforth_weights"]


def adams_bashforth_reuse_weights(k: int) -> Tensor:
    """Weights of the last k outputs in the next one, newest first, (k,) in float64. Their sum is 1.

    Args:
        k: at least 1; 1 is reuse.

    Example:
        >>> adams_bashforth_reuse_weights(3).tolist()
        [3.0, -3.0, 1.0]

    Source: Yu et al. 2025, section 3.
    """
    k = whole("k", k)
    return torch.tensor([(-1.0) ** (j + 1) * math.comb(k, j) for j in range(1, k + 1)], dtype=torch.float64)


def adams_bashforth_weights(k: int) -> Tensor:
    """Weights of the k-step Adams-Bashforth rule, newest first, (k,) in float64.

    They integrate from 0 to 1 the polynomial through the values at 0, -1, ..., 1 - k.

    Args:
        k: steps, at least 1.

    Example:
        >>> adams_bashforth_weights(2).tolist()
        [1.5, -0.5]

    Source: Bashforth & Adams 1883; Hairer, Norsett & Wanner, Solving ODEs I, III.1.
    """
    k = whole("k", k)
    nodes = -torch.arange(k, dtype=torch.float64)
    powers = nodes.unsqueeze(0) ** torch.arange(k).unsqueeze(1)  # row p: every node to the p-th
    return torch.linalg.solve(powers, 1 / (torch.arange(k, dtype=torch.float64) + 1))


@dataclass(frozen=True, kw_only=True)
class ABCache(Method):
    """Compute every `interval`-th output of the model, and continue the last ones in between.

    Args:
        interval: of the computed steps.
        history: "computed" (outputs that were computed, at their true distances) or "queue" (the last outputs whether computed
            or not, with the weights above: the paper's words taken literally, and unstable).
        order, variable, first_steps, last_steps: see `Method`; k is order + 1.

    Source: Yu et al. 2025.
    """

    interval: int = 3
    history: str = "computed"
    first_steps: int = 2

    def __post_init__(self) -> None:
        """Refuse what is no interval or history."""
        super().__post_init__()
        whole("interval", self.interval)
        if self.history not in ("computed", "queue"):
            raise ValueError(f'ABCache: history is "computed" or "queue", got {self.history!r}')

    def rule(self, now: Now) -> bool:
        """Every interval-th after the first."""
        return every(self.interval, now.index, self.first_steps)

    @property
    def feeds_back(self) -> bool:
        """Whether forecasts become values that others are made of."""
        return self.history == "queue"
