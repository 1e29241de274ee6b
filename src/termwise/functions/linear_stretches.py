r"""Stretches of a network that are linear, written as one matrix.

    W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2),      x + W x = (I + W) x

Every value is carried as A v + c of the last value v behind something that is not linear, as long as it can be: through linear
layers, activations whose units are all linear, sums of two such values, batch norms on their running statistics, products with
numbers. What is not linear in v reads A v + c, and starts anew.

Source: Mehmeti-Goepel & Disselhoff 2023 (linear layers can be merged). Deviation: residual sums
too; convolutions stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.program import Program, info, op_name

from .channel_slopes import PartlyLinear

__all__ = ["collapse"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Affine:
    """A v + c on the last axis: `base` is the node of v in the new graph, A (out, in), c (out,)."""

    base: fx.Node
    matrix: Tensor
    shift: Tensor


def collapse(model: PartlyLinear) -> fx.GraphModule:
    """Merge linear layers between which there is nothing but linear units.

        W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2)

    Args:
        model: with some activations all of whose units are linear, as `linearize_channels` gives it.

    Returns:
        A plain module, called with the inputs in order and equal to the model; its parameters are those of the merged layers, and
        of what was not merged.

    Raises:
        TypeError: for another kind of module.

    Cost: a product of matrices per layer, once. Merging a bottleneck or a residual block of few units may give a larger matrix.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double().eval()
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> net = tw.functions.attach_slopes(model, x)
        >>> _ = net.slopes.data.fill_(1.0)
        >>> single = tw.functions.collapse(net)
        >>> [tuple(p.shape) for p in single.parameters()], torch.allclose(single(x), net(x))
        ([(2, 3), (2,)], True)

    Source: Mehmeti-Goepel & Disselhoff 2023.
    """
    if not isinstance(model, PartlyLinear):
        raise TypeError(
            f"collapse takes a PartlyLinear, as attach_slopes and linearize_channels give; got {type(model).__name__}"
        )
    return _Collapse(model).module()


class _Collapse:
    """One walk over the graph of a model, building another."""

    def __init__(self, model: PartlyLinear) -> None:
        self.program: Program = model.program
        given = {n: p for n, p in self.program.placeholders.items() if p.kind != "input"}
        net = model.model
        held = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
        self.held: dict[fx.Node, Any] = {}
        self.trained: set[fx.Node] = set()  # of those, what is made of parameters
        for node in self.program.graph.find_nodes(op="placeholder"):
            if node.name in given:
                p = given[node.name]
                value = model.slopes if node.name == "slopes" else p.value if p.value is not None else held[p.name]
                self.held[node] = value.detach()
                self.trained |= {node} if p.kind == "parameter" else set()
        self.linear = {a.node for a, on in zip(model.layers, model.active.values(), strict=True) if not on.any()}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.seen: dict[fx.Node, Any] = {}

    def module(self) -> fx.GraphModule:
        """The new network."""
        with torch.no_grad():
            for node in self.program.graph.nodes:
                if node in self.held:
                    continue
                if node.op == "placeholder":
                    self.seen[node] = self.graph.placeholder(self.program.placeholders[node.name].name.replace(".", "_"))
                elif node.op == "output":
                    self.graph.output(self.argument(node.args[0]))
                elif node.all_input_nodes and all(a in self.held for a in node.all_input_nodes):
                    args, kwargs = fx.map_arg((node.args, node.kwargs), self.held.__getitem__)
                    self.held[node] = node.target(*args, **kwargs)
                    self.trained |= {node} if self.trained & set(node.all_input_nodes) else set()
                else:
                    self.seen[node] = self.affine(node) or self.graph.node_copy(node, self.argument)
        self.graph.eliminate_dead_code()
        used = {n.target for n in self.graph.find_nodes(op="get_attr")}
        for name in [n for n, _ in (*self.root.named_parameters(), *self.root.named_buffers()) if n not in used]:
            delattr(self.root, name)
        return fx.GraphModule(self.root, self.graph).eval()

    def affine(self, node: fx.Node) -> _Affine | None:
        """The value of a node as A v + c, where it is."""
        name, args = op_name(node), node.args
        if not isinstance(node.meta.get("val"), Tensor) or not info(node).active:
            return None
        if name == "linear" and args[1] in self.held:
            weight, bias = self.held[args[1]], self.held[args[2]] if len(args) > 2 and args[2] is not None else None
            x = self.form(args[0], weight)
            shift = x.shift @ weight.T
            return _Affine(x.base, weight @ x.matrix, shift if bias is None else shift + bias)
        known = [self.seen[a] for a in node.all_input_nodes if isinstance(self.seen.get(a), _Affine)]
        if not known:
            return None
        if node.name in self.linear:
            return known[0]  # read by the node below alone
        if name == "lerp" and isinstance(args[0], fx.Node) and args[0].name in self.linear:
            found: _Affine = self.seen[args[1]]
            return found
        if (
            name == "add"
            and len(args) == 2
            and not node.kwargs
            and all(isinstance(a, fx.Node) and a not in self.held for a in args)
        ):
            a, b = (self.form(v, known[0].matrix) for v in args)
            if a.base is b.base and a.matrix.shape == b.matrix.shape:
                return _Affine(a.base, a.matrix + b.matrix, a.shift + b.shift)
        if name == "batch_norm" and node.meta["val"].ndim == 2:
            weight, bias, mean, var = (self.held[v] if isinstance(v, fx.Node) else None for v in args[1:5])
            scale = (var + args[7]).rsqrt() * (1 if weight is None else weight)
            shift = (known[0].shift - mean) * scale + (0 if bias is None else bias)
            return _Affine(known[0].base, scale[:, None] * known[0].matrix, shift)
        if name in ("mul", "div") and len(known) == 1 and isinstance(args[1], (int, float)):
            by = args[1] if name == "mul" else 1 / args[1]
            return _Affine(known[0].base, known[0].matrix * by, known[0].shift * by)
        return None

    def form(self, node: Any, like: Tensor) -> _Affine:
        """A value as A v + c: as it is known, or as itself, I v + 0."""
        if isinstance(self.seen[node], _Affine):
            known: _Affine = self.seen[node]
            return known
        size = node.meta["val"].shape[-1]
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        return _Affine(self.seen[node], eye, eye.new_zeros(size))

    def argument(self, node: fx.Node) -> fx.Node:
        """A value as a node of the new graph; A v + c becomes a linear layer there."""
        if node in self.held:
            return self.tensor(node.name, self.held[node], trained=node in self.trained)
        value = self.seen[node]
        if isinstance(value, _Affine):
            weight, bias = self.tensor(f"{node.name}_weight", value.matrix), self.tensor(f"{node.name}_bias", value.shift)
            value = self.graph.call_function(aten.linear.default, (value.base, weight, bias))
            self.seen[node] = value
        found: fx.Node = value
        return found

    def tensor(self, name: str, value: Tensor, *, trained: bool = True) -> fx.Node:
        """A tensor of the new network, a parameter or a buffer."""
        if not hasattr(self.root, name):
            if trained and value.is_floating_point():
                self.root.register_parameter(name, nn.Parameter(value.clone()))
            else:
                self.root.register_buffer(name, value.clone())
        return self.graph.get_attr(name)
