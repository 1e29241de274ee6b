"""Relevance as a rewrite: one forward pass and one backward pass with modified local derivatives.

Instead of R the ratio c = R / x travels, so that R = x c is formed once, at the leaves. Linear operations propagate c by
their own vector-Jacobian product and only the others need a rule; torch's autograd does the rest.

    start: c = d whole / d output (one-hot for a class);      end: R = leaf * c, for inputs, biases and constants alike

Cost: forward + input-gradient backward, and one reduction of c per bias. Memory: that of the backward pass.
Source: design "relevance as a rewrite"; papers.toml "dynamiclrp" for what it replaces.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from termwise.core.composite import Composite
from termwise.core.program import BAGS, Program, describe, info, is_one_hot, op_name, views_of_ids
from termwise.core.rewrite import rewrite
from termwise.core.samples import SampleAxis, per_sample

from .cuts import leaving, only_outlet, outlets, section
from .experts import group_experts
from .fold import fold_batch_norm, foldable
from .ledger import Ledger, Site
from .memory import graph_size
from .rules import HOLDING, LOSSY, SPLITTING, Rule, Rules, rules_of
from .rules.linear import MOVES, add, assemble, bag, own
from .rules.products import product, signal_takes_all
from .rules.sets import IN_ITS_FORM

if TYPE_CHECKING:
    from .relevance_form import Carried

__all__ = ["Pass", "Result", "begun_at_rows", "propagate"]

HALF = {torch.bfloat16, torch.float16}


class Pass:
    """A program under a rule set, ready to run: `module` is the rewritten graph."""

    books: type[Ledger] = Ledger

    def __init__(
        self,
        program: Program,
        rules: Rules,
        *,
        biases: str = "parts",
        at: str | None = None,
        to: str | None = None,
        layers: Mapping[str, str] | None = None,
        measure_all: bool = False,
        lift: torch.dtype | None = None,
        otherwise: Rule | None = None,
    ) -> None:
        """Choose each node's rule and rewrite.

        Args:
            program: what is explained.
            rules: name of a rule set, or a mapping.
            biases: who gets what biases own, as in `explain`.
            at: path of a module whose output is a leaf: relevance that arrives there goes no further.
            to: path of a module whose output is the program's, in place of its own.
            layers: name -> node, the relevance of every entry of whose value is kept as it passes.
            measure_all: weigh every node, not only those that may lose: the debugging mode, twice as slow.
            lift: compute in this dtype where the program asks for a narrower one. Half precision has too few digits
                for ratios, so float32 there; otherwise the program's own casts are kept, and their rounding is booked.
            otherwise: the rule of a node that the set has none for; an error when not given.
        """
        self.recorded, self.biases = program, biases
        given_away = biases in ("distribute", "zero")  # to the inputs of the same operation, where something may be lost
        self.leaves = {} if at is None else outlets(program, at)
        self.end = None if to is None else only_outlet(program, to)
        self.layers = dict(layers or {})
        program = group_experts(program, {*self.leaves, self.end, *self.layers.values()})
        chosen = rules_of(program, rules, otherwise)
        fold = foldable(program) & {name for name, rule in chosen.items() if given_away or rule in SPLITTING}
        fold -= {*self.leaves, self.end}  # folded, such a value would be gone
        if fold:
            program = fold_batch_norm(program, fold)
            chosen = rules_of(program, rules, otherwise)
        if self.leaves or self.end is not None:  # rules are chosen before: "the first convolution" is that of the whole
            program = section(program, self.leaves, self.end)
        if lost := [name for name, node in self.layers.items() if node in fold]:
            raise ValueError(f"{lost[0]!r} is one operation with the batch norm behind it under these rules: name the batch norm")
        self.program, self.rules = program, chosen
        dtypes = _dtypes(program)
        self.dtype = max(dtypes, key=lambda d: torch.finfo(d).bits, default=torch.float32)
        if lift is None and not dtypes.isdisjoint(HALF):
            lift = torch.promote_types(self.dtype, torch.float32)
        self.lift = lift
        self._located: set[str] = set()  # names of sites that know their samples; shared with the copies that `of` makes
        self.weights = _weights(program, chosen)
        if at is None and to is None and program.output in self.weights:
            raise ValueError(_held_head(program, chosen, self.weights))
        self.weights -= {program.output}  # which owns what it is
        self.inputs = {p.name for p in program.placeholders.values() if p.kind == "input"}
        self.sites: dict[str, Site] = {}
        for node in program.nodes:
            if info(node).role == "cut" and node.name in self.leaves:
                self.sites[node.name] = Site(_leaf(self.leaves[node.name]), node.target)  # type: ignore[arg-type]
            elif info(node).role == "cut":
                self.sites[node.name] = Site(begun_at_rows(program, node), node.target)  # type: ignore[arg-type]
            elif node.name in chosen and info(node).active:
                measured = measure_all or given_away or chosen[node.name] in LOSSY or self._rounds(node)
                if measured or node is program.output or not _is_own(chosen[node.name], node, self.weights):
                    self.sites[node.name] = self._site(node, measured)
        self._inputs = {
            n.name
            for n in program.graph.find_nodes(op="placeholder")
            if program.placeholders[n.name].kind == "input" and info(n).active
        }
        self._where = {part: name for name, part in self.leaves.items()}
        passing, behind = leaving(program, self.layers.values()) if self.layers else (program, {})
        kept = {new: _keeping(node) for node, new in behind.items()}
        self.module = rewrite(passing, {**self.sites, **kept}, lift=self.lift)

    def _site(self, node: fx.Node, measured: bool) -> Site:
        known, arguments = info(node), _flat(node.args)
        return Site(
            rule=self.rules[node.name],
            op=node.target.lift(self.lift) if self.lift and isinstance(node.target, Composite) else node.target,  # type: ignore[arg-type]
            name=f"{op_name(node)}@{known.path}",
            path=known.path,
            measured=measured,
            held=known.held,
            gates=known.gates,
            origins=tuple(_origin(a, self.weights, self.inputs) for a in arguments),
            weight=node in self.weights,
            source=_source(node),
        )

    def _locate(self) -> None:
        """Tell every site where the samples lie: needed, and paid for, from the second sample on."""
        axes = self.recorded.axes
        for node in self.program.nodes:
            if site := self.sites.get(node.name):
                site.axis = axes.get(node.name)
                site.axes = fx.map_arg(node.args, lambda a: axes.get(a.name))
                if site.rule in (own, assemble) and any(
                    axes.get(a.name) is None for a in (node, *node.all_input_nodes) if info(a).active
                ):
                    site.measured = False  # a move between layouts (unbind of the batch): no sample to book a loss on
        self._located.update(self.sites)

    def _rounds(self, node: fx.Node) -> bool:
        """Whether a node computes more coarsely than the program at its finest: its rounding is a loss like any other."""
        if self.lift is not None:
            return False
        bits = torch.finfo(self.dtype).bits
        inner = node.target.graph.nodes if isinstance(node.target, Composite) else ()
        values = [n.meta.get("val") for n in (*inner, *(n for n in (node, *node.all_input_nodes) if info(n).active))]
        return any(isinstance(v, Tensor) and v.is_floating_point() and torch.finfo(v.dtype).bits < bits for v in values)

    def of(self, model: Any) -> Pass:
        """The same pass for a model object: what is kept with a recording holds no model, or it would keep it alive."""
        bound = copy.copy(self)
        bound.recorded, bound.program = self.recorded.of(model), self.program.of(model)
        return bound

    def run(self, tensors: list[Tensor], whole: Callable[[Tensor], Tensor], *, complete: bool = True) -> Result:
        """Propagate from one start.

        Args:
            tensors: the program's inputs.
            whole: picks one scalar per sample from the output; its own derivative is where relevance starts.
            complete: book biases, constants and losses too; without, only the inputs.
        """
        (result,) = self.each(tensors, [whole], complete=complete)
        return result

    @torch.inference_mode(False)  # in which nothing has a derivative
    def each(
        self,
        tensors: list[Tensor],
        wholes: Sequence[Callable[[Tensor], Tensor]],
        *,
        complete: bool = True,
        alone: bool = False,
    ) -> Iterator[Result]:
        """Propagate from several starts: one forward pass, then one backward pass for each when its result is asked for.

        Args:
            tensors: the program's inputs.
            wholes: as in `run`.
            complete: as in `run`.
            alone: the call has no axis of samples; every part gets one of size 1.

        Memory: O(the graph of one forward pass + one result), however many starts there are.
        """
        ledger, output = self.forward(tensors, complete=complete, alone=alone)
        try:
            for left, whole in enumerate(wholes, start=1 - len(wholes)):
                yield self._backward(ledger, output, whole, alone=alone, again=left < 0)
                ledger.clear()
        finally:
            ledger.close()

    @torch.inference_mode(False)
    def forward(self, tensors: list[Tensor], *, complete: bool = True, alone: bool = False) -> tuple[Ledger, Tensor]:
        """The forward pass of `each`: the books, opened, and the output that relevance will start from."""
        batch = 1 if alone or not tensors or not tensors[0].ndim else tensors[0].shape[0]
        if batch > 1 and len(self._located) < len(self.sites):
            self._locate()
        ledger = self.books(batch, complete=complete, dtype=self.lift or self.dtype, biases=self.biases)
        values = []
        ledger.inputs = self.program.bind(tensors)
        for name, value in ledger.inputs.items():
            value = value.clone() if value.is_inference() else value  # autograd takes no tensors made in that mode
            if self.lift is not None and value.is_floating_point():
                value = value.to(self.lift)
            if name in self._inputs and (value.is_floating_point() or value.is_complex()):
                value = ledger.leaf(f"input:{self.program.placeholders[name].name}", value, value.ndim)
            values.append(value)
        device = tensors[0].device.type if tensors else "cpu"
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            output = self.module(ledger, *values)
        return ledger, output

    def graph_size(self, tensors: list[Tensor], *, alone: bool = False) -> int:
        """Bytes that the forward pass keeps for the backward passes, found without keeping them."""
        opened: list[Ledger] = []

        def forward() -> Tensor:
            ledger, output = self.forward(tensors, alone=alone)
            opened.append(ledger)
            return output

        size = graph_size(forward)
        for ledger in opened:
            ledger.close()
        return size

    def _backward(self, ledger: Ledger, output: Tensor, whole: Callable[[Tensor], Tensor], *, alone: bool, again: bool) -> Result:
        """Relevance at the leaves, leaf * c, beside what was booked on the way; `again`: it is not the last time."""
        leaves = [leaf.value for leaf in ledger.leaves] + [leaf for leaf, _ in ledger.constants]
        with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
            explained = whole(output)
            if explained.requires_grad and leaves:
                ratios = torch.autograd.grad(explained.sum(), leaves, allow_unused=True, retain_graph=again)
            else:
                ratios = tuple(None for _ in leaves)
        for (_, book), c in zip(ledger.constants, ratios[len(ledger.leaves) :], strict=True):
            if c is not None:
                book(c)
        parts: dict[str, Tensor] = {}
        reached: dict[str, bool] = {}
        found: dict[str, Tensor] = {}
        for leaf, c in zip(ledger.leaves, ratios, strict=False):
            name, part = leaf.name, leaf.relevance(c)
            if name in self._where:
                found[name] = torch.zeros_like(leaf.value) if c is None else c
                part = self.by_sample(part, self._where[name], ledger.batch, alone=alone)
            elif alone:
                part = part.unsqueeze(0)
            parts[name] = parts[name] + part if name in parts else part
            reached[name] = reached.get(name, False) or c is not None
        explained = explained.detach().to(self.lift or self.dtype)
        # losses are summed in float64
        booked = {**parts, **ledger.parts()}
        passed = {node: booked.pop(node).to(explained.dtype) for node in set(self.layers.values())}
        layers = {n: self.by_sample(passed[node], node, ledger.batch, alone=alone) for n, node in self.layers.items()}
        if self.biases == "absorb":
            booked = {name: part for name, part in booked.items() if not name.startswith("bias:")}
        parts = {name: part.to(explained.dtype) for name, part in booked.items()}
        return Result(output.detach(), explained, parts, [n for n, r in reached.items() if not r], found, layers)

    def by_sample(self, value: Tensor, node: str, batch: int, *, alone: bool = False) -> Tensor:
        """A value that has the layout of a recorded node's, with its samples along the first axis."""
        axis = self.recorded.axes.get(node) if batch > 1 else None
        if not alone and value.ndim and value.shape[0] == batch and axis in (None, SampleAxis(0)):
            return value
        return per_sample(value, axis, batch)


class Result:
    """What a pass found.

    Attributes:
        output, whole: of the model, and what is explained of it.
        parts: by name.
        unreached: the inputs no relevance reaches.
        ratios: at inner leaves.
        layers: relevance that passed the values that were watched, by name.
    """

    def __init__(
        self,
        output: Tensor,
        whole: Tensor,
        parts: dict[str, Tensor],
        unreached: list[str],
        ratios: dict[str, Tensor],
        layers: dict[str, Tensor] | None = None,
    ) -> None:
        """Hold them."""
        self.output, self.whole, self.parts, self.unreached, self.ratios = output, whole, parts, unreached, ratios
        self.layers = layers or {}


def propagate(
    program: Program,
    rules: Rules = "default",
    *,
    biases: str = "parts",
    at: str | None = None,
    to: str | None = None,
    layers: Mapping[str, str] | None = None,
) -> Pass | Carried:
    """The pass of a program under a rule set, rewritten once and kept with the recording."""
    key = ("pass", tuple(rules.items()) if isinstance(rules, Mapping) else rules, biases, at, to, tuple((layers or {}).items()))
    try:
        known: Pass | Carried | None = program.derived.get(key)
    except TypeError:  # an unhashable rule
        return Pass(program, rules, biases=biases, at=at, to=to, layers=layers)
    if known is None:
        known = program.derived[key] = _in_its_form(program, rules, biases, at, to, layers).of(None)
    return known.of(program.model)


def _in_its_form(
    program: Program, rules: Rules, biases: str, at: str | None, to: str | None, layers: Mapping[str, str] | None
) -> Pass | Carried:
    """Ratios travel, but for the rule sets that exist only for relevance itself."""
    if isinstance(rules, str) and rules in IN_ITS_FORM:
        from .dynamiclrp import dynamiclrp  # which builds on this module's Result

        if biases != "parts" or at is not None or to is not None or layers:
            raise ValueError(
                f"rules={rules!r} carries relevance itself: what biases get is its own rule, and there are no leaves in "
                "the network. Leave biases, at, through and layers out"
            )
        return dynamiclrp(program)
    return Pass(program, rules, biases=biases, at=at, to=to, layers=layers)


def begun_at_rows(program: Program, node: fx.Node) -> Callable[..., Any]:
    """An embedding of explained ids: what was looked up becomes a leaf, and its part has the shape of the ids."""
    name, views = f"input:{info(node).origin}", views_of_ids(node)

    def leaf(at: Any, looked_up: Tensor, axes: int) -> Tensor:
        places = None
        if views is not None:  # transposed, shifted, a half of what was given: where is each of them there?
            given = at.ledger.inputs[views.ids]
            tags = torch.arange(given.numel(), device=given.device).view(given.shape)
            places = views(at.ledger.inputs, tags), given.shape
        return at.ledger.leaf(name, looked_up, axes, places)  # type: ignore[no-any-return]

    def cut(at: Any, weight: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        looked_up = at.op(weight, *rest, **kwargs)
        return leaf(at, looked_up, looked_up.ndim - (1 if is_one_hot(node) else weight.ndim - 1))

    def cut_bag(at: Any, weight: Tensor, ids: Tensor, *rest: Any) -> Any:
        table, numbers = leaf(at, weight[ids], ids.ndim), torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        if len(rest) > 6 and rest[6] is not None and rest[6] >= 0:  # padding, which counts in no bag: one row more
            numbers = numbers.masked_fill(ids == rest[6], len(ids))
            table, rest = torch.cat([table, table.new_zeros(1, table.shape[1])]), (*rest[:6], len(ids))
        return bag(at, table, numbers, *rest)

    return cut_bag if op_name(node) in BAGS else cut


def _keeping(name: str) -> Callable[[Ledger, Tensor], Tensor]:
    def keep(ledger: Ledger, value: Tensor) -> Tensor:
        return ledger.keep(name, value)

    return keep


def _leaf(name: str) -> Callable[..., Tensor]:
    """A module's output that is a leaf, and keeps its shape."""

    def leaf(at: Any, value: Tensor) -> Tensor:
        return at.ledger.leaf(name, value, value.ndim)

    return leaf


def _dtypes(program: Program) -> set[torch.dtype]:
    """The floating dtypes that active nodes of the program have."""
    found = [n.meta.get("val") for n in program.graph.nodes if "info" in n.meta and info(n).active]
    return {v.dtype for v in found if isinstance(v, Tensor) and v.is_floating_point()}


def _weights(program: Program, rules: dict[str, Any]) -> set[fx.Node]:
    """Values that are held constant: those of holding rules, and what is made of nothing else (cast, masked, scaled)."""
    weights: set[fx.Node] = set()
    for node in program.nodes:
        operands = node.all_input_nodes[:1] if op_name(node) in ("type_as", "expand_as") else node.all_input_nodes
        active = [a for a in operands if info(a).active]
        if node.name in rules and (rules[node.name] in HOLDING or (active and weights.issuperset(active))):
            weights.add(node)
    return weights


def _held_head(program: Program, rules: dict[str, Any], weights: set[fx.Node]) -> str:
    """What to say of a model whose output is made of nothing but values that are held constant."""
    node = program.output
    while rules[node.name] not in HOLDING:
        node = next(a for a in node.all_input_nodes if a in weights)
    return (
        f"{type(program.model).__name__} ends in {describe(node)}, which these rules hold constant, so that no relevance would "
        "pass it: explain the logits before it (the model without it), or use rules='attnlrp', which goes through it"
    )


def _is_own(rule: Any, node: fx.Node, weights: set[fx.Node]) -> bool:
    """Whether a rule leaves this node to autograd as it is: nothing constant to book, nothing to share or hold."""
    operands = [a for a in _flat(node.args) if isinstance(a, (fx.Node, float))]
    active = [a for a in operands if isinstance(a, fx.Node) and info(a).active and a not in weights]
    if rule is own:
        return True
    if rule is add:
        return len(node.args) == 2 and len(active) == 2
    return rule in (product, signal_takes_all) and len(active) == 1 and not info(node).held


def _origin(argument: Any, weights: set[fx.Node], inputs: set[str]) -> str:
    """The part under which a constant argument is booked."""
    if argument in weights:
        return f"constant:{info(argument).path or op_name(argument)}"
    if not isinstance(argument, fx.Node) or info(argument).active:
        return ""
    origin = info(argument).origin
    if origin in inputs:  # one that all samples share
        return f"constant:{origin}"
    if origin and info(argument).role == "parameter":
        owner, _, last = origin.rpartition(".")
        return f"bias:{owner}" if last == "bias" else f"constant:{origin}"
    path = info(argument).path
    return f"constant:{path}" if path else ""


def _source(node: fx.Node) -> str:
    """The input whose entries, moved and padded with zeros, are all that the activation of a node holds; or ""."""
    while True:
        active = [a for a in node.all_input_nodes if info(a).active]
        if len(active) != 1:
            return ""
        (node,) = active
        if node.op == "placeholder" or info(node).role == "cut":
            return f"input:{info(node).origin}" if info(node).origin else ""
        padded = op_name(node) in ("pad", "constant_pad_nd") and all(a in (0, None, "constant") for a in node.args[2:])
        if op_name(node) not in MOVES and not padded:
            return ""


def _flat(args: Any) -> list[Any]:
    if isinstance(args, (tuple, list)):
        return [x for a in args for x in _flat(a)]
    return [args]
