"""How much of a model the rules know: a census of the operations on every path from input to output.

    covered = number of active nodes whose operator has a rule,      active: depends on an explained input

What needs no rule is not counted: weights, integers, masks, and the look-up of the explained ids itself. Operators that the
recording keeps whole (attention, layer norm, a recurrent layer) and recognised patterns count once.

Source: papers.toml "dynamiclrp", its table of covered nodes, which counts nodes of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from termwise.core.capture import arguments, capture
from termwise.core.program import Program, describe, info, op_name

from .rules import RULES

if TYPE_CHECKING:
    import pandas

__all__ = ["Coverage", "coverage"]


@dataclass(frozen=True)
class Coverage:
    """A census of a recorded model.

    Attributes:
        model: class name.
        counts: operator -> number of active nodes, most frequent first.
        missing: nodes without a rule, each with operator, module path and source line.
        how: how it was recorded, as `Program.how`.
    """

    model: str
    counts: Mapping[str, int]
    missing: tuple[str, ...]
    how: str

    @property
    def nodes(self) -> int:
        """Number of nodes on paths from input to output."""
        return sum(self.counts.values())

    @property
    def covered(self) -> int:
        """How many of them have a rule."""
        return self.nodes - len(self.missing)

    @property
    def fraction(self) -> float:
        """Covered over all; 1 for a model without nodes."""
        return self.covered / self.nodes if self.nodes else 1.0

    def to_frame(self) -> pandas.DataFrame:
        """One row per operator: how often it occurs, and the rule it has ("" where it has none)."""
        import pandas

        rows = [{"op": op, "nodes": n, "rule": RULES[op].__name__ if op in RULES else ""} for op, n in self.counts.items()]
        return pandas.DataFrame(rows, columns=["op", "nodes", "rule"])

    def __str__(self) -> str:
        """The census in a few lines: the total, the operators, what is missing."""
        operators = ", ".join(f"{op} {n}" for op, n in self.counts.items())
        lines = [f"{self.model}: {self.covered:,} of {self.nodes:,} nodes have a rule ({100 * self.fraction:.2f} %)", operators]
        return "\n".join([*lines, *(f"no rule for {where}" for where in self.missing)])


def coverage(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> Coverage:
    """Count the operations of a model and how many of them have a rule.

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments. A single mapping is passed as keywords.
        kwargs: its keyword arguments.
        select: picks the tensor to explain out of what the model returns, where it has no logits.

    Raises:
        CaptureError: when the model cannot be recorded.

    Cost: the recording.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> print(tw.coverage(model, torch.randn(2, 4)))
        Sequential: 3 of 3 nodes have a rule (100.00 %)
        linear 2, relu 1
    """
    model, args, keywords = arguments(model, inputs, kwargs)
    return census(capture(model, *args, kwargs=keywords, select=select))


def census(program: Program) -> Coverage:
    """The same of a recorded program."""
    nodes = [n for n in program.nodes if info(n).active and info(n).role != "cut"]
    counts: dict[str, int] = {}
    for node in nodes:
        counts[op_name(node)] = counts.get(op_name(node), 0) + 1
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    missing = tuple(describe(node) for node in nodes if op_name(node) not in RULES)
    return Coverage(type(program.model).__name__, ordered, missing, program.how)
