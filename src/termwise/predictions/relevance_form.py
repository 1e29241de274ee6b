"""Relevance carried as itself: one forward and one backward pass whose backward values are R, and not the ratio R / x.

Some published rules exist only in this form: R passed unchanged through a softmax, shares by absolute value, sums
rescaled sample by sample. In ratio form each would divide by its input at every step; here nothing is ever divided by a
leaf. An operation with value z and operands x_i takes R of its value and gives R of every operand, by default

    R_i = x_i * VJP_i(R / z),       z guarded away from 0 by its own sign

and a move (view, select, concatenation, the winner of a maximum) is its own VJP. The value fans out by summing what comes
back, which is autograd's business too. What a rule loses is measured at its node, R in minus R out.

What is explained is linear in the output, whole = sum_j w_j z_j (`termwise.predictions.targets`), and so relevance starts as

    R_j = w_j z_j                          start "logit": the whole
    R_j = |w_j z_j| / sum_k |w_k z_k|      start "one": a sum of entries shares 1 by size, and a single entry has all of it

A method is a table, operator -> rule, laid over `TABLE`; a rule is a function ``(at, r) -> [R of each operand]``, where an
entry is None for an operand that gets nothing, and has the shape of the operand or of the value.

Cost: a forward pass, and in the backward pass each operation once more with its VJP. Memory: that of the backward pass.
Source: papers.toml "chefer" and "dynamiclrp", whose rules are of this form; decision 1 for the other one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from termwise.core.composite import Composite
from termwise.core.program import BAGS, Program, describe, info, op_name
from termwise.core.rewrite import rewrite
from termwise.core.samples import SampleAxis, per_sample

from .ledger import Ledger
from .memory import graph_size
from .propagate import Result, begun_at_rows
from .rules.attention import LOGARITHMIC, SOFTMAX
from .rules.elementwise import ELEMENTWISE
from .rules.linear import FILLING, HOMOGENEOUS, MOVES, SUMS, WINNERS, bias_axis
from .rules.maps import AFFINE
from .rules.products import PRODUCTS

__all__ = [
    "TABLE", "Carried", "Place", "guarded", "halved", "moved", "nothing", "proportional", "refusal", "rule_of", "times",
    "unchanged",
]  # fmt: skip

Rule = Callable[["Place", Tensor], Sequence[Tensor | None]]


# -- what a rule sees -------------------------------------------------------------------------------------------------


class Place:
    """An operation in a running pass.

    Attributes:
        operands: its floating tensors, in order of its arguments (lists flattened).
        active: which of them relevance may go on through.
        learned: which of them are parameters, or made of parameters alone.
        value: what it computes, set by the pass.
    """

    def __init__(self, site: Site, ledger: Ledger, leaves: list[Any], spec: Any) -> None:
        """Take the arguments apart."""
        self.site, self.ledger, self._leaves, self._spec = site, ledger, leaves, spec
        self._slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.arguments = [leaves[i] for i in self._slots]
        self.operands = [x.detach() for x in self.arguments]
        self.active = [leaves[i].requires_grad and i not in site.held for i in self._slots]
        self.learned = [site.learned[i] for i in self._slots]
        self.value: Tensor

    def __call__(self, *operands: Tensor) -> Tensor:
        """The operation on other operands."""
        leaves = list(self._leaves)
        for slot, operand in zip(self._slots, operands, strict=True):
            leaves[slot] = operand
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        value: Tensor = self.site.op(*args, **kwargs)
        return value

    def vjp(self, cotangent: Tensor, operands: Sequence[Tensor] | None = None) -> Sequence[Tensor | None]:
        """J^T cotangent for every operand, at its operands or at others."""
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (self.operands if operands is None else operands)]
            return torch.autograd.grad(self(*leaves), leaves, cotangent, allow_unused=True)

    def alone(self, i: int) -> Tensor:
        """What the operation makes of operand i, all others being 0: its summand in a sum."""
        return self(*[x if i == j else torch.zeros_like(x) for j, x in enumerate(self.operands)])

    def totals(self, value: Tensor) -> Tensor:
        """Sums of something of the value's shape, one per sample, (batch,)."""
        split = per_sample(value, self.site.axis, self.ledger.batch)
        return split.reshape(self.ledger.batch, -1).sum(1)

    def spread(self, factors: Tensor) -> Tensor:
        """One factor per sample, laid out so that it multiplies the value."""
        axis, batch = self.site.axis, self.ledger.batch
        if batch == 1 or axis is None:
            return factors.reshape([1] * self.value.ndim)
        n = self.value.shape[axis.dim]
        sample = torch.arange(n, device=factors.device) // (axis.inner or n // batch) % batch
        return factors[sample].reshape(-1, *[1] * (self.value.ndim - 1 - axis.dim))

    def give(self, r: Tensor) -> list[Tensor | None]:
        """Follow the rule: R of every operand, constants booked, and what is lost booked too."""
        site, lost = self.site, self._weigh(r, self.site.axis)
        given: list[Tensor | None] = []
        for i, share in enumerate(site.rule(self, r)):
            operand, slot = self.operands[i], self._slots[i]
            if share is not None and self.active[i]:
                given.append(share.sum_to_size(operand.shape) if share.shape != operand.shape else share)
                out = self._weigh(given[-1], site.axes[slot])
                lost = lost if out is None or lost is None else lost - out
                continue
            given.append(None)
            if share is not None and self.ledger.complete:
                part = self.keep(i, share)
                lost = lost if part is None or lost is None else lost - part.reshape(len(part), -1).sum(1, dtype=torch.float64)
        if lost is not None:
            self.ledger.book(f"rule:{site.name}", lost)
        return given

    def _weigh(self, r: Tensor | None, axis: SampleAxis | None) -> Tensor | None:
        """The sum of R over each sample, (batch,) in float64; None where nobody asks or the samples lie too mixed to tell."""
        batch = self.ledger.batch
        if r is None or not self.ledger.complete or (batch > 1 and axis is None):
            return None
        return per_sample(r, axis, batch).reshape(batch, -1).sum(1, dtype=torch.float64)

    def keep(self, i: int, r: Tensor) -> Tensor | None:
        """Book R of a constant operand under its name; None where its samples cannot be told apart, and it stays lost.

        R has the value's shape, and is summed where the operand was broadcast; or the operand's own.
        """
        constant, axis, batch = self.operands[i], self.site.axis, self.ledger.batch
        if batch > 1 and (axis is None or r.ndim != self.value.ndim or r.shape[axis.dim] % batch):
            return None
        part = per_sample(r, axis, batch)
        if r.shape == self.value.shape:
            sizes = [1] * r.ndim
            if constant.ndim == 1 and self.site.op.__name__.startswith("conv"):
                sizes[bias_axis(self.site, self.value)] = len(constant)
            else:
                sizes[r.ndim - constant.ndim :] = constant.shape
            part = part.sum_to_size(batch, *(1 if size == 1 else n for size, n in zip(sizes, part.shape[1:], strict=True)))
        part = part.reshape(batch, *constant.shape) if part.numel() == batch * constant.numel() else part
        self.ledger.book(self.site.origins[self._slots[i]], part)
        return part


def times(x: Tensor, c: Tensor) -> Tensor:
    """X * c, where 0 relevance is 0 even of an infinite value (a masked score)."""
    return torch.where(c == 0, torch.zeros_like(c), x * c)


def guarded(z: Tensor) -> Tensor:
    """The value, away from 0 by its own sign; 0 counts as positive."""
    floor = torch.finfo(z.dtype).eps
    return torch.where(z.abs() < floor, torch.where(z < 0, -floor, floor).to(z), z)


# -- rules ------------------------------------------------------------------------------------------------------------


def proportional(at: Place, r: Tensor) -> list[Tensor | None]:
    """R_i = x_i VJP_i(R / z), to the activations. Conserves what is linear without offset in them together."""
    found = zip(at.operands, at.active, at.vjp(times(1 / guarded(at.value), r)), strict=True)
    return [times(x, c) if active and c is not None else None for x, active, c in found]


def halved(at: Place, r: Tensor) -> list[Tensor | None]:
    """A product of k activations: proportional, 1/k each. With one activation it is linear in it."""
    return proportional(at, r / max(1, sum(at.active)))


def unchanged(at: Place, r: Tensor) -> list[Tensor | None]:
    """All of R to the activation, as it is; of k activations 1/k each. Where shapes differ, proportional."""
    shapes = [x.shape for x, active in zip(at.operands, at.active, strict=True) if active]
    if not all(_broadcasts(shape, r.shape) for shape in shapes):
        return halved(at, r)
    return [r / len(shapes) if active else None for active in at.active]


def moved(at: Place, r: Tensor) -> list[Tensor | None]:
    """Every entry of the value is an entry of an operand, constants among them, or a mean of some: R_i = VJP_i(R)."""
    return list(at.vjp(r))


def nothing(at: Place, r: Tensor) -> list[Tensor | None]:
    """A step function: R stays where it is, and is lost."""
    return [None for _ in at.operands]


def _broadcasts(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether a shape broadcasts to another."""
    return len(shape) <= len(whole) and all(s in (1, n) for s, n in zip(reversed(shape), reversed(whole), strict=False))


ASSEMBLED = (
    "cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "index_put", "index_copy", "index_fill",
    "select_scatter", "slice_scatter", "diagonal_scatter", "pad", "constant_pad_nd", "fill", "concat", "concatenate",
    "block_diag", "copy", "maximum", "minimum", "fmax", "fmin", "max", "min",
)  # fmt: skip
"""Each entry of the value is an entry of one of several operands."""

EMPTYING = (*FILLING, "tril", "triu", "diag", "diag_embed", "block_diag", "im2col", "col2im")
"""Moves that put a number, 0 mostly, among the entries. It owns nothing, so that R which arrives there is lost, and measured."""

NORMS = ("layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "instance_norm", "batch_norm")

TABLE: dict[str, Rule] = {
    **dict.fromkeys((*MOVES, *WINNERS, *ASSEMBLED), moved),
    **dict.fromkeys((*SUMS, *HOMOGENEOUS, "add", "sub", "rsub", "scatter_add", "index_add", "diff"), proportional),
    **dict.fromkeys((*PRODUCTS, *AFFINE, "baddbmm", "addbmm", "bilinear"), halved),
    **dict.fromkeys((*ELEMENTWISE, *NORMS, *SOFTMAX, *LOGARITHMIC, "mul", "div", "pow", "relu", "leaky_relu"), unchanged),
    **dict.fromkeys(("sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide"), nothing),
}
"""Operator -> rule, where a method's own table says nothing; `unchanged` for what stands in neither."""


# -- the pass ---------------------------------------------------------------------------------------------------------


class Site:
    """A node under a rule: called in place of its operator."""

    def __init__(self, node: fx.Node, rule: Rule, learned: set[fx.Node], lift: torch.dtype | None, *, hold: bool) -> None:
        """Note what the graph knows of the node and of each of its arguments, lists flattened."""
        known = info(node)
        self.rule, self.node, self.path = rule, node.name, known.path
        self.op: Any = node.target.lift(lift) if lift and isinstance(node.target, Composite) else node.target
        self.name = f"{op_name(node)}@{known.path}"
        self.sources = [a if isinstance(a, fx.Node) else None for a in pytree.tree_leaves((node.args, node.kwargs))]
        self.origins = [_part(a) or f"constant:{known.path or self.name}" for a in self.sources]
        self.learned = [a in learned for a in self.sources]
        self.held = known.held if hold else ()
        self.axis: SampleAxis | None = None
        self.axes: list[SampleAxis | None] = [None] * len(self.sources)

    def locate(self, axes: Mapping[str, SampleAxis | None]) -> None:
        """Learn where the samples of a batch lie, in the value and in every argument."""
        self.axis = axes.get(self.node)
        self.axes = [None if a is None else axes.get(a.name) for a in self.sources]

    def __call__(self, ledger: _Watched, *args: Any, **kwargs: Any) -> Any:
        """The node's value, with the rule behind it."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        place = Place(self, ledger, leaves, spec)
        if not any(place.active):
            return place(*place.operands)
        ledger.expect(f"rule:{self.name}", lambda: torch.zeros(ledger.batch, dtype=torch.float64))
        y: Tensor = _Carry.apply(place, *place.arguments)
        if self.node in ledger.watchers:
            y.register_hook(ledger.watchers[self.node])
        return y


class Cut:
    """An embedding of explained ids, whose looked-up rows are where the pass begins."""

    def __init__(self, begin: Callable[..., Tensor], op: Any) -> None:
        """`begin` looks up by `op` and makes a leaf."""
        self.begin, self.op = begin, op

    def __call__(self, ledger: Ledger, *args: Any, **kwargs: Any) -> Tensor:
        """The rows, as a leaf of the ledger."""
        self.ledger = ledger
        try:
            return self.begin(self, *args, **kwargs)
        finally:
            del self.ledger


class _Watched(Ledger):
    """The books of a pass, and who wants to see the relevance that arrives at a node."""

    watchers: Mapping[str, Callable[[Tensor], None]]


class _Carry(torch.autograd.Function):
    """The value of an operation, with R in place of gradients behind it."""

    @staticmethod
    def forward(ctx: Any, place: Place, *operands: Tensor) -> Tensor:
        ctx.place = place
        y = place(*place.operands)
        place.value = y.detach()
        ctx.save_for_backward(*operands)  # the place keeps them; so that whoever counts what a pass keeps counts them
        return y

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Any:
        return None, *ctx.place.give(r)


class Carried:
    """A program under a table of such rules, ready to run. Same use as `termwise.predictions.propagate.Pass`."""

    def __init__(self, program: Program, table: Mapping[str, Rule], *, start: str = "logit", hold: bool = True) -> None:
        """Give every active node its rule, and rewrite.

        Args:
            program: what is explained.
            table: the method's rules by operator, laid over `TABLE`.
            start: what relevance adds up to in the output: the explained scalar ("logit"), or "one".
            hold: whether normalisers and the gates of a recurrence, as marked in the program, get no relevance.
        """
        self.program, self.start = program, start
        values = [n.meta.get("val") for n in program.graph.nodes if "info" in n.meta and info(n).active]
        half = any(isinstance(v, Tensor) and v.dtype in (torch.bfloat16, torch.float16) for v in values)
        self.lift = torch.float32 if half else None  # half precision has too few digits to divide in
        self.sites: dict[str, Callable[..., Any]] = {}
        learned = _learned(program)
        for node in program.nodes:
            if info(node).role == "cut":
                if problem := refusal(node, moved):
                    raise ValueError(problem)
                self.sites[node.name] = Cut(begun_at_rows(program, node), node.target)
            elif info(node).active:
                rule = rule_of(node, table)
                if problem := refusal(node, rule):
                    raise ValueError(problem)
                site = Site(node, rule, learned, self.lift, hold=hold)
                if (
                    rule is not moved
                    or _casts(node)
                    or op_name(node) in EMPTYING
                    or not all(n is None or info(n).active for n in site.sources if _floating(n))
                ):
                    self.sites[node.name] = site
        self.module = rewrite(program, self.sites, lift=self.lift)
        self._located = False

    def of(self, model: Any) -> Carried:
        """The same pass for a model object: what is kept with a recording holds no model, or it would keep it alive."""
        bound = copy.copy(self)
        bound.program = self.program.of(model)
        return bound

    def run(
        self,
        tensors: list[Tensor],
        whole: Callable[[Tensor], Tensor],
        *,
        complete: bool = True,
        alone: bool = False,
        watch: Mapping[str, Callable[[Tensor], None]] | None = None,
    ) -> Result:
        """Propagate.

        Args:
            tensors: the program's inputs.
            whole: one scalar per sample, linear in the output.
            complete: book constants and losses too.
            alone: the call has no axis of samples; every part gets one of size 1.
            watch: node name -> function called with the relevance that arrives at its value.
        """
        with torch.inference_mode(False):  # in which nothing has a derivative
            ledger, output = self._forward(tensors, complete, alone, watch)
            with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
                start, r = self._starting(output.detach(), whole)
                leaves = [leaf.value for leaf in ledger.leaves]
                arrived: tuple[Tensor | None, ...] = tuple(None for _ in leaves)
                if output.requires_grad and leaves:
                    arrived = torch.autograd.grad(output, leaves, r, allow_unused=True)
            parts: dict[str, Tensor] = {}
            reached: dict[str, bool] = {}
            for leaf, r in zip(ledger.leaves, arrived, strict=True):
                part = leaf.part(torch.zeros_like(leaf.value) if r is None else r).detach()
                part = part.unsqueeze(0) if alone else part
                parts[leaf.name] = parts[leaf.name] + part if leaf.name in parts else part
                reached[leaf.name] = reached.get(leaf.name, False) or r is not None
            parts = {name: part.to(start.dtype) for name, part in {**parts, **ledger.parts()}.items()}
            ledger.close()
        return Result(output.detach(), start, parts, [n for n, r in reached.items() if not r], {})

    def _starting(self, output: Tensor, whole: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What is explained, one number per sample, and its relevance in the output."""
        output.requires_grad_()
        explained = whole(output)
        (w,) = torch.autograd.grad(explained.sum(), output) if explained.requires_grad else (torch.zeros_like(output),)
        explained, r = explained.detach(), times(output.detach(), w)
        if self.start == "logit":
            return explained, r
        sizes, weights = (t.abs().reshape(len(explained), -1) for t in (r, w))  # without an axis of samples all of it is one
        sizes = torch.where(sizes.sum(1, keepdim=True) > 0, sizes, weights)
        total = sizes.sum(1, keepdim=True)
        shares = sizes / torch.where(total > 0, total, 1)
        return (total[:, 0] > 0).to(explained), shares.reshape(r.shape)

    def each(
        self, tensors: list[Tensor], wholes: Sequence[Callable[[Tensor], Tensor]], *, complete: bool = True, alone: bool = False
    ) -> Iterator[Result]:
        """Propagate from several starts, each in a pass of its own."""
        for whole in wholes:
            yield self.run(tensors, whole, complete=complete, alone=alone)

    def graph_size(self, tensors: list[Tensor], *, alone: bool = False) -> int:
        """Bytes that the forward pass keeps for the backward pass, found without keeping them."""
        return graph_size(lambda: self._forward(tensors, True, alone, None)[1])

    def _forward(self, tensors: list[Tensor], complete: bool, alone: bool, watch: Any) -> tuple[_Watched, Tensor]:
        batch = 1 if alone or not tensors or not tensors[0].ndim else tensors[0].shape[0]
        if batch > 1 and not self._located:
            for site in self.sites.values():
                if isinstance(site, Site):
                    site.locate(self.program.axes)
            self._located = True
        ledger = _Watched(batch, complete=complete)
        ledger.watchers = watch or {}
        ledger.inputs = self.program.bind(tensors)
        values = []
        for name, value in ledger.inputs.items():
            value = value.clone() if value.is_inference() else value  # autograd takes no tensors made in that mode
            value = value.to(self.lift) if self.lift is not None and value.is_floating_point() else value
            held = self.program.placeholders[name]
            if held.kind == "input" and value.is_floating_point():
                value = ledger.leaf(f"input:{held.name}", value, value.ndim)
            values.append(value)
        device = tensors[0].device.type if tensors else "cpu"
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            return ledger, self.module(ledger, *values)


def _learned(program: Program) -> set[fx.Node]:
    """Parameters, and what is made of a parameter and no activation."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if (node.op == "placeholder" and program.placeholders[node.name].kind == "parameter") or (
            node.op == "call_function" and not info(node).active and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found


def _part(argument: fx.Node | None) -> str:
    """The name under which a constant argument is booked."""
    if argument is None or info(argument).active:
        return ""
    known = info(argument)
    if known.role == "parameter" and known.origin:
        owner, _, last = known.origin.rpartition(".")
        return f"bias:{owner}" if last == "bias" else f"constant:{known.origin}"
    return f"constant:{known.path}" if known.path else ""


def _casts(node: fx.Node) -> bool:
    """Whether a move rounds: its loss is measured like any other."""
    types = {n.meta["val"].dtype for n in (node, *node.all_input_nodes) if _floating(n)}
    return len(types) > 1


def _floating(node: fx.Node | None) -> bool:
    value = None if node is None else node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def rule_of(node: fx.Node, table: Mapping[str, Rule]) -> Rule:
    """The rule of a node's operator: the method's own, that of `TABLE`, or none of these."""
    return table.get(op_name(node)) or TABLE.get(op_name(node), unchanged)


def refusal(node: fx.Node, rule: Rule) -> str:
    """Why a node has no rule in this form, or "": complex values, and operations of several values that do not only move."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.is_complex():
        return f"no rule for {describe(node)}: relevance is carried as itself here, and its value is complex"
    sums_while_it_looks_up = info(node).role == "cut" and op_name(node) in BAGS
    if sums_while_it_looks_up or (isinstance(value, (tuple, list)) and rule is not moved):
        several = ", which has several values," if not sums_while_it_looks_up else ""
        return f"no rule for {describe(node)}{several} in relevance form: rules='attnlrp' knows it in ratio form"
    return ""
