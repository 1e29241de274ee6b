"""The interpreter that carries parts: which nodes need them, what runs at once, and who has weighed a bias already.

Only nodes between the inputs and the output through which parts are followed carry rows; queries and keys, gates and
normalisers do not. Tokens are taken in chunks. Under most rules for biases the weights of one chunk depend on all the
others: then their sum at each bias is found first, bias by bias, and the chunks before it run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from termwise.core.composite import Composite, lifted
from termwise.core.interpret import interpret
from termwise.core.program import Program, describe, info, op_name

from .memory import shown
from .rules.attention import FUSED, SOFTMAX
from .rules.linear import MOVES
from .token_parts import BIAS, CONSTANT, FIRST, FOLLOWED, HELD, TABLE, Parts, plain
from .token_sharing import ACTIVATIONS, ALONE, BIASES, fractions, inner

__all__ = ["Place", "Plan", "Run", "Sources", "plan"]


@dataclass(frozen=True)
class Plan:
    """What is followed on the way to one node.

    Attributes:
        end: the node whose parts are wanted.
        needed: every node that carries rows.
        held: node -> argument positions that count as constant there.
        waiting: affine nodes whose bias attention mixes before it is shared.
    """

    end: fx.Node
    needed: set[fx.Node]
    held: dict[fx.Node, tuple[int, ...]]
    waiting: set[fx.Node]


def plan(program: Program, end: fx.Node) -> Plan:
    """Follow parts forwards from the inputs, then keep what leads to `end`.

    Raises:
        ValueError: for an operation on that way which cannot be decomposed by token, or when no part arrives.
    """
    carried: dict[fx.Node, list[fx.Node]] = {}
    held: dict[fx.Node, tuple[int, ...]] = {}
    for node in program.graph.nodes:
        if node.op == "output" or not info(node).active:
            continue
        if node.op == "placeholder" or info(node).role == "cut":
            carried[node] = []
            continue
        known, name = info(node), op_name(node)
        held[node] = (*HELD.get(name, ()), *known.held, *(() if known.held else known.gates))
        found = [a for i, v in enumerate(node.args) if i not in held[node] for a in _nodes(v) if a in carried]
        if found:
            carried[node] = found
    needed, stack = set(), [end]
    while stack:
        node = stack.pop()
        if node in needed or node not in carried:
            continue
        needed.add(node)
        stack += carried[node]
        if carried[node]:
            _check(node, carried)
    if end not in needed:
        held = f"no part of an input arrives at {describe(end)}: what it depends on is held constant"
        head = end
        while op_name(head) in MOVES and head.all_input_nodes:
            head = head.all_input_nodes[0]
        if op_name(head) in SOFTMAX:
            held += (
                f". The model ends in {describe(head)}: decompose the logits before it (the model without it), or use "
                "termwise.explain with rules='attnlrp', which goes through it"
            )
        raise ValueError(held)
    return Plan(end, needed, held, {n for n in needed if _waits(n)})


def _check(node: fx.Node, carried: dict[fx.Node, list[fx.Node]]) -> None:
    name = op_name(node)
    if name not in TABLE:
        raise ValueError(
            f"{describe(node)} cannot be decomposed by token: it is neither linear, nor a norm, a product or a function of one "
            "variable. termwise.explain has a rule for more operations"
        )
    follow, hold = FOLLOWED.get(name), HELD.get(name, ())
    stray = [
        i for i, v in enumerate(node.args) if follow is not None and i not in (*follow, *hold) for a in _nodes(v) if a in carried
    ]
    if stray or (name not in FUSED and any(a in carried for a in _nodes(list(node.kwargs.values())))):
        raise ValueError(
            f"{describe(node)} cannot be decomposed by token: it depends on the input through "
            f"{f'argument {stray[0]}' if stray else 'a keyword argument'}, for which it has no rule"
        )


def _waits(node: fx.Node) -> bool:
    """Whether all that reads an affine node, through moves, is the mixing of positions by attention."""
    if op_name(node) not in ("linear", "addmm"):
        return False
    stack, mixed = list(node.users), False
    while stack:
        user = stack.pop()
        if op_name(user) in MOVES:
            stack += list(user.users)
        elif op_name(user) in (*FUSED, "matmul", "bmm"):
            mixed = True
        else:
            return False
    return mixed


@dataclass(frozen=True)
class Sources:
    """The source tokens of all inputs: for each input its name, the shape in which they lie, and a label per entry.

    A label is the number of the source that an entry belongs to, counted over all inputs; (batch or 1, *own axes).
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    labels: list[Tensor]

    def __len__(self) -> int:
        """How many."""
        return sum(map(math.prod, self.shapes))

    def rows(self, name: str, value: Tensor, chunk: range) -> Tensor:
        """The rows of a leaf: each source has its own entries, and zeros elsewhere."""
        labels = self.labels[self.names.index(name)].to(value.device)
        labels = labels.reshape(*labels.shape, *[1] * (value.ndim - labels.ndim))
        rows = value.new_zeros(FIRST + len(chunk), *value.shape)
        for row, source in zip(rows[FIRST:], chunk, strict=True):
            row.copy_(value * (labels == source))
        return rows


class _Unknown(Exception):
    """A bias is to be shared whose weights over all chunks are not known yet."""

    def __init__(self, site: tuple[str, int], weights: Tensor) -> None:
        self.site, self.weights = site, weights


class _Arrived(Exception):
    """The wanted node has its parts."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts


@dataclass
class Run:
    """One decomposition: a plan, the inputs, and the choices."""

    program: Program
    plan: Plan
    tensors: list[Tensor]
    sources: Sources
    biases: str
    activation: str
    chunk: range = range(0)
    totals: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    sizes: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)  # bytes of a value, and of what it needs beside

    def __post_init__(self) -> None:
        """Find the dtype to compute in: the program's finest, and no half precision."""
        found = [n.meta.get("val") for n in self.program.graph.nodes if "info" in n.meta and info(n).active]
        dtypes = {v.dtype for v in found if isinstance(v, Tensor) and v.is_floating_point()}
        self.dtype = torch.promote_types(max(dtypes, key=lambda d: torch.finfo(d).bits), torch.float32)

    def __call__(self, max_memory: int | None) -> Parts:
        """The value at the end of the plan with the rows of every source.

        Raises:
            ValueError: when the memory does not even allow one source token at a time.
        """
        n = len(self.sources)
        size = n if max_memory is None else self.capacity(max_memory)
        chunks = [range(i, min(i + size, n)) for i in range(0, n, size)]
        if len(chunks) == 1:
            return self._through(chunks[0])
        if self.biases not in ALONE:
            self._weigh(chunks)
        found = [self._through(chunk) for chunk in chunks]
        rows = [found[0].rows, *(p.rows[FIRST:] for p in found[1:])]
        return Parts(found[0].value, torch.cat(rows))

    def _weigh(self, chunks: list[range]) -> None:
        """Find the sum of weights at every bias in turn."""
        while True:
            sums: list[Tensor] = []
            for chunk in chunks:
                try:
                    self._through(chunk, summing=True)
                except _Unknown as unknown:
                    # the constant row is the same in every chunk, and counts once
                    weights = unknown.weights if chunk is chunks[0] else unknown.weights[1:]
                    sums.append(weights.sum(0))
                    site = unknown.site
            if not sums:
                return
            self.totals[site] = torch.stack(sums).sum(0)

    def _through(self, chunk: range, summing: bool = False) -> Parts:
        self.chunk, self.summing = chunk, summing
        values: dict[str, Any] = self.bound()
        for node in self.program.graph.find_nodes(op="placeholder"):
            if node in self.plan.needed:
                values[node.name] = self._leaf(node, values[node.name])
        device = self.tensors[0].device.type
        try:
            with torch.no_grad(), torch.autocast(device, enabled=False):
                interpret(self.program.graph, values, self._visit)
        except _Arrived as arrived:
            return arrived.parts
        raise AssertionError("the end of the plan is not in the graph")

    def bound(self) -> dict[str, Tensor]:
        """A value for every placeholder, in the dtype of the run."""
        bound = self.program.bind(self.tensors)
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in bound.items()}

    def _leaf(self, node: fx.Node, value: Tensor) -> Parts:
        return Parts(value, self.sources.rows(info(node).origin, value, self.chunk))

    def _op(self, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """The operation and its arguments, where the program asks for a narrower dtype in the run's own."""
        op: Any = node.target
        if isinstance(op, Composite):
            kept = self.program.derived.setdefault(("lifted", self.dtype), {})
            op = kept.setdefault(node, None) or op.lift(self.dtype)
            kept[node] = op
        return op, lifted(args, self.dtype), lifted(kwargs, self.dtype)

    def _visit(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, args, kwargs = self._op(node, args, kwargs)
        values, keywords = plain(args), plain(kwargs)
        y = op(*values, **keywords)
        if node not in self.plan.needed:
            return y
        if info(node).role == "cut":
            out = self._leaf(node, y)
        else:
            held = self.plan.held[node]
            place = Place(self, node, op)
            out = TABLE[place.name](
                place, y, *(v if i in held else a for i, (a, v) in enumerate(zip(args, values, strict=True))), **keywords
            )
        if node is self.plan.end:
            raise _Arrived(Place(self, node, op).shared(out, again=9))
        return out

    # -- memory -------------------------------------------------------------------------------------------------------

    def capacity(self, max_memory: int) -> int:
        """How many source tokens fit into this many bytes at once, by the sizes of what lives at each node."""
        self._measure()
        order = list(self.program.graph.nodes)
        dies: dict[fx.Node, list[fx.Node]] = {}
        for node in order:
            if node.op != "output" and node.users:
                dies.setdefault(max(node.users, key=order.index), []).append(node)
        live, rows, needs = 0, 0, []
        n = len(self.sources)
        kept = n * self.sizes[self.plan.end][0]
        for node in order[: order.index(self.plan.end) + 1]:
            size, beside = self.sizes.get(node, (0, 0))
            followed = node in self.plan.needed
            live += size
            rows += size * followed
            needs.append((kept + live + beside, rows + 2 * size * followed))
            for dead in dies.get(node, ()):
                live -= self.sizes.get(dead, (0, 0))[0]
                rows -= self.sizes.get(dead, (0, 0))[0] * (dead in self.plan.needed)
        fits = min(int((max_memory - fixed) / each) - FIRST for fixed, each in needs if each)
        if fits < 1:
            least = max(fixed + (FIRST + 1) * each for fixed, each in needs)
            raise ValueError(
                f"max_memory={shown(max_memory)} is too small for one source token at a time: this input needs {shown(least)}. "
                "Allow that, or give fewer samples or a shorter input"
            )
        return min(fits, n)

    def _measure(self) -> None:
        """Bytes of every value, from a run without parts."""

        def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            op, args, kwargs = self._op(node, args, kwargs)
            y = op(*args, **kwargs)
            beside = 0
            if op_name(node) in FUSED:  # its weights
                beside = 2 * args[0].numel() // args[0].shape[-1] * args[1].shape[-2] * y.element_size()
            self.sizes[node] = (_bytes(y), beside)
            return y

        with torch.no_grad(), torch.autocast(self.tensors[0].device.type, enabled=False):
            interpret(self.program.graph, self.bound(), visit)


class Place:
    """What a rule sees of its node: the operation, and what to do with what it adds."""

    def __init__(self, run: Run, node: fx.Node, op: Any) -> None:
        """Bind a node to a run."""
        self.run, self.node, self.op, self.name = run, node, op, op_name(node)

    @property
    def where(self) -> str:
        """Operator, module path and line, for messages."""
        return describe(self.node)

    def line(self, f: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Slope and offset of y = f(u)."""
        return ACTIVATIONS[self.run.activation](f, u, y)

    def is_bias(self, position: int) -> bool:
        """Whether a constant argument is a parameter called bias."""
        argument = self.node.args[position]
        known = info(argument) if isinstance(argument, fx.Node) else None
        return known is not None and known.role == "parameter" and known.origin.rpartition(".")[2] == "bias"

    def collect(self, out: Parts, constant: Any, *, is_bias: bool = False) -> None:
        """Add a constant to rows that nobody else reads: to the biases, or where these stay apart to its own kind."""
        if constant is None or (not isinstance(constant, Tensor) and constant == 0):
            return
        apart = BIASES[self.run.biases] is None
        out.rows[CONSTANT if apart and not is_bias else BIAS].add_(constant)
        out.pending = not apart

    def collected(self, out: Parts, constant: Any, *, is_bias: bool = False, axis: int = -1) -> Parts:
        """`collect`, then share."""
        self.collect(out, constant, is_bias=is_bias)
        return self.share_(out, axis)

    def affine(self, out: Parts, bias: Tensor | None, axis: int = -1) -> Parts:
        """A bias of an affine operation: joins what is waiting to be shared; else shared, unless attention mixes it first."""
        waits = out.pending or self.node in self.run.plan.waiting
        self.collect(out, bias, is_bias=True)
        return out if waits else self.share_(out, axis)

    def shared(self, x: Parts, axis: int = -1, again: int = 0) -> Parts:
        """The same with nothing left to share; the rows of x are left as they are."""
        return self.share_(Parts(x.value, x.rows.clone(), True), axis, again) if x.pending else x

    def share_(self, out: Parts, axis: int = -1, again: int = 1) -> Parts:
        """Share the bias row among the others, in place; what no weight claims becomes a constant."""
        weigh = BIASES[self.run.biases]
        if weigh is None or not out.pending:
            return out
        bias, others = out.rows[BIAS], out.rows[CONSTANT:]
        if bias.ndim < 2:  # one number per sample
            bias, others = bias.unsqueeze(-1), others.unsqueeze(-1)
        weights = weigh(others, bias, axis)
        weights, total = self._total(weights, bias, out, axis, (self.node.name, again))
        share = fractions(weights, total)
        rest = bias.masked_fill(total == 0, 0).sub_(bias).neg_()
        others.addcmul_(share, bias)
        others[0] += rest
        bias.zero_()
        out.pending = False
        return out

    def _total(self, weights: Tensor, bias: Tensor, out: Parts, axis: int, site: tuple[str, int]) -> tuple[Tensor, Tensor]:
        """The weights over all sources, those of other chunks included."""
        run = self.run
        if run.biases == "cls":
            first = weights.new_zeros(weights.shape)
            if run.chunk.start == 0:
                first[1] = 1
            return first, torch.ones_like(weights[0])
        if run.biases == "dot":  # parts sum to the value
            rest = out.value.reshape(bias.shape) - bias
            return weights, inner(rest.unsqueeze(0), bias, axis)[0]
        if len(run.chunk) == len(run.sources):
            return weights, weights.sum(0)
        if site not in run.totals:
            raise _Unknown(site, weights)
        return weights, run.totals[site]


def _nodes(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _nodes(v)


def _bytes(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
