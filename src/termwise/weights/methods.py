"""The methods by name: how each makes a layer's choices, and how it chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import low_rank
from .allocation import Allocation, allocate
from .evidence import Evidence
from .ladder import Curve, Ladder

__all__ = ["METHODS", "Method"]

Policy = Callable[[Mapping[str, Ladder], Mapping[str, Curve], float], Allocation]


def least_sum(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
    """The least sum of errors."""
    return allocate(curves, budget)


@dataclass(frozen=True)
class Method:
    """One way to compress.

    Attributes:
        ladder: the choices of a layer, from what is known of it.
        policy: which choice for which layer, within a budget.
        data: whether it looks at data.
        sensitive: whether it asks what a layer's errors do to the output of the model.
        note: what is special, in a line.
    """

    ladder: Callable[[Evidence], Ladder]
    policy: Policy = least_sum
    data: bool = True
    sensitive: bool = False
    note: str = ""


METHODS: dict[str, Method] = {
    "auto": Method(low_rank.end_aware, sensitive=True, note="errors at the output of the model, stored by pivots"),
    "aware": Method(low_rank.aware, note="errors at the layer's own output"),
    "asvd": Method(low_rank.asvd, note="columns scaled by their inputs"),
    "svd": Method(low_rank.svd, data=False, note="errors of the weights, without data"),
}
"""Every method of `tw.compress`. Add one: `METHODS["mine"] = Method(ladder)`."""
