r"""A deep residual network made shallow: its branches side by side, all fed by the same value.

    z_k = z_(k-1) + g_k(z_(k-1)), k = 1 ... n      ->      z = z_0 + sum_k g_k(z_0)

is what is left of the deep network when all paths through two branches or more are dropped. One order more adds the paths
through two, sum_(i<k) [g_k(z_0 + g_i(z_0)) - g_k(z_0)], which for two branches is the deep network again. Branches of two layers
are one wide layer: sum_k V_k a(W_k z) = [V_1 ... V_n] a([W_1; ...; W_n] z).

Source: Bermeitinger, Hrycej & Handschuh 2023, arXiv 2309.08414.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.capture import arguments
from termwise.core.decomposition import Decomposition
from termwise.core.interpret import evaluate
from termwise.core.program import Program, op_name

from .residual_blocks import Block, Tower

__all__ = ["ShallowNet", "shallow"]

aten = torch.ops.aten

LAYERS = {"linear", "conv1d", "conv2d", "conv3d"}
ACTIVATIONS = {"relu", "gelu", "tanh", "silu", "sigmoid", "elu", "leaky_relu", "softplus", "mish", "hardswish", "relu6"}


class ShallowNet(nn.Module):
    """The parallel network of a copy of a model's parameters; it trains, and knows how far it is from the deep one.

    Attributes:
        model: the copy: the deep network with the same parameters.
        order: 1: every branch reads the same value; 2: with the paths through two branches.
        blocks: names of the branches.
        fused: how many of them run as one wide layer.
    """

    def __init__(self, model: nn.Module, tower: Tower, order: int, select: Callable[[Any], Tensor] | None) -> None:
        """Made by `shallow`."""
        super().__init__()
        self.model, self.order, self.blocks = model, order, tuple(tower.names)
        self._recorded, self._found, self._select = tower.recorded.of(None), tower.blocks, select
        self._graphs = {order: parallel(tower.recorded.graph, tower.blocks, order)}
        self.fused = fuse(self._graphs[order]) if order == 1 else 0

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """What the model returned when it was recorded, from the parallel network."""
        return self._run(self.order, inputs, kwargs)

    def deep(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """The same from the deep network, with the parameters as they are now."""
        return self._run(None, inputs, kwargs)

    def _run(self, order: int | None, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        program: Program = self._recorded.of(self.model)
        if order is not None and order not in self._graphs:
            self._graphs[order] = parallel(program.graph, self._found, order)
        graph = program.graph if order is None else self._graphs[order]
        found: Tensor = evaluate(graph, program.bind(program.tensors(*inputs, kwargs=kwargs), detached=False))
        return found

    def merged(self) -> fx.GraphModule:
        """This network as a module by itself, called with the inputs in order: the wide layers are its parameters.

        It is the fast form, and trains by itself; it no longer knows the deep network.
        """
        program, root, graph = self._recorded.of(self.model), nn.Module(), fx.Graph()
        kinds = {name: p.kind for name, p in program.placeholders.items()}
        values = program.bind([torch.empty(0)] * list(kinds.values()).count("input"))
        seen, held, trained = dict[fx.Node, fx.Node](), dict[fx.Node, Any](), set[fx.Node]()

        def argument(node: fx.Node) -> fx.Node:
            if node not in seen:
                value = held[node].clone()
                if node in trained:
                    root.register_parameter(node.name, nn.Parameter(value))
                else:
                    root.register_buffer(node.name, value)
                seen[node] = graph.get_attr(node.name)
            return seen[node]

        for node in self._graphs[self.order].nodes:
            if node.op == "output":
                graph.output(argument(node.args[0]))
            elif kinds.get(node.name) == "input":
                seen[node] = graph.placeholder(program.placeholders[node.name].name)
            elif node.op == "placeholder":
                held[node] = values[node.name]
                trained |= {node} if kinds[node.name] == "parameter" else set()
            elif node.all_input_nodes and all(a in held for a in node.all_input_nodes):
                held[node] = node.target(*fx.map_arg(node.args, held.__getitem__), **fx.map_arg(node.kwargs, held.__getitem__))
                trained |= {node} if trained & {*node.all_input_nodes} else set()
            else:
                seen[node] = graph.node_copy(node, argument)
        return fx.GraphModule(root, graph).eval()

    def truncation(self, *inputs: Any, **kwargs: Any) -> dict[int, float]:
        """|deep - f_k| / |deep| of the worst sample, for the networks of order k = 0 (no branches), 1 and 2 (paths of two).

        Cost: n^2 / 2 runs of a branch.
        """
        with torch.no_grad():
            deep = self.deep(*inputs, **kwargs)
            return {k: Decomposition(deep, {"kept": self._run(k, inputs, kwargs)}).error() for k in (0, 1, 2)}

    def decompose(self, *inputs: Any, **kwargs: Any) -> Decomposition:
        """The deep network's output by branches: what each adds when it alone is on; the remainder is what they do to each other.

        Returns:
            A Decomposition: `identity`, the network without branches; a part for each branch; for order 2 `pairs`, of shape
            S + (n (n - 1) / 2,), what two do together beyond that. Behind a linear head they make this network's own output.

        Cost: n + 1 forward passes, at order 2 one more for each pair.
        """
        n = len(self.blocks)
        pairs = list(itertools.combinations(range(n), 2)) if self.order == 2 else []
        tower = Tower(self.model, inputs, kwargs, self._select)
        rows = [(), *((i,) for i in range(n)), *pairs]
        masks = torch.stack([tower.switches(0.0).index_fill(0, torch.tensor(row, dtype=torch.long), 1.0) for row in rows])
        values = tower.at(masks)
        identity, alone = values[0], values[1 : n + 1] - values[0]
        parts = {"identity": identity, **dict(zip(self.blocks, alone, strict=True))}
        if pairs:
            i, k = torch.tensor(pairs).unbind(1)
            parts["pairs"] = (values[n + 1 :] - identity - alone[i] - alone[k]).movedim(0, -1).contiguous()
        return Decomposition(tower.whole(), parts)


def shallow(
    model: nn.Module,
    *inputs: Any,
    order: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> ShallowNet:
    """Put the residual branches of a network side by side.

        z = z_0 + sum_k g_k(z_0)

    Args:
        model: in eval mode; its parameters are copied, and it is left as it is.
        *inputs: an example of its inputs, from which the operations are recorded.
        order: 1, or 2 with the paths through two branches.
        kwargs: keyword arguments of the model.
        select: picks the tensor out of what the model returns, where it has no logits.

    Returns:
        A module with the copy's parameters, as many as the model's. Branches of two layers run as one wide layer (`fused`), whose
        weights are joined at each call, or once for all by `merged`. `truncation` says how far it is from the deep network,
        `decompose` which branch makes what. It runs what was recorded: without dropout, with running statistics. To train it
        from the start, draw the last layers of the branches 1/sqrt(n) as large: their sum is one of n.

    Raises:
        ValueError: for another order, or a network without residual branches, or a post-norm one.
        TypeError: for a function, which has no parameters to keep.

    Cost: that of the model, in one step of depth; at order 2 n^2 / 2 runs of a branch.

    Example:
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> model, x = torch.nn.Sequential(Block(), Block()).double().eval(), torch.randn(3, 4, dtype=torch.float64)
        >>> flat = tw.shallow(model, x)
        >>> a, b = model
        >>> flat.fused, torch.allclose(flat(x), a(x) + b(x) - x)
        (2, True)
        >>> torch.allclose(tw.shallow(model, x, order=2)(x), model(x))  # two branches: all paths
        True

    Source: Bermeitinger, Hrycej & Handschuh 2023.
    """
    if order not in (1, 2):
        raise ValueError(f"order is 1 (branches side by side) or 2 (and paths through two of them), got {order!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters are kept; got {type(model).__name__}")
    model, positional, keywords = arguments(model, inputs, kwargs)  # type: ignore[assignment]
    tower = Tower(model, positional, keywords, select)
    return ShallowNet(copy.deepcopy(model), tower, order, select).eval()


def parallel(deep: fx.Graph, blocks: Sequence[Block], order: int) -> fx.Graph:
    """The graph of a network with only those paths that go through at most `order` branches (0, 1 or 2).

    Every operation is copied for as many streams as it differs in: without branches ("off"), with one branch on (by its number,
    for order 2), and what is kept ("sum").
    """
    graph = fx.Graph()
    names = ["off", *(range(len(blocks)) if order == 2 else []), *(["sum"] if order else [])]
    streams: dict[Any, dict[fx.Node, fx.Node]] = {name: {} for name in names}
    off, last = streams["off"], streams[names[-1]]
    places = {b.add: (k, b.branch) for k, b in enumerate(blocks)}
    for node in deep.nodes:
        if node.op == "output":
            graph.output(last[node.args[0]])
            continue
        for name, stream in streams.items():
            if node.name not in places:
                same = stream is not off and all(stream[a] is off[a] for a in node.all_input_nodes)
                stream[node] = off[node] if same else graph.node_copy(node, stream.__getitem__)
                continue
            k, position = places[node.name]
            skip, branch = stream[node.args[1 - position]], node.args[position]
            added = [off[branch]] if name in ("sum", k) else []
            stream[node] = skip
            for value in added:
                stream[node] = graph.call_function(aten.add.Tensor, (stream[node], value))
            if name == "sum" and order == 2:
                for i in range(k):
                    pair = graph.call_function(aten.sub.Tensor, (streams[i][branch], off[branch]))
                    stream[node] = graph.call_function(aten.add.Tensor, (stream[node], pair))
    graph.eliminate_dead_code()
    return graph


def fuse(graph: fx.Graph) -> int:
    """Run branches of two layers, layer(a(layer(z))) with one z, as one wide layer; how many were."""
    wide: dict[Any, list[tuple[fx.Node, fx.Node, fx.Node]]] = {}
    for add in graph.nodes:
        if op_name(add) == "add" and isinstance(add.args[1], fx.Node):
            outer, act, inner = add.args[1], *_layers(add.args[1])
            if inner is not None:
                key = (inner.args[0], outer.target, act.target, inner.target, *map(_settings, (outer, act, inner)))
                wide.setdefault(key, []).append((add, outer, act))
    count = 0
    for found in wide.values():
        adds = [add for add, _, _ in found]
        if len(found) > 1 and all(_chained(later, earlier) for earlier, later in itertools.pairwise(adds)):
            _widen(graph, found)
            count += len(found)
    graph.eliminate_dead_code()
    graph.lint()
    return count


def _layers(outer: fx.Node) -> tuple[Any, Any]:
    """The activation and the first layer of a branch that ends in `outer`; None, None where it is made otherwise."""
    act = outer.args[0] if op_name(outer) in LAYERS else None
    inner = act.args[0] if isinstance(act, fx.Node) and op_name(act) in ACTIVATIONS else None
    if isinstance(inner, fx.Node) and op_name(inner) in LAYERS and all(len(n.users) == 1 for n in (outer, act, inner) if n):
        return act, inner
    return None, None


def _settings(node: fx.Node) -> tuple[Any, ...]:
    """What must be equal for two nodes to be one: which operands are missing, and strides, slopes and so on."""
    return (
        *("given" if isinstance(a, fx.Node) else repr(a) for a in node.args),
        *(str(node.meta["val"].shape[1:]) if "val" in node.meta and op_name(node) in LAYERS else "",),
        repr(sorted(node.kwargs.items())),
    )


def _chained(later: fx.Node, earlier: fx.Node) -> bool:
    """Whether nothing but additions lies between two sums."""
    while later is not earlier and op_name(later) == "add":
        later = later.args[0]  # type: ignore[assignment]
    return later is earlier


def _widen(graph: fx.Graph, found: list[tuple[fx.Node, fx.Node, fx.Node]]) -> None:
    """[V_1 ... V_n] a([W_1; ...; W_n] z) + sum of the last biases, in place of the last sum's branch; the other sums go."""
    (last, outer, act), inners = found[-1], [a.args[0] for _, _, a in found]
    inner: Any = inners[-1]

    def joined(nodes: list[Any], position: int, axis: int) -> fx.Node:
        return graph.call_function(aten.cat.default, ([n.args[position] for n in nodes], axis))

    with graph.inserting_before(last):
        first = [joined(inners, 1, 0), *([joined(inners, 2, 0)] if len(inner.args) > 2 and inner.args[2] is not None else [])]
        high = graph.call_function(inner.target, (inner.args[0], *first, *inner.args[len(first) + 1 :]), inner.kwargs)
        high = graph.call_function(act.target, (high, *act.args[1:]), act.kwargs)
        outers = [o for _, o, _ in found]
        second = [joined(outers, 1, 1)]
        if len(outer.args) > 2 and outer.args[2] is not None:
            stacked = graph.call_function(aten.stack.default, ([o.args[2] for o in outers],))
            second.append(graph.call_function(aten.sum.dim_IntList, (stacked, [0])))
        low = graph.call_function(outer.target, (high, *second, *outer.args[len(second) + 1 :]), outer.kwargs)
    for add, _, _ in found[:-1]:
        add.replace_all_uses_with(add.args[0])  # type: ignore[arg-type]
    last.args = (last.args[0], low)
