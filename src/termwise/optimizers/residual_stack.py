r"""A recorded network cut along its residual stream: what lies before, the layers, what lies behind.

    p_1 = stem(x),      p_(l+1) = f_l(p_l) = F_l(p_l, p_l),      output = head(p_1, ..., p_(n+1))

Each layer becomes a graph F_l(stream, skip) of two inputs, so that one pass knows J_g (through the branch, `stream`) from J_r
(around it, `skip`). Where the branches are is `functions.residual_blocks`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, fx

from termwise.core.program import Program, describe, info, op_name
from termwise.functions.residual_blocks import SAFER, Block, find_blocks

__all__ = ["Layer", "Stack", "call", "stack_of"]

UNCHANGED = {"clone", "alias", "contiguous", "dropout"}
"""Pass a value on as it is (models are recorded in eval mode)."""

ELEMENTWISE = UNCHANGED | {
    "add", "sub", "mul", "div", "neg", "to", "_to_copy", "type_as", "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "tanh",
    "sigmoid", "softplus", "hardtanh", "clamp",
}  # fmt: skip
"""Of one operand that moves: the Jacobian is diagonal."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One step of the stream.

    Attributes:
        graph: of placeholders stream, skip and `free`, with the next value of the stream as its output.
        free: nodes from outside that it reads: weights, constants, and what the stem made.
        carry: the Jacobian around the branch: "identity", "diagonal" or "general".
        key: layers with equal keys are the same operations on other tensors of the same shapes.
        blocks: names of the branches in it.
    """

    graph: fx.Graph
    free: tuple[fx.Node, ...]
    carry: str
    key: tuple[Any, ...]
    blocks: tuple[str, ...]


class Stack:
    """The cut of a program.

    Attributes:
        program: what was cut.
        points: nodes of the stream, p_1 ... p_(n+1).
        layers: n of them.
        inside: every node of a layer.
        groups: numbers of layers that are run as one, by vmap.
    """

    def __init__(self, program: Program) -> None:
        """Find the branches and cut between them."""
        self.program = program
        blocks, named = find_blocks(program), {n.name: n for n in program.graph.nodes}
        place = {n: i for i, n in enumerate(program.graph.nodes)}
        bases = sorted({named[b.base] for b in blocks}, key=place.__getitem__)
        self.points = [*bases, named[blocks[-1].add]]
        moved = {self.points[0]}
        for node in program.graph.nodes:
            if any(a in moved for a in node.all_input_nodes):
                moved.add(node)
        owner = {p: i for i, p in enumerate(self.points)}
        adds = {named[b.add]: b for b in blocks}
        self.layers: list[Layer] = []
        for i, (start, end) in enumerate(pairwise(self.points)):
            region = self._region(start, end, moved, owner, adds)
            owner |= dict.fromkeys(region, i)
            self.layers.append(_layer(sorted(region, key=place.__getitem__), start, end, adds))
        self.inside = {n for n in owner if n is not self.points[0]}
        self._check_head(moved)
        keys: dict[tuple[Any, ...], list[int]] = {}
        for i, layer in enumerate(self.layers):
            keys.setdefault(layer.key if layer.carry != "general" else (i,), []).append(i)
        self.groups = list(keys.values())

    def _region(
        self, start: fx.Node, end: fx.Node, moved: set[fx.Node], owner: Mapping[fx.Node, int], adds: Mapping[fx.Node, Block]
    ) -> set[fx.Node]:
        """The nodes between two points of the stream, with `end`."""
        region, stack, met = {end}, [end], False
        while stack:
            for a in stack.pop().all_input_nodes:
                met |= a is start
                if a in moved and a not in owner and a not in region:
                    region.add(a)
                    stack.append(a)
                elif a in owner and a not in (start, end) and _differentiable(a):
                    raise ValueError(
                        f"{self._name} has no single stack: between {describe(start)} and {describe(end)} the value of "
                        f"{describe(a)} is read, which lies further back. Every layer may read its own input, and what was "
                        "made before the first of them"
                    )
        if not met or not any(b.base == start.name and n in region for n, b in adds.items()):
            raise ValueError(
                f"{self._name} has more than one stack: {describe(end)} does not continue {describe(start)}. Highway "
                "backpropagation follows one residual stream (of an encoder with a decoder, take one of them)"
            )
        return region

    def _check_head(self, moved: set[fx.Node]) -> None:
        """Behind the stack only values of the stream may be read."""
        for node in moved - self.inside:
            for a in node.all_input_nodes:
                if a in self.inside and a not in self.points and _differentiable(a):
                    raise ValueError(
                        f"{self._name}: {describe(node)} reads the inside of a layer ({describe(a)}): behind the stack only "
                        "values of the residual stream may be used"
                    )

    @property
    def _name(self) -> str:
        return type(self.program.model).__name__


def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A node by its own operator, whatever the strides: with gradients on, kernels may leave others than were recorded."""
    return SAFER.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]


def stack_of(program: Program) -> Stack:
    """The cut of a program, made once.

    Raises:
        ValueError: where there are no residual branches, more than one stack, or layers that read further back.
    """
    if "stack" not in program.derived:
        program.derived["stack"] = Stack(program)
    found: Stack = program.derived["stack"]
    return found


def _differentiable(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point() if info(node).active else False


def _layer(region: Sequence[fx.Node], start: fx.Node, end: fx.Node, adds: Mapping[fx.Node, Block]) -> Layer:
    """Copy a region, with the way around its first branch reading `skip` and everything else `stream`."""
    own = [n for n in region if n in adds]
    first, beside = own[0], 1 - adds[own[0]].branch
    around, behind = _way(first.args[beside], start, adds, region), _way(end, first, adds, region)
    graph = fx.Graph()
    stream, skip = graph.placeholder("stream"), graph.placeholder("skip")
    inner = set(region)
    free = tuple(dict.fromkeys(a for n in region for a in n.all_input_nodes if a not in inner and a is not start))
    seen: dict[fx.Node, fx.Node] = {a: graph.placeholder(a.name) for a in free}
    for node in region:
        seen[start] = skip if around and node in around else stream
        new = seen[node] = graph.node_copy(node, seen.__getitem__)
        new.target = SAFER.get(node.target, node.target)
        if node is first and not around:
            new.args = (skip, new.args[1]) if beside == 0 else (new.args[0], skip)
    graph.output(seen[end])
    return Layer(graph, free, _carry(around, behind, start, end, adds), _key(graph, free), tuple(adds[n].name for n in own))


def _way(node: Any, start: fx.Node, adds: Mapping[fx.Node, Block], region: Sequence[fx.Node]) -> list[fx.Node] | None:
    """The nodes from `node` back to `start` (exclusive) where one operand carries on; None where several do."""
    chain, inner = [], {*region, start}
    while node is not start:
        chain.append(node)
        moving = [a for a in node.all_input_nodes if a in inner and info(a).active]
        if node in adds:
            node = node.args[1 - adds[node].branch]
        elif len(moving) == 1:
            (node,) = moving
        else:
            return None
    return chain


def _carry(
    around: list[fx.Node] | None, behind: list[fx.Node] | None, start: fx.Node, end: fx.Node, adds: Mapping[fx.Node, Block]
) -> str:
    """What kind of Jacobian the way around the branches has."""
    if around is None or behind is None:
        return "general"
    ops = {op_name(n) for n in (*around, *behind) if n not in adds}
    shape = _shape(end)
    if not ops <= ELEMENTWISE or any(_shape(n) != shape for n in (start, *around, *behind)):
        return "general"
    return "identity" if ops <= UNCHANGED else "diagonal"


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return str((*value.shape, value.dtype)) if isinstance(value, Tensor) else ""


def _key(graph: fx.Graph, free: Sequence[fx.Node]) -> tuple[Any, ...]:
    """The operations of a layer without the names of its tensors."""
    number = {n: i for i, n in enumerate(graph.nodes)}
    numbered: list[Any] = [_shape(a) or a.name for a in free]
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{number[n]}")
            numbered.append((str(node.target), repr(args), repr(kwargs), _shape(node)))
    return tuple(numbered)
