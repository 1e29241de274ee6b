"""What in the input made the output: relevance propagation and the proof that it adds up."""

from .explain import explain
from .explanation import Explanation
from .rules import RULE_SETS, RULES, rule

__all__ = ["RULES", "RULE_SETS", "Explanation", "explain", "rule"]
