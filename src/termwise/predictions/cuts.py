r"""A program from one module on, or up to one: the value that a module hands on becomes a leaf, or the output.

    input --- before --- [module] ===> after ===> output          at: relevance of what leaves the module
                     \------- bypass -------/

Behind the leaf everything is as it was; before it nothing is on the way any more but what bypasses the module. The
program up to the module, started with the relevance found there, gives the rest: both together are the whole explanation.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from termwise.core.program import Info, Program, info, op_name

__all__ = ["leaving", "only_outlet", "outlets", "section"]


def outlets(program: Program, path: str) -> dict[str, str]:
    """The values that a module hands on to what comes after it.

    Args:
        program: a recording.
        path: of a module, "encoder.layer.3"; of one that is called several times "head#2" is the second call.

    Returns:
        Name of the node -> name of the part, "at:<path>"; a module that hands on several values has "at:<path>[1]" too.

    Raises:
        ValueError: for a path that is no module's (the nearest is suggested), a module that is called several times, one
            that leaves no operation behind, one that does not depend on an input.
    """
    if not isinstance(path, str):
        raise TypeError(f"a module is named by its path, as 'encoder.layer.3'; got {path!r}")
    name, _, number = path.partition("#")
    if not name:
        raise ValueError(f"name a module: the output itself is what {path!r} would be")
    calls = _calls(program, name)
    if not calls:
        raise ValueError(_unknown(program, name))
    if not number and len(calls) > 1:
        raise ValueError(f"{name!r} is called {len(calls)} times: say which call, {name}#1 to {name}#{len(calls)}")
    if number and not (number.isdecimal() and 1 <= int(number) <= len(calls)):
        raise ValueError(f"{path!r}: {name!r} is called {len(calls)} times, so the number lies in 1 to {len(calls)}")
    inside = calls[int(number or 1) - 1]
    for node in list(inside):  # the several values of one operation belong to it
        inside.update(user for user in node.users if op_name(user) == "getitem")
    found = [
        node
        for node in program.nodes
        if node in inside
        and info(node).active
        and isinstance(node.meta.get("val"), Tensor)
        and (
            node is program.output or any(user not in inside and info(user).active for user in node.users if "info" in user.meta)
        )
    ]
    if not found:
        raise ValueError(f"nothing that {path!r} hands on depends on an input and leads to the output")
    return {node.name: f"at:{path}" + (f"[{i}]" if i else "") for i, node in enumerate(found)}


def only_outlet(program: Program, path: str) -> str:
    """The node of a module's one value.

    Raises:
        ValueError: as `outlets`; also for a module that hands on several.
    """
    found = list(outlets(program, path))
    if len(found) > 1:
        raise ValueError(f"{path!r} hands on {len(found)} values that lead to the output: name one of the modules in it")
    return found[0]


def section(program: Program, leaves: Mapping[str, str] | Iterable[str], end: str | None) -> Program:
    """A part of a program.

    Args:
        program: left as it is.
        leaves: names of nodes whose values are leaves.
        end: name of the node that is the output; the program's own when None.

    Returns:
        The same program with another output. A leaf has the name of the node whose value it is, and the role "cut"; what
        leads to the output through leaves only has no part in it, and is constant.

    Raises:
        ValueError: when a leaf does not lead to the end.
    """
    leaves = set(leaves)
    graph = fx.Graph()
    seen: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            break
        new = seen[node] = graph.create_node(
            node.op,
            node.target,
            fx.map_arg(node.args, seen.__getitem__),
            fx.map_arg(node.kwargs, seen.__getitem__),
            name=f"{node.name}_inside" if node.name in leaves else node.name,
        )
        new.meta = dict(node.meta)
        if node.name in leaves:
            seen[node] = graph.create_node("call_function", handed_on, (new,), name=node.name)
            seen[node].meta = {**node.meta, "info": Info("cut", info(node).path, info(node).source)}
    output = seen[program.output if end is None else next(n for n in program.nodes if n.name == end)]
    graph.output(output)
    graph.eliminate_dead_code(lambda node: node.is_impure() or op_name(node) == "decision")
    kept = {node.name for node in graph.nodes}
    if lost := leaves - kept:
        raise ValueError(f"nothing leads from {', '.join(sorted(lost))} to {end}: take a module before it")
    alive = _leading_to(output, leaves)
    for node in graph.nodes:
        if "info" in node.meta and info(node).active and node not in alive:
            node.meta["info"] = dataclasses.replace(info(node), role="constant")
    result = copy.copy(program)
    result.graph, result.derived = graph, {}
    return result


def leaving(program: Program, nodes: Iterable[str]) -> tuple[Program, dict[str, str]]:
    """The same program with a node behind each of these, through which its value goes to all that use it.

    Returns:
        The program, and by name of a node the name of the one behind it.
    """
    nodes = set(nodes)
    graph = fx.Graph()
    seen: dict[fx.Node, fx.Node] = {}
    behind: dict[str, str] = {}
    for node in program.graph.nodes:
        seen[node] = graph.node_copy(node, seen.__getitem__)
        if node.name in nodes:
            seen[node] = graph.create_node("call_function", handed_on, (seen[node],), name=f"{node.name}_leaving")
            behind[node.name] = seen[node].name
    result = copy.copy(program)
    result.graph, result.derived = graph, {}
    return result, behind


def handed_on(value: Tensor) -> Tensor:
    """The value of a module, as it leaves it."""
    return value


def _leading_to(output: fx.Node, leaves: set[str]) -> set[fx.Node]:
    """What leads to the output without passing a leaf; the leaves included, not what is before them."""
    alive: set[fx.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node not in alive:
            alive.add(node)
            waiting += [] if node.name in leaves else [a for a in node.all_input_nodes if info(a).active]
    return alive


def _calls(program: Program, path: str) -> list[set[fx.Node]]:
    """The nodes of every call of a module, in order of execution."""
    calls: dict[Any, set[fx.Node]] = {}
    run, before = 0, False
    for node in program.nodes:
        keys = [key for key, own in _stack(node) if own == path]
        if program.how != "export":  # which knows the innermost module only: a call is a run of nodes without a break
            keys = [run] if _is_in(info(node).path, path) else []
            run += before and not keys
            before = bool(keys)
        for key in keys[:1]:
            calls.setdefault(key, set()).add(node)
    return list(calls.values())


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Key of the call and module path of every module that was running; export numbers the calls of one module."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(key, re.sub(r"@\d+", "", str(v[0])).removeprefix("model").removeprefix(".")) for key, v in stack.items()]


def _is_in(inner: str, path: str) -> bool:
    return inner == path or inner.startswith(path + ".")


def _unknown(program: Program, path: str) -> str:
    """What to say of a path that no recorded operation has."""
    model = program.model
    known = sorted({own for node in program.nodes for _, own in _stack(node) if own and not own.startswith("_")})
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if path and path in modules:
        inner = [k for k in known if _is_in(k, path)]
        hint = (
            f"; its modules are {', '.join(inner[:4])}" if inner else ": it does nothing here, or stands in a recognised pattern"
        )
        return f"{path!r} ({type(modules[path]).__name__}) is called by nothing that was recorded{hint}"
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known[:8])}" if known else "it has no modules"
    return f"{type(model).__name__} has no module {path!r}: {hint}"
