r"""Gradients along paths through at most K branches of a residual stack, a layer's backward pass at a time, all layers at once.

    d^0_l = e_l + J_(r_l)^T d^0_(l+1),      b_l = J_(g_l)^T d^k_(l+1),      d^(k+1)_l = d^0_l + sum_(m >= l) (J_r ... J_r)^T b_m

e_l is what the head sends back to the stream at l: for a plain network the gradient at its end alone. The values of the stream
are those of one forward pass, from which every layer is run once more with what a backward pass needs; layers alike are one
batched call (vmap). No round runs anything forward again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from termwise.core.interpret import evaluate, interpret

from .residual_stack import Stack, call
from .scan import reverse_scan, reverse_sum

__all__ = ["PathGradients"]

Stream = Sequence[Tensor | None]


class PathGradients:
    """One forward pass of a stack, ready for rounds of backward passes.

    Attributes:
        output: of the network, differentiable in the stream and in the weights of stem and head.
        carried: layers whose way around the branch is no diagonal: each is one more sequential step in every round.
    """

    def __init__(self, stack: Stack, values: Mapping[str, Tensor]) -> None:
        """Run forward; `values` of the placeholders require grad where a gradient is asked for."""
        self.stack = stack
        self.carried = sum(layer.carry == "general" for layer in stack.layers)
        wanted = {*stack.points, *(a for layer in stack.layers for a in layer.free)}
        known: dict[fx.Node, Any] = {n: values[n.name] for n in wanted if n.op == "placeholder"}
        points: dict[fx.Node, Tensor] = {}
        first = stack.points[0]

        def leaf(node: fx.Node, value: Tensor) -> Tensor:
            points[node] = value.detach().requires_grad_()
            return points[node]

        def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with torch.set_grad_enabled(node not in stack.inside):
                value = call(node, args, kwargs)
            if node in wanted:
                known[node] = value
            return leaf(node, value) if node in stack.points else value

        with torch.enable_grad():
            given = {**values, first.name: leaf(first, values[first.name])} if first.op == "placeholder" else values
            self.output: Tensor = interpret(stack.program.graph, given, visit)
            self.entry: Tensor = known[first]
            self.points = [points[p] for p in stack.points]
            self._groups = [_Group(stack, group, self.points, known) for group in stack.groups]
        self._gates: list[Tensor | None] = [None] * len(stack.layers)
        for group in self._groups:
            if group.carry == "diagonal":
                ones = torch.ones_like(group.output)
                (found,) = torch.autograd.grad(group.output, group.skip, ones, retain_graph=True)
                for i, gate in zip(group.layers, found, strict=True):
                    self._gates[i] = gate

    # -- along the stream ---------------------------------------------------------------------------------------------

    def head(
        self, seed: Tensor, leaves: Sequence[Tensor], output: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """What the head sends back: e_1 ... e_(n+1), and the gradient of the leaves on the way through it.

        Args:
            seed: gradient of `output`, by default of the network's.
            leaves: what gradients are asked for.
            output: anything computed from the network's output.
        """
        output = self.output if output is None else output
        found = torch.autograd.grad(output, [*self.points, *leaves], seed, retain_graph=True, allow_unused=True)
        n = len(self.points)
        return [torch.zeros_like(p) if e is None else e for p, e in zip(self.points, found[:n], strict=True)], list(found[n:])

    def carry(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """d_l = sources_l + J_(r_l)^T d_(l+1) for sources at p_1 ... p_(n+1): a sum or scan for each run of diagonal layers."""
        found: list[Tensor] = [sources[-1]]
        end = len(self.stack.layers)
        while end:
            start = end
            while start and self.stack.layers[start - 1].carry != "general":
                start -= 1
            if start < end:
                terms = torch.stack([*sources[start:end], found[0]])
                gates = self._gates[start:end]
                if all(g is None for g in gates):
                    run = reverse_sum(terms)
                else:
                    run = reverse_scan(torch.stack([torch.ones_like(terms[0]) if g is None else g for g in gates]), terms)
                found = [*run[:-1].unbind(), *found]
            if start:
                group = next(g for g in self._groups if g.layers == [start - 1])
                (back,) = torch.autograd.grad(group.output, group.skip, found[0].unsqueeze(0), retain_graph=True)
                found = [sources[start - 1] + back[0], *found]
                start -= 1
            end = start
        return found

    def through(self, d: Sequence[Tensor]) -> list[Tensor]:
        """One round: J_(g_l)^T d_(l+1) of every layer, and 0 at the end."""
        found = torch.autograd.grad(
            [g.output for g in self._groups], [g.stream for g in self._groups], self._seeds(d), retain_graph=True
        )
        return self._sources(found)

    def last(
        self, d: Sequence[Tensor], leaves: Sequence[Tensor], *, more: bool = False, keep: bool = False
    ) -> tuple[list[Tensor | None], list[Tensor]]:
        """One round with the gradients of the leaves, in the layers and in the stem; what `through` returns comes second.

        Args:
            d: gradients at p_1 ... p_(n+1).
            leaves: what gradients are asked for.
            more: there will be more rounds.
            keep: what a round needs, for another backward pass.
        """
        outputs = [g.output for g in self._groups]
        seeds = self._seeds(d)
        if self.entry.requires_grad:
            outputs, seeds = [*outputs, self.entry], [*seeds, d[0]]
        streams = [g.stream for g in self._groups] if more else []
        found = torch.autograd.grad(outputs, [*leaves, *streams], seeds, retain_graph=more or keep, allow_unused=True)
        return list(found[: len(leaves)]), self._sources(found[len(leaves) :]) if more else []

    def _seeds(self, d: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([d[i + 1] for i in g.layers]) for g in self._groups]

    def _sources(self, found: Sequence[Tensor]) -> list[Tensor]:
        back = {i: row for g, rows in zip(self._groups, found, strict=True) for i, row in zip(g.layers, rows, strict=True)}
        return [*(back[i] for i in range(len(back))), torch.zeros_like(self.points[-1])]


class _Group:
    """Layers alike, run as one from the values of the stream; the first axis of `stream`, `skip` and `output` is the layer."""

    def __init__(self, stack: Stack, layers: list[int], points: Sequence[Tensor], known: Mapping[fx.Node, Any]) -> None:
        self.layers, held = layers, [stack.layers[i] for i in layers]
        self.carry, graph = held[0].carry, held[0].graph
        self.stream = torch.stack([points[i].detach() for i in layers]).requires_grad_()
        self.skip = self.stream.detach()
        if self.carry != "identity":
            self.skip.requires_grad_()
        names = [n.name for n in graph.find_nodes(op="placeholder")]
        columns = [[known[a] for a in column] for column in zip(*(layer.free for layer in held), strict=True)]
        alike = [not isinstance(c[0], Tensor) or all(v is c[0] for v in c) for c in columns]
        if len(layers) == 1:
            only = dict(zip(names, (self.stream[0], self.skip[0], *(c[0] for c in columns)), strict=True))
            self.output: Tensor = evaluate(graph, only).unsqueeze(0)
            return
        fixed = {name: c[0] for name, c, same in zip(names[2:], columns, alike, strict=True) if same}
        moving = {name: torch.stack(c) for name, c, same in zip(names[2:], columns, alike, strict=True) if not same}

        def one(stream: Tensor, skip: Tensor, own: dict[str, Tensor]) -> Tensor:
            value: Tensor = evaluate(graph, {**fixed, **own, names[0]: stream, names[1]: skip})
            return value

        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the fused kernels would run layer by layer
            warnings.filterwarnings("ignore", "There is a performance drop")  # of operations that have no batched form
            self.output = torch.vmap(one)(self.stream, self.skip, moving)
