"""Run a program node by node, carrying plain or richer values: one of the two ways to run a transform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

__all__ = ["evaluate", "interpret"]

Visit = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def evaluate(graph: fx.Graph, values: Mapping[str, Any]) -> Any:
    """The trivial interpreter: every node is its own operator.

    Args:
        graph: a Program's graph.
        values: one value per placeholder name.

    Returns:
        The value of the output node.
    """
    return interpret(graph, values, lambda node, args, kwargs: node.target(*args, **kwargs))  # type: ignore[operator]


def interpret(graph: fx.Graph, values: Mapping[str, Any], visit: Visit) -> Any:
    """Interpret differently: `visit(node, args, kwargs)` gives each operation's value from its arguments' values.

    A value is dropped after its last use, so that memory stays that of a forward pass.
    """
    last_use = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    expired: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last_use.items():
        expired.setdefault(node, []).append(used)

    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = values[node.name]
        elif node.op == "output":
            return fx.map_arg(node.args[0], env.__getitem__)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            try:
                env[node] = visit(node, args, kwargs)
            except IndexError as problem:
                from .program import describe

                hint = "do ids lie within the table that they look up?"
                raise ValueError(f"{describe(node)} raises IndexError: {problem}: {hint}") from problem
        for used in expired.get(node, ()):
            del env[used]
    raise ValueError("the graph has no output")
