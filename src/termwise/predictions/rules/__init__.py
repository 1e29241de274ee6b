"""One rule per operation: how the ratio c = R / y goes back through it. The table is `RULES`, the sets `RULE_SETS`."""

from . import attention, elementwise, linear, norms, products, recurrent  # each enters its rules into the table
from .sets import AFFINE_RULES, RULE_SETS, Rules, rules_of
from .splitting import AFFINE, SPLITTING, epsilon, gamma, zplus
from .table import HOLDING, LOSSY, RULES, Rule, active, hold, holding, lossy, rule, share

__all__ = [
    "AFFINE", "AFFINE_RULES", "HOLDING", "LOSSY", "RULES", "RULE_SETS", "SPLITTING", "Rule", "Rules", "active", "attention",
    "elementwise", "epsilon", "gamma", "hold", "holding", "linear", "lossy", "norms", "products", "recurrent", "rule",
    "rules_of", "share", "zplus",
]  # fmt: skip
