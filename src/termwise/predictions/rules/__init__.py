"""One rule per operation: how the ratio c = R / y goes back through it. The table is `RULES`, the sets `RULE_SETS`."""

from . import attention, elementwise, linear, norms, products, recurrent  # each enters its rules into the table
from .anywhere import absolute, deconvolution, epsilon, guided, own_derivative, unchanged
from .composites import (
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    GuidedBackprop,
    deep_taylor,
)
from .maps import AFFINE
from .region import flat, wsquare, zbox
from .selection import depth, first, operators
from .sets import AFFINE_RULES, ANY_RULES, RULE_SETS, Rules, rules_of
from .splitting import alpha_beta, gamma, zplus
from .table import HOLDING, LOSSY, RULES, SPLITTING, Rule, active, hold, holding, lossy, rule, share

__all__ = [
    "AFFINE", "AFFINE_RULES", "ANY_RULES", "HOLDING", "LOSSY", "RULES", "RULE_SETS", "SPLITTING", "DeconvNet",
    "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat", "EpsilonGammaBox", "EpsilonPlus", "EpsilonPlusFlat", "GuidedBackprop",
    "Rule", "Rules", "absolute", "active", "alpha_beta", "attention", "deconvolution", "deep_taylor", "depth",
    "elementwise", "epsilon", "first", "flat", "gamma", "guided", "hold", "holding", "linear", "lossy", "norms",
    "operators", "own_derivative", "products", "recurrent", "rule", "rules_of", "share", "unchanged", "wsquare", "zbox",
    "zplus",
]  # fmt: skip
