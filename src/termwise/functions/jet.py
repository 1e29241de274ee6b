r"""Taylor jets: all derivatives along a curve, from one run through the recorded operations.

    x(t) = sum_k x_k t^k   ->   f(x(t)) = sum_k f_k t^k + O(t^(K+1)),      f_k = (1/k!) d^k/dt^k f(x(t)) at t = 0

Every value on the way is its series to order K; how an operation takes one is a rule (`jet_rules`). The cost is O(K^2)
element-wise work and K + 1 matrix products per linear layer, where nested automatic differentiation pays a factor at each order.

Source: Griewank & Walther, Evaluating Derivatives, ch. 13; Bettencourt, Johnson & Duvenaud 2019 (jax.experimental.jet).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.capture import capture
from termwise.core.composite import Composite
from termwise.core.interpret import interpret
from termwise.core.program import Program, describe, op_name

from .jet_rules import JET_RULES, Jet, moves
from .jet_rules.table import padded
from .kinks import Kinks
from .taylor import Taylor

__all__ = ["Run", "jet"]

CONVENTIONS = ("coefficients", "derivatives")


def jet(
    f: nn.Module | Callable[..., Tensor] | Program,
    primals: Sequence[Tensor],
    series: Sequence[Sequence[Tensor]],
    convention: str = "coefficients",
    *,
    ties: str = "right",
    fallback: str | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Push a curve through a function; coefficients are normalised, x_k = x^(k)/k!, where jax's jet has derivatives, k! as large.

    Args:
        f: a module in eval mode, a function of tensors, or a recorded program of one.
        primals: where the curve is at t = 0, one tensor per argument.
        series: for each primal its coefficients of order 1, 2, ..., K, tensors of its shape; a shorter list, or an empty
            one, stands for zeros.
        convention: "coefficients" or "derivatives", of what goes in and what comes out.
        ties: at the very kink of a piecewise operation the branch that follows ("right"), or torch's own subgradient ("torch").
        fallback: "nested" differentiates an operation without a rule by nested `torch.func.jvp`, at a price that grows
            exponentially with the order; by default it is refused by name.

    Returns:
        f at t = 0, and its coefficients of order 1 ... K in the same convention. Autograd goes through them.

    Raises:
        ValueError: for lists that do not fit the primals, an unknown convention, an operation without a rule (with operator,
            module path and source line).
        TypeError: for a primal of integers.

    Cost: time O(K^2) per element-wise operation, K + 1 products per linear layer; memory O(K) forward passes.

    Example:
        >>> x = torch.tensor(0.0, dtype=torch.float64)
        >>> value, (first, second, third) = tw.jet(torch.exp, [x], [[torch.ones_like(x), 0 * x, 0 * x]])
        >>> bool((third - 1 / 6).abs() < 1e-15)
        True

    Source: Griewank & Walther, ch. 13.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if len(series) != len(primals):
        raise ValueError(f"series needs one list per primal: {len(primals)} primals, {len(series)} lists")
    order = max((len(s) for s in series), default=0)
    derivatives = convention == "derivatives"
    curves = [_curve(i, x, s, derivatives) for i, (x, s) in enumerate(zip(primals, series, strict=True))]
    program = f if isinstance(f, Program) else capture(f, *(x.detach() for x in primals))
    run = Run(Taylor(order), ties=ties, fallback=fallback)
    tensors = list(primals) if isinstance(f, Program) else program.tensors(*primals)
    values: dict[str, Any] = program.bind(tensors, detached=False)
    given = dict(zip([n for n, p in program.placeholders.items() if p.kind == "input"], curves, strict=True))
    out = run.of(program, {**values, **{n: c for n, c in given.items() if c is not None}})
    rows = out.rows if isinstance(out, Jet) else out.unsqueeze(0)
    run.warn()
    zero = torch.zeros_like(rows[0])
    found = [rows[k] if k < len(rows) else zero for k in range(1, order + 1)]
    return rows[0], [c * float(math.factorial(k)) for k, c in enumerate(found, start=1)] if derivatives else found


def _curve(i: int, x: Tensor, series: Sequence[Tensor], derivatives: bool) -> Jet | None:
    """The rows of one primal without the zeros at the end; None where it does not move."""
    if not series:
        return None
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"primal {i} is a tensor of {x.dtype}, along which there are no curves: give a floating one")
    for k, c in enumerate(series, start=1):
        if c.shape != x.shape:
            raise ValueError(f"series[{i}]: order {k} has shape {tuple(c.shape)}, its primal {tuple(x.shape)}")
    terms = [c.to(x.dtype) / (float(math.factorial(k)) if derivatives else 1) for k, c in enumerate(series, start=1)]
    while terms and not terms[-1].requires_grad and not bool(terms[-1].any()):
        terms.pop()
    return Jet(torch.stack([x, *terms])) if terms else None


class Run:
    """One run of a program over rows: what the rules see as `at`.

    Attributes:
        series: the algebra of rows.
        op: the operator at this place.
        node: its place in the graph.
        kinks: where piecewise operations end the piece that the curve starts on.
    """

    def __init__(self, series: Taylor, *, ties: str = "right", fallback: str | None = None, horizon: float = 0.0) -> None:
        """Over this algebra. Kinks are looked for up to `horizon` along the curve; 0 does not look."""
        if ties not in ("right", "torch"):
            raise ValueError(f"ties is 'right' or 'torch', got {ties!r}")
        if fallback not in (None, "nested"):
            raise ValueError(f"fallback is None or 'nested', got {fallback!r}")
        self.series, self.ties, self.fallback = series, ties, fallback
        self.kinks = Kinks(horizon)
        self.op: Any = None
        self.node: fx.Node | None = None

    def of(self, program: Program, values: Mapping[str, Any], moved: Mapping[str, Tensor] | None = None) -> Any:
        """The program's output, given a jet or a tensor for every placeholder.

        Args:
            program: what to run.
            values: by placeholder.
            moved: by node, directions in which their values begin to move.
        """
        lines = moved or {}

        def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = self.visit(node, args, kwargs)
            return Jet(torch.stack([value, lines[node.name]])) if node.name in lines else value

        return interpret(program.graph, values, visit)

    def visit(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of one node, by its rule where an argument moves."""
        target: Any = node.target
        if not (moves(args) or moves(tuple(kwargs.values()))):
            return target(*args, **kwargs)
        if isinstance(target, Composite):  # what the model spelled out, as it spelled it
            names = [n.name for n in target.graph.find_nodes(op="placeholder")]
            return interpret(target.graph, dict(zip(names, args, strict=True)), self.visit)
        self.op, self.node, name = target, node, op_name(node)
        rule = JET_RULES.get(name)
        if rule is not None:
            return rule(self, *args, **kwargs)
        if self.fallback == "nested":
            from .nested import nested

            return nested(self, *args, **kwargs)
        raise ValueError(
            f"no jet rule for {self.where}. Add one with @termwise.functions.jet_rule({name!r}), or pass fallback='nested' to "
            "differentiate this operation by nested forward passes"
        )

    def over(self, series: Taylor) -> Run:
        """The same place over another algebra."""
        other = Run(series, ties=self.ties, fallback=self.fallback)
        other.op, other.node = self.op, self.node
        return other

    @property
    def where(self) -> str:
        """The operator's name, module path and source line, for messages."""
        if self.node is None:
            return ""
        return describe(self.node) if "info" in self.node.meta else op_name(self.node)

    # -- what rules ask for -------------------------------------------------------------------------------------------

    def by_rows(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The operator on every row at once; jets with fewer rows get zeros."""
        n = max(len(a.rows) for a in _flat(args) if isinstance(a, Jet))
        axes = _map(args, lambda a: 0 if isinstance(a, Jet) else None)
        rows = _map(args, lambda a: padded(a.rows, n) if isinstance(a, Jet) else a)
        found = torch.vmap(lambda *a: op(*a, **kwargs), in_dims=axes)(*rows)
        return type(found)(Jet(f) for f in found) if isinstance(found, (tuple, list)) else Jet(found)

    def positive(self, x: Jet) -> Tensor:
        """Where the value is above 0; where it is 0, whether it will be (its first coefficient that is not 0)."""
        positive = x.value > 0
        if self.ties == "right" and type(self.series) is Taylor and bool((zero := x.value == 0).any()):
            first = x.value
            for row in x.rows[1:]:
                first = torch.where(first == 0, row, first)
            if bool((first[zero] != 0).any()):
                self.kinks.started_on_one(self.where)
            return first > 0
        return positive

    def kink(self, x: Jet, other_than: Tensor | None = None) -> None:
        """Say that the branch ends where x is 0; `other_than`: entries of the last axis that are 0 always."""
        if type(self.series) is Taylor:
            self.kinks.see(x.rows, lambda: self.where, other_than)

    @property
    def overload(self) -> str:
        """The operator's overload: "value" of scatter.value."""
        return str(getattr(self.op, "_overloadname", ""))

    def unwatched(self) -> None:
        """Say that this operation changes its branch somewhere, which is not looked for."""
        self.kinks.unseen(self.where)

    def warn(self) -> None:
        """Warn when the curve starts on a kink."""
        if self.kinks.start:
            warnings.warn(
                f"the curve starts on a kink of {self.kinks.start}: the coefficients are those of the side it goes to",
                UserWarning,
                stacklevel=3,
            )


def _flat(value: Any) -> list[Any]:
    return [x for v in value for x in _flat(v)] if isinstance(value, (tuple, list)) else [value]


def _map(value: Any, f: Callable[[Any], Any]) -> Any:
    return type(value)(_map(v, f) for v in value) if isinstance(value, (tuple, list)) else f(value)
