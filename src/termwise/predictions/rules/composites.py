"""Composites: rule sets for image networks under the names that zennit's users know, as plain mappings.

Print one, change it, pass it on:

    tw.explain(model, x, rules={**EpsilonPlus, "head.*": "zero"})

Passed on as it is, a set is known by its name; with other entries it is a set of one's own.

| composite                 | first layer | convolutions   | linear layers | sums, averages | batch norm, activations |
|---------------------------|-------------|----------------|---------------|----------------|-------------------------|
| EpsilonPlus               |             | z+             | epsilon       | epsilon        | R unchanged             |
| EpsilonPlusFlat           | flat        | z+             | epsilon       | epsilon        | R unchanged             |
| EpsilonAlpha2Beta1        |             | alpha 2 beta 1 | epsilon       | epsilon        | R unchanged             |
| EpsilonAlpha2Beta1Flat    | flat        | alpha 2 beta 1 | epsilon       | epsilon        | R unchanged             |
| EpsilonGammaBox(low, high)| z-box       | gamma 0.25     | epsilon       | epsilon        | R unchanged             |
| DeconvNet, GuidedBackprop |             | own derivative | own derivative| own derivative | own; ReLU: max(c, 0)    |

Denominators have zennit's stabiliser of 1e-6; what it loses is booked, as all losses are. Batch norm is folded into the
layer before it. Normalisations by an input's own statistics take their own derivative, as in zennit, and lose nearly
everything: these composites are for convolutional networks. Where we differ from zennit:

- rules go by operator and not by module, so that a functional `x + y` and `x.mean(...)` are sums and averages too;
- "first" is the first executed, not the first registered; EpsilonGammaBox takes the first convolution, the Flat ones the
  first convolution or linear layer;
- relevance is a ratio here, a cotangent there: for operations that are neither in the table nor move, choose or pool
  entries (products, softmax), our own rules apply.

Source: Anders et al. 2021, arXiv:2106.13200 (zennit); Zeiler and Fergus 2014; Springenberg et al. 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .anywhere import epsilon
from .region import Level, flat, wsquare, zbox
from .selection import first, operators
from .splitting import alpha_beta, gamma, zplus
from .table import Rule

__all__ = [
    "DeconvNet", "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat", "EpsilonGammaBox", "EpsilonPlus", "EpsilonPlusFlat",
    "GuidedBackprop", "RuleSet", "deep_taylor",
]  # fmt: skip

STABILIZER = 1e-6
CONVOLUTIONS = operators("conv*")
DENSE = operators("linear", "addmm", "mm", "matmul", "bmm", "expert_product")
SUMS = operators("add", "mean", "*avg_pool*")
# activations with f(0) = 0 pass R unchanged by their own rule
OFFSET_ACTIVATIONS = operators("sigmoid", "softplus", "hardsigmoid", "log_sigmoid", "threshold")
SMOOTH_ACTIVATIONS = operators(
    "gelu", "elu", "selu", "celu", "silu", "mish", "tanh", "sigmoid", "softplus", "hardswish", "hardsigmoid"
)
NORMALISATIONS = operators("*layer_norm", "*group_norm", "instance_norm", "*rms_norm")


class RuleSet(dict[Any, Rule | str]):
    """A mapping that knows what it is called, for as long as nothing in it was changed."""

    def __init__(self, name: str, entries: Mapping[Any, Rule | str]) -> None:
        super().__init__(entries)
        self._name, self._made = name, dict(entries)

    @property
    def name(self) -> str:
        """As `RULE_SETS` and `termwise.cite` have it; "custom" when it is another one by now."""
        return self._name if self == self._made else "custom"


def _composite(name: str, convolution: Rule, start: Mapping[Any, Rule | str] | None = None) -> RuleSet:
    entries = {
        CONVOLUTIONS: convolution,
        DENSE: epsilon(STABILIZER),
        SUMS: epsilon(STABILIZER),
        operators("batch_norm"): "pass",
        OFFSET_ACTIVATIONS: "pass",
        NORMALISATIONS: "gradient",
        **(start or {}),
    }
    return RuleSet(name, entries)


_FLAT = {first("conv*", "linear", "addmm"): flat(stabilizer=STABILIZER)}

EpsilonPlus = _composite("EpsilonPlus", zplus(stabilizer=STABILIZER))
EpsilonPlusFlat = _composite("EpsilonPlusFlat", zplus(stabilizer=STABILIZER), _FLAT)
EpsilonAlpha2Beta1 = _composite("EpsilonAlpha2Beta1", alpha_beta(2, 1, stabilizer=STABILIZER))
EpsilonAlpha2Beta1Flat = _composite("EpsilonAlpha2Beta1Flat", alpha_beta(2, 1, stabilizer=STABILIZER), _FLAT)


def EpsilonGammaBox(low: Level, high: Level) -> RuleSet:
    """Z-box in the first convolution, gamma in the others, epsilon in linear layers.

    Args:
        low: smallest value of an input, a number or one per channel; after (v - mean) / std it is -mean / std.
        high: largest value, likewise. A subject of the zoo knows both: ``EpsilonGammaBox(*subject.preparation.box)``.

    Returns:
        A mapping for `rules=`.

    Raises:
        ValueError: when some low is not below its high.
    """
    start = {first("conv*"): zbox(low, high, stabilizer=STABILIZER)}
    return _composite("EpsilonGammaBox", gamma(0.25, stabilizer=STABILIZER), start)


def deep_taylor(low: Level | None = None, high: Level | None = None) -> RuleSet:
    """Deep Taylor decomposition of a ReLU network: z-box (of unbounded inputs w^2) in the first layer, z+ in the others.

    Args:
        low: smallest value of an input, as in `zbox`; None for inputs without bounds.
        high: largest value.

    Returns:
        A mapping for `rules=`. ``rules="deep-taylor"`` is that for unbounded inputs.

    Raises:
        ValueError: when one bound is missing, or some low is not below its high.

    Source: Montavon et al. 2017, arXiv:1512.02479.
    """
    if (low is None) != (high is None):
        raise ValueError("deep_taylor takes both ends of the input's range, or none")
    start = wsquare() if low is None or high is None else zbox(low, high)
    return RuleSet("deep-taylor", {CONVOLUTIONS: zplus(), DENSE: zplus(), first("conv*", *DENSE.keys): start})


def _gradient(name: str, relu: str) -> RuleSet:
    """Own derivatives, and another one for ReLU. Affine operations have their own by the table, with the bias as a part."""
    entries: dict[Any, Rule | str] = {
        CONVOLUTIONS: "zero",
        DENSE: "zero",
        SMOOTH_ACTIVATIONS: "gradient",
        NORMALISATIONS: "gradient",
        operators("relu", "relu6", "hardtanh"): relu,
    }
    return RuleSet(name, entries)


DeconvNet = _gradient("DeconvNet", "deconvnet")
"""Not a decomposition: only positive ratios pass a ReLU, whatever its input was; what that loses, often all, is booked."""

GuidedBackprop = _gradient("GuidedBackprop", "guided")
"""Not a decomposition: of a ReLU's own derivative only what is positive passes; what that loses, often all, is booked."""
