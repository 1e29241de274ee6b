"""The methods by name: what each works out from data, which choices that gives a layer, and how it chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import afm, grouped, lord, low_rank, rom, tensor_layers, welore
from .allocation import Allocation, allocate
from .alternation import alternate
from .cur import cur_choices, fit_cur
from .evidence import Evidence
from .joint_pruning import fit_prune, measure_at_output, prune_choices
from .ladder import Curve, Fitted, Ladder, Replacement
from .layers import Layer
from .task import Task

__all__ = ["METHODS", "Build", "Method", "Policy"]

Measure = Callable[[Task, Mapping[str, Ladder], Mapping[str, Fitted]], dict[str, Ladder]]
Policy = Callable[[Mapping[str, Ladder], Mapping[str, Curve], float], Allocation]
Build = Callable[[Task, Mapping[str, Ladder], Mapping[str, int]], dict[str, Replacement]]


def least_sum(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
    """The least sum of errors."""
    return allocate(curves, budget)


@dataclass(frozen=True)
class Method:
    """One way to compress.

    Attributes:
        fit: what is worked out for a layer from what is known of it: the costly part, as tensors, so that it can be kept.
        ladder: the choices of the layer, from those.
        policy: which choice for which layer, within a budget.
        data: whether it looks at data.
        sensitive: whether it asks what a layer's errors do to the output of the model.
        name: in reports, of one that is not in `METHODS`.
        measure: errors of every choice by running the model, in the unit of its output; those of `fit` when there is none, which
            then look at the data to select on.
        zeros: whether it puts zeros into layers, and makes nothing smaller or faster.
        build: makes what was chosen, of layers whose replacements depend on each other; from their ladders when not given.
    """

    fit: Callable[[Evidence], Fitted]
    ladder: Callable[[Layer, Fitted], Ladder]
    policy: Policy = least_sum
    data: bool = True
    sensitive: bool = False
    name: str = "custom"
    measure: Measure | None = None
    zeros: bool = False
    build: Build | None = None


METHODS: dict[str, Method] = {
    "auto": Method(low_rank.fit_end, low_rank.pivots, sensitive=True, measure=low_rank.errors_at_output),
    "alds": Method(grouped.fit_grouped, grouped.grouped_choices, alternate, data=False),
    "aware": Method(low_rank.fit_aware, low_rank.pairs),
    "afm": Method(afm.fit_afm, afm.affine_pairs),
    "asvd": Method(low_rank.fit_asvd, low_rank.pairs),
    "cp": Method(tensor_layers.fit_cp, tensor_layers.cp_choices, data=False),
    "cur": Method(fit_cur, cur_choices),
    "lord": Method(low_rank.fit_aware, low_rank.pairs, lord.one_rank_per_type),
    "prune": Method(fit_prune, prune_choices, data=False, measure=measure_at_output, zeros=True),
    "rom": Method(low_rank.fit_svd, low_rank.pairs, rom.last_blocks, data=False, build=rom.one_after_another),
    "svd": Method(low_rank.fit_svd, low_rank.pairs, data=False),
    "tucker": Method(tensor_layers.fit_tucker, tensor_layers.tucker_choices, data=False),
    "welore": Method(welore.fit_welore, welore.spectral, welore.one_threshold, data=False),
    "welore-aware": Method(welore.fit_welore_aware, welore.spectral, welore.one_threshold),
}
"""Every method of `tw.compress`. Add one: `METHODS["mine"] = Method(fit, ladder)`."""
