"""Relevance a second time: a walk back through the recorded operations by the slow definitions of `tests/predictions`.

    c = R / y at every value;      R_x += what the operation's definition gives x for this c

No rule, no rewrite, no autograd and no ledger is used: only the recording itself, with its gates and patterns, is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from tests.predictions import definitions
from tests.predictions.definitions import DEFINITIONS, TERMS, Case, Definition, is_float
from torch import Tensor, fx

from termwise.core.interpret import interpret
from termwise.core.program import Program, info, op_name
from termwise.predictions.rules.linear import SUMS

__all__ = ["TWINS", "Found", "cancels", "walk"]

SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
AFFINE = ("linear", "addmm", "mm", "bmm", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "convolution")
DIFFERENCES = (*SUMS, "add", "sub", "rsub", "diff", "pointwise")
TINY = 1e-10
HELD = {**dict.fromkeys(SOFTMAX, definitions.softmax_constant), "scaled_dot_product_attention": definitions.attention_with_constant_weights,
        **dict.fromkeys(("log_softmax", "logsumexp"), definitions.logarithmic_constant)}  # fmt: skip


@dataclass(frozen=True)
class Twin:
    """A rule set in definitions.

    Attributes:
        affine: of an affine operation of one activation; the table's when None.
        damps: what is added to the sizes of values of affine operations of two activations.
        held: whether attention weights are constants.
        gates: whether gates are.
        splits: whether batch norm is folded into what stands before it, which is not done here.
        convolutions: whether `affine` is for convolutions only.
    """

    affine: Definition | None = None
    damps: float = 0.0
    held: bool = False
    gates: bool = False
    splits: bool = False
    convolutions: bool = False


TWINS = {
    "attnlrp": Twin(),
    "zero": Twin(held=True),
    "cp-lrp": Twin(held=True, gates=True),
    "epsilon": Twin(definitions.epsilon(1e-6), damps=1e-6, splits=True),
    "gamma": Twin(definitions.gamma(0.25), splits=True),
    "z+": Twin(definitions.zplus, splits=True),
    "alpha-beta": Twin(definitions.affine_rule(TERMS["alpha-beta"](2, 1)), splits=True),
    "default": Twin(definitions.gamma(0.25), splits=True, convolutions=True),
}
"""Rule sets of `termwise.predictions`, in definitions."""


@dataclass
class Found:
    """Relevance of the inputs by argument, and the sums over constants and losses."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    constants: float = 0.0
    lost: float = 0.0


def walk(program: Program, tensors: list[Tensor], start: Callable[[Tensor], Tensor], rules: str) -> Found | None:
    """Relevance of one sample; None where two equal numbers leave 0, in which R is 0 whatever the ratio was, or next to nothing,
    of which a definition that subtracts has no digits.

    Args:
        program: what was recorded.
        tensors: its inputs, a batch of one, in float64.
        start: from the output to what is explained, linear.
        rules: a key of `TWINS`.
    """
    twin, found = TWINS[rules], Found()
    if rules == "default" and any(
        op_name(n) in (*SOFTMAX, "scaled_dot_product_attention") for n in program.nodes if info(n).active
    ):
        twin = Twin()
    held = _held(program) if twin.held else set()
    values = _values(program, tensors)

    def active(node: Any) -> bool:
        return isinstance(node, fx.Node) and info(node).active and node not in held

    output = values[program.output].detach().requires_grad_()
    (ratio,) = torch.autograd.grad(start(output).sum(), output)
    if not active(program.output):
        return Found({}, (values[program.output] * ratio).sum().item())
    arrived: dict[fx.Node, Any] = {program.output: values[program.output] * ratio}

    def send(node: fx.Node, relevance: Tensor, element: int | None = None) -> None:
        if element is None:
            arrived[node] = arrived.get(node, 0) + relevance
        else:
            several = arrived.setdefault(node, {})
            several[element] = several.get(element, 0) + relevance

    for node in reversed(program.graph.nodes):
        if node not in arrived:
            continue
        if node.op == "placeholder" or info(node).role == "cut":
            name = info(node).origin
            relevance = arrived[node].sum(-1) if info(node).role == "cut" else arrived[node]
            found.inputs[name] = found.inputs.get(name, 0) + relevance
            continue
        if op_name(node) == "getitem":
            send(node.args[0], arrived[node], node.args[1])
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if op_name(node) in DIFFERENCES and _cancels(node, values[node], args, kwargs):
            return None
        if _next_to_nothing(values[node]):
            return None
        positions = [
            i
            for i, a in enumerate(node.args)
            if i in info(node).held or (twin.gates and not info(node).held and i in info(node).gates)
        ]
        nodes = pytree.tree_leaves((tuple(None if i in positions else a for i, a in enumerate(node.args)), dict(node.kwargs)))
        leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
        operands = [n for n, leaf in zip(nodes, leaves, strict=True) if is_float(leaf)]
        case = Case(node.target, tuple(args), dict(kwargs), tuple(i for i, n in enumerate(operands) if active(n)))
        relevance = _definition(case, twin)(_apart(case), _ratio(values[node], arrived[node]))
        for i, part in zip(case.active, relevance.inputs, strict=True):
            send(operands[i], part.reshape(case.tensors[i].shape))
        found.constants += float(relevance.constants)
        found.lost += float(relevance.lost)
    return found


def _cancels(node: fx.Node, value: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether a 0 among the values is one number less an equal one: of other numbers there is no 0."""
    if op_name(node) == "pointwise":  # f(x) = 0 where f(0) is not
        return bool(((value == 0) & (node.target(torch.zeros_like(args[0])) != 0)).any())  # type: ignore[operator]
    others = [v * (1.5 + torch.arange(v.numel()).sin().reshape(v.shape)) if is_float(v) and v.ndim else v for v in args]
    return bool(((value == 0) & (node.target(*others, **kwargs) != 0)).any())  # type: ignore[operator]


def _next_to_nothing(value: Any) -> bool:
    """Whether a number is no 0 and has no digits, as what rounding leaves of a sum that is 0."""
    return any(bool(((v != 0) & (v.abs() < TINY)).any()) for v in pytree.tree_leaves(value) if is_float(v))


def cancels(program: Program, tensors: list[Tensor]) -> bool:
    """Whether two equal numbers leave 0 anywhere, or next to nothing."""
    values = _values(program, tensors)
    for node in program.nodes:
        if info(node).active and _next_to_nothing(values[node]):
            return True
        if info(node).active and op_name(node) in DIFFERENCES:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if _cancels(node, values[node], args, kwargs):
                return True
    return False


def _values(program: Program, tensors: list[Tensor]) -> dict[fx.Node, Any]:
    """The value of every node."""
    found: dict[fx.Node, Any] = {}

    def visit(node: fx.Node, args: Any, kwargs: Any) -> Any:
        found[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return found[node]

    bound = program.bind(tensors)
    with torch.no_grad():
        interpret(program.graph, bound, visit)
    return found | {node: bound[node.name] for node in program.graph.find_nodes(op="placeholder")}


def _held(program: Program) -> set[fx.Node]:
    """Attention weights, and what is made of nothing else that moves."""
    held: set[fx.Node] = set()
    for node in program.nodes:
        moving = [a for a in node.all_input_nodes if info(a).active]
        if info(node).active and (op_name(node) in SOFTMAX or (moving and held.issuperset(moving))):
            held.add(node)
    return held


def _definition(case: Case, twin: Twin) -> Definition:
    """That of the rule set for this operation."""
    name = case.name
    first = 1 if name.startswith("addmm") else 0
    affine = twin.affine is not None and name in AFFINE and case.active == (first,)
    if affine and (name.startswith("conv") or not twin.convolutions):
        return twin.affine  # type: ignore[return-value]
    if twin.damps and name in AFFINE:
        return definitions.damped(DEFINITIONS[name], twin.damps)
    if twin.held and name in HELD:
        return partial(HELD[name])
    if twin.gates and name == "glu":
        return definitions.gated_by_constant
    return DEFINITIONS[name]


def _apart(case: Case) -> Case:
    """Entries that are alike (zeros behind a ReLU, copies) told apart for the definition of a winner, by next to nothing."""
    if DEFINITIONS.get(case.name) is not definitions.winners:
        return case
    numbers = [torch.arange(1, t.numel() + 1, dtype=t.dtype).reshape(t.shape) for t in case.tensors]
    tensors = [torch.where(t == 0, 1e-300 * n, t * (1 + 1e-13 * n)) for t, n in zip(case.tensors, numbers, strict=True)]
    args, kwargs = case.arguments(tensors)
    return Case(case.op, args, kwargs, case.active)


def _ratio(value: Any, relevance: Any) -> Tensor:
    """R / y over every floating value of an operation, in one vector; 0 where y is 0, where there is no relevance."""
    several = list(value) if isinstance(value, (tuple, list)) else [value]
    given = [relevance.get(i) for i in range(len(several))] if isinstance(relevance, dict) else [relevance]
    parts = [
        torch.zeros_like(v) if r is None else torch.where(v == 0, 0, r / v)
        for v, r in zip(several, given, strict=True)
        if is_float(v)
    ]
    return torch.cat([part.reshape(-1) for part in parts])
