"""How much of a model the rules know: a census of the operations on every path from input to output.

    covered = number of active nodes whose rule does not refuse them,      active: depends on an explained input

What needs no rule is not counted: weights, integers, masks, and the look-up of the explained ids itself. Operators that the
recording keeps whole (attention, layer norm, a recurrent layer) and recognised patterns count once; under "dynamiclrp", which
speaks of primitives, patterns are spelled out. A rule is asked by a forward pass in which a refusal is noted and the
operation done all the same: what a rule accepts may hang on its arguments (a reduction by product, a second activation).

Source: papers.toml "dynamiclrp", its table of covered nodes, which counts nodes of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from termwise.core.capture import arguments, capture
from termwise.core.pictures import Bars, Picture, Pictured, Table
from termwise.core.program import Program, describe, info, op_name
from termwise.core.rewrite import rewrite

from .ledger import Ledger, Site
from .propagate import Pass
from .relevance_form import refusal, rule_of
from .rules import Rules
from .rules.sets import IN_ITS_FORM, rules_of
from .unfused import inlined

if TYPE_CHECKING:
    import pandas

__all__ = ["Coverage", "coverage"]

SHOWN = 24
"""Operators that get a bar."""


@dataclass(frozen=True)
class Coverage(Pictured):
    """A census of a recorded model.

    Attributes:
        model: class name.
        counts: operator -> number of active nodes, most frequent first.
        missing: nodes that no rule takes, each with operator, module path and source line.
        how: how it was recorded, as `Program.how`.
        rules: operator -> the names of the rules that its nodes have; "" where it has none.
    """

    model: str
    counts: Mapping[str, int]
    missing: tuple[str, ...]
    how: str
    rules: Mapping[str, str]

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

        rows = [{"op": op, "nodes": n, "rule": self.rules[op]} for op, n in self.counts.items()]
        return pandas.DataFrame(rows, columns=["op", "nodes", "rule"])

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How often each operator occurs, the rule it has, and what has none."""
        first, *_ = str(self).partition("\n")
        shown = dict(list(self.counts.items())[:SHOWN])
        more = f" {len(self.counts) - len(shown)} rarer operators are in the table only." if len(self.counts) > len(shown) else ""
        rows = [[op, n, self.rules[op] or "no rule"] for op, n in self.counts.items()]
        found: list[Picture] = [
            Bars("Operations", list(shown), {"nodes": list(shown.values())}, y="nodes", note=f"{first}.{more}"),
            Table("Rules", ["operator", "nodes", "rule"], rows),
        ]
        return found + ([Table("Without a rule", ["node"], [[where] for where in self.missing])] if self.missing else [])

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
    rules: Rules = "default",
) -> Coverage:
    """Count the operations of a model and how many of them have a rule.

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments. A single mapping is passed as keywords.
        kwargs: its keyword arguments.
        select: picks the tensor to explain out of what the model returns, where it has no logits.
        rules: whose rules, as `explain` takes them.

    Raises:
        CaptureError: when the model cannot be recorded.
        ValueError: for an unknown rule set, or one that explains nothing of this output.

    Cost: the recording, and a forward pass.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> print(tw.coverage(model, torch.randn(2, 4)))
        Sequential: 3 of 3 nodes have a rule (100.00 %)
        linear 2, relu 1
    """
    model, args, keywords = arguments(model, inputs, kwargs)
    program = capture(model, *args, kwargs=keywords, select=select)
    return census(program, program.tensors(*args, kwargs=keywords), rules)


def census(program: Program, tensors: list[Tensor], rules: Rules = "default") -> Coverage:
    """The same of a recorded program and its input tensors."""
    if isinstance(rules, str) and rules in IN_ITS_FORM:
        program, names, refused = _in_relevance_form(program)
    else:
        names, refused = _in_ratio_form(program, tensors, rules)
    nodes = [n for n in program.nodes if info(n).active and (info(n).role != "cut" or n.name in refused)]
    counts: dict[str, int] = {}
    chosen: dict[str, list[str]] = {}
    for node in nodes:
        op = op_name(node)
        counts[op] = counts.get(op, 0) + 1
        if node.name not in refused and names[node.name] not in chosen.setdefault(op, []):
            chosen[op].append(names[node.name])
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    missing = tuple(describe(node) for node in nodes if node.name in refused)
    return Coverage(
        type(program.model).__name__, ordered, missing, program.how, {op: ", ".join(chosen.get(op, [])) for op in ordered}
    )


def _in_ratio_form(program: Program, tensors: list[Tensor], rules: Rules) -> tuple[dict[str, str], set[str]]:
    """The name of every node's rule, and the nodes that it refuses."""
    chosen = rules_of(program, rules, _no_rule)
    tried, refused = Pass(program, rules, otherwise=_no_rule), set[str]()
    sites = {name: _Trial(site, name, refused) for name, site in tried.sites.items()}
    tried.module = rewrite(tried.program, sites, lift=tried.lift)
    ledger, _ = tried.forward([t.detach() for t in tensors])
    ledger.close()
    return {name: rule.__name__ for name, rule in chosen.items()}, refused


def _in_relevance_form(program: Program) -> tuple[Program, dict[str, str], set[str]]:
    """The program as these rules see it, and the same of it."""
    from .dynamiclrp import RULES

    program = inlined(program)
    chosen = {n: rule_of(n, RULES) for n in program.nodes if info(n).active}
    return program, {n.name: r.__name__ for n, r in chosen.items()}, {n.name for n, r in chosen.items() if refusal(n, r)}


def _no_rule(at: Any, *args: Any, **kwargs: Any) -> Any:
    """What stands where no rule does."""
    raise ValueError(f"no rule for {at.site.name}")


class _Trial:
    """A site whose refusal is noted, and the operation done without a rule."""

    def __init__(self, site: Site, name: str, refused: set[str]) -> None:
        self.site, self.name, self.refused = site, name, refused

    def __call__(self, ledger: Ledger, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.site(ledger, *args, **kwargs)
        except ValueError:
            self.refused.add(self.name)
            return self.site.op(*args, **kwargs)
