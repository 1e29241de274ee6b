"""What in the input made the output: relevance propagation and the proof that it adds up."""

from .explain import explain
from .explanation import Explanation
from .faithfulness import DeletionCurve, abpc, deletion
from .rules import RULE_SETS, RULES, rule

__all__ = ["RULES", "RULE_SETS", "DeletionCurve", "Explanation", "abpc", "deletion", "explain", "rule"]
