"""One node for what a model wrote in several: the recognised operations, kept as the model spelled them.

A Composite runs the very primitives it replaces, so its value is the model's to the bit; a rule sees its `kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Composite", "fuse", "lifted"]


class Composite:
    """A recognised sub-graph as an operator.

    Attributes:
        kind: what it is, as the field names it ("gelu" and its kin are "pointwise"; "rms_norm", "rotary").
        constant: the same function with the values of its normalisers held constant under differentiation.
    """

    def __init__(self, kind: str, graph: fx.Graph, held: Sequence[str] = ()) -> None:
        """Compile the sub-graph, once as it is and once with the nodes named in `held` detached."""
        self.kind = self.__name__ = self.__qualname__ = kind
        self.__module__ = __name__
        self.graph, self._held = graph, tuple(held)
        self._run = fx.GraphModule({}, graph)
        detached = fx.Graph()
        seen: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            seen[node] = detached.node_copy(node, seen.__getitem__)
            if node.name in held:
                seen[node] = detached.call_function(Tensor.detach, (seen[node],))
        self.constant = fx.GraphModule({}, detached)

    def __call__(self, *args: Any) -> Any:
        """The value of the sub-graph."""
        return self._run(*args)

    def lift(self, dtype: torch.dtype) -> Composite:
        """The same, computed in `dtype` wherever it asks for a narrower one."""
        graph = fx.Graph()
        seen: dict[fx.Node, Any] = {}
        held = []
        for node in self.graph.nodes:
            new = seen[node] = graph.node_copy(node, seen.__getitem__)
            new.args, new.kwargs = lifted((new.args, new.kwargs), dtype)
            if isinstance(new.target, Composite):
                new.target = new.target.lift(dtype)
            if node.name in self._held:
                held.append(new.name)
        return Composite(self.kind, graph, held)

    def __repr__(self) -> str:
        """Its kind and the primitives in it."""
        return f"<{self.kind} of {sum(n.op == 'call_function' for n in self.graph.nodes)} operations>"


def lifted(args: Any, dtype: torch.dtype) -> Any:
    """Nested arguments with every floating dtype below `dtype` replaced by it."""
    if isinstance(args, torch.dtype):
        narrower = args.is_floating_point and torch.finfo(args).bits < torch.finfo(dtype).bits
        return dtype if narrower else args
    if isinstance(args, (tuple, list)):
        return type(args)(lifted(a, dtype) for a in args)
    if isinstance(args, dict):
        return {k: lifted(v, dtype) for k, v in args.items()}
    return args


def fuse(graph: fx.Graph, region: Sequence[fx.Node], kind: str, held: Sequence[fx.Node] = ()) -> fx.Node | None:
    """Replace a region by one Composite node; None, and nothing done, where an inner value is used elsewhere.

    Args:
        graph: the graph to change.
        region: nodes in order of execution; the last is the region's value.
        kind: what the region is.
        held: nodes of the region that a relevance rule holds constant.

    Returns:
        The new node. Its arguments are the values the region took from outside, in order of first use.
    """
    inside, last = set(region), region[-1]
    if any(user not in inside for node in region[:-1] for user in node.users):
        return None
    inner = fx.Graph()
    seen: dict[fx.Node, fx.Node] = {}
    outside: list[fx.Node] = []

    def argument(node: fx.Node) -> fx.Node:
        if node not in seen:
            outside.append(node)
            seen[node] = inner.placeholder(f"x{len(outside)}")
        return seen[node]

    # placeholders come first in a graph, so collect what comes from outside before copying
    for node in region:
        for used in node.all_input_nodes:
            if used not in inside:
                argument(used)
    for node in region:
        seen[node] = inner.node_copy(node, argument)
    inner.output(seen[last])
    with graph.inserting_after(last):
        composite = Composite(kind, inner, [seen[n].name for n in held])
        new = graph.create_node("call_function", composite, tuple(outside), name=f"{kind}_{last.name}")
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    for node in reversed(region):
        graph.erase_node(node)
    return new
