r"""Where the residual branches of a recorded network are, and the same network with a switch at each of them.

    z_k = z_(k-1) + s_k g_k(z_(k-1)),      k = 1 ... n,      s = (1, ..., 1) is the network itself

A branch is what an addition adds to the running stream: one operand carries an earlier value on (as it is, or through affine
operations: the projection of a ResNet's shortcut), the other is computed from that value. Additions within a branch are its own
business. Between blocks the stream may be pooled, projected or rectified; where it is normalised (post-norm) there is no tower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from termwise.core.capture import arguments, capture
from termwise.core.interpret import evaluate
from termwise.core.program import Placeholder, Program, describe, info, op_name

from .jet import Run
from .jet_rules import Jet
from .taylor import Taylor

__all__ = ["Block", "Tower", "find_blocks"]

aten = torch.ops.aten

CARRY = {
    "linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool2d",
    "view", "reshape", "_unsafe_view", "transpose", "permute", "flatten", "unflatten", "unsqueeze", "squeeze", "slice", "select",
    "expand", "clone", "contiguous", "alias", "_to_copy", "to", "type_as", "pad", "constant_pad_nd", "cat", "add", "sub", "mul",
    "div", "dropout", "roll", "mean",
}  # fmt: skip
"""Affine in their only operand that moves: a shortcut goes through them."""

PROJECTIONS = {"linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution"}

NORMS = {"layer_norm", "native_layer_norm", "rms_norm", "group_norm", "instance_norm"}

# A branch times its switch, or a whole axis of switched networks, may have other strides than the branch had.
SAFER = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


@dataclass(frozen=True)
class Block:
    """One residual branch.

    Attributes:
        name: module path of the branch's last operation, made unique; `block_k` where there is none.
        add: node of the addition.
        branch: which of its operands is the branch.
        base: node of the value that the branch is computed from and that the other operand carries on.
    """

    name: str
    add: str
    branch: int
    base: str


def find_blocks(program: Program) -> list[Block]:
    """The residual branches of a program, in order of execution.

    Raises:
        ValueError: where there are none, or the stream is normalised between two of them (post-norm).
    """
    before: dict[fx.Node, set[fx.Node]] = {}
    found: dict[fx.Node, tuple[fx.Node, fx.Node, int]] = {}
    for node in program.graph.nodes:
        before[node] = {m for a in _moving(node) for m in (a, *before[a])}
        if (
            node.op == "call_function"
            and op_name(node) == "add"
            and len(_moving(node)) == len(node.args) == 2
            and not node.kwargs
        ):
            sides = [(_shared(node.args[1 - i], node.args[i], before, found), i) for i in (0, 1)]
            (_, base), branch = min(sides, key=lambda side: side[0][0])
            if base is not None and sides[0][0][0] != sides[1][0][0]:
                found[node] = (base, node.args[branch], branch)
    inside = {
        add for add in found for base, end, _ in found.values() if base in before[add] and (add is end or add in before[end])
    }
    outer = {add: how for add, how in found.items() if add not in inside}
    if not outer:
        adds = sum(op_name(n) == "add" and info(n).active for n in program.nodes)
        raise ValueError(
            f"{type(program.model).__name__} has no residual branch: in none of its {adds} additions is one operand "
            "computed from what the other carries on, x + g(x). Give a model with skip connections (an element-wise "
            "x + tanh(x) is recorded as one function)"
        )
    _refuse_post_norm(program, outer)
    names = [info(end).path for _, end, _ in outer.values()]
    names = [f"block_{k}" if not name else name if names.count(name) == 1 else f"{name}#{k}" for k, name in enumerate(names, 1)]
    return [Block(name, add.name, branch, base.name) for name, (add, (base, _, branch)) in zip(names, outer.items(), strict=True)]


def _moving(node: fx.Node) -> list[fx.Node]:
    """Operands that depend on the inputs."""
    return [n for n in node.all_input_nodes if info(n).active] if node.op == "call_function" and info(node).role != "cut" else []


def _carried(node: fx.Node, found: Mapping[fx.Node, tuple[fx.Node, fx.Node, int]]) -> list[fx.Node]:
    """A value and those that it carries on, the nearest first."""
    chain = [node]
    while True:
        moving = _moving(node)
        if node in found:
            node = node.args[1 - found[node][2]]  # type: ignore[assignment]
        elif len(moving) == 1 and op_name(node) in CARRY:
            node = moving[0]
        else:
            return chain
        chain.append(node)


def _shared(
    skip: Any, branch: Any, before: Mapping[fx.Node, set[fx.Node]], found: Mapping[fx.Node, tuple[fx.Node, fx.Node, int]]
) -> tuple[float, fx.Node | None]:
    """How many steps `skip` is away from a value that `branch` is computed from, and that value."""
    return next(((i, n) for i, n in enumerate(_carried(skip, found)) if n in before[branch]), (float("inf"), None))


def _refuse_post_norm(program: Program, outer: Mapping[fx.Node, tuple[fx.Node, fx.Node, int]]) -> None:
    """Between two blocks the stream must not be normalised; a norm before a projection to another width opens a new stage."""
    for base, _, _ in outer.values():
        node, norm, projected = base, None, False
        while node not in outer and len(_moving(node)) == 1:
            projected |= op_name(node) in PROJECTIONS
            norm = node if op_name(node) in NORMS and not projected else norm
            (node,) = _moving(node)
        if norm is not None and node in outer:
            raise ValueError(
                f"{type(program.model).__name__} normalises the stream between its blocks ({describe(norm)}): in a post-norm "
                "network no value runs on beside the branches, so there is no tower of the form z + g(z) to expand. Pre-norm "
                "networks, with the norm inside the branch, are expanded"
            )


class Tower:
    """A call of a model with a switch at every residual branch.

    Attributes:
        blocks: its branches.
        program: the recording, in which every branch is multiplied by its entry of one more input, `switches`.
        values: of the other placeholders.
        recorded: the recording as it was.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        """Record the model on these inputs."""
        model, positional, keywords = arguments(model, inputs, kwargs)
        self.recorded = capture(model, *positional, kwargs=keywords, select=select)
        self.blocks = find_blocks(self.recorded)
        self.program = switched(self.recorded, self.blocks)
        tensors = self.recorded.tensors(*positional, kwargs=keywords)
        for tensor in tensors:
            if not tensor.numel():
                raise ValueError("an input is empty: there is nothing to take apart")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError("an input is not finite")
        self.values = self.recorded.bind(tensors)

    @property
    def names(self) -> list[str]:
        """Of the blocks."""
        return [b.name for b in self.blocks]

    def switches(self, value: float = 1.0) -> Tensor:
        """(n,), all alike, in the dtype of the branches."""
        like = next(v for n, v in self.values.items() if v.is_floating_point() or v.is_complex())
        return like.new_full((len(self.blocks),), value)

    def whole(self) -> Tensor:
        """The model's own value, from the recording as it was."""
        with torch.no_grad():
            found: Tensor = evaluate(self.recorded.graph, self.values)
        return found

    def at(self, switches: Tensor) -> Tensor:
        """The output with its branches multiplied.

        Args:
            switches: (n,), or (rows, n) for many at once.

        Returns:
            The output, S, or (rows, *S).
        """

        def one(row: Tensor) -> Tensor:
            value: Tensor = evaluate(self.program.graph, {**self.values, "switches": row})
            return value

        with torch.no_grad():
            if switches.ndim == 1:
                return one(switches)
            with sdpa_kernel(SDPBackend.MATH):  # the fused ones would run the networks one by one
                return torch.vmap(one)(switches)

    def along(self, direction: Tensor, order: int, horizon: float = 0.0) -> tuple[Tensor, Run]:
        """Rows of the series of the output at switches t * direction, and what the run saw; rows that are missing are zero."""
        run = Run(Taylor(order), horizon=horizon)
        line = Jet(torch.stack([torch.zeros_like(direction), direction]))
        with torch.no_grad():
            out = run.of(self.program, {**self.values, "switches": line})
        return (out.rows if isinstance(out, Jet) else out.unsqueeze(0)), run


def switched(program: Program, blocks: Sequence[Block]) -> Program:
    """The program with one more input, `switches` (n,), whose entries multiply the branches."""
    graph, seen = fx.Graph(), dict[fx.Node, fx.Node]()
    branches = {b.add: (k, b.branch) for k, b in enumerate(blocks)}
    switches: fx.Node | None = None
    for node in program.graph.nodes:
        if node.op != "placeholder" and switches is None:
            switches = graph.placeholder("switches")
            switches.meta["info"] = copy.copy(info(program.output))
        new = seen[node] = graph.node_copy(node, seen.__getitem__)
        if node.target in SAFER:
            new.target = SAFER[node.target]
        if node.name in branches:
            k, position = branches[node.name]
            with graph.inserting_before(new):
                switch = graph.call_function(aten.select.int, (switches, 0, k))
                scaled = graph.call_function(aten.mul.Tensor, (new.args[position], switch))
            for made in (switch, scaled):
                made.meta["info"] = info(node)
            new.args = (*new.args[:position], scaled, *new.args[position + 1 :])
    made = copy.copy(program)
    made.graph, made.derived = graph, {}
    made.placeholders = {**program.placeholders, "switches": Placeholder("input", "switches")}
    return made
