"""A Program: the recorded operations of a model as data, each node with its role, module path and source line."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .interpret import evaluate
from .recent import Recent
from .samples import SampleAxis, locate

if TYPE_CHECKING:
    from .capture import Call

__all__ = ["CaptureError", "Info", "Placeholder", "Program", "annotate", "views_of_ids"]


class CaptureError(ValueError):
    """A model could not be recorded as a Program."""


@dataclass(frozen=True)
class Placeholder:
    """Where the value of a placeholder comes from.

    `kind` is "input" (`name` is the argument), "parameter" or "buffer" (`name` is the path in the model) or
    "constant" (a tensor the model makes from Python numbers; `value` holds it).
    """

    kind: str
    name: str
    value: Tensor | None = None


@dataclass
class Info:
    """What is known about a node.

    Attributes:
        role: "activation" (depends on an explained input), "cut" (an embedding of explained ids: the explained leaf),
            "index" (integers or booleans that depend on an input), "parameter" or "constant".
        path: module path, as `encoder.layer.0.mlp`; "" at the top.
        source: "file.py:12" of the deepest frame outside torch, or "".
        origin: for a cut the argument that holds the ids; for a constant the parameter it is a view of, or "".
        gates: argument positions that hold a gate (`u * silu(g)`: that of `silu(g)`).
        held: argument positions whose value a relevance rule holds constant (gates of a recurrence, normalisers).
    """

    role: str
    path: str = ""
    source: str = ""
    origin: str = ""
    gates: tuple[int, ...] = ()
    held: tuple[int, ...] = field(default=())

    @property
    def active(self) -> bool:
        """Whether relevance can arrive here."""
        return self.role in ("activation", "cut")


# A look-up in these, and nothing else, still is "the user's ids".
_VIEWS = {"view", "reshape", "unsqueeze", "squeeze", "transpose", "t", "permute", "slice", "select", "expand", "clone"} | {
    "_to_copy", "to", "alias", "contiguous", "flatten", "_unsafe_view", "type_as", "detach", "lift_fresh_copy", "split",
    "getitem", "chunk", "unbind",
}  # fmt: skip

BAGS = {"embedding_bag", "_embedding_bag"}

# These take an activation for its shape, dtype and device only.
FACTORIES = {
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided",
}  # fmt: skip


DERIVED = 16
"""How many things made from a recording are kept with it: a pass for each rule set and inner module, most of all."""


class Program:
    """What a model computes, recorded once. Made by `termwise.capture`.

    Attributes:
        graph: the operations (`torch.fx.Graph`, functionalised ATen, high-level operators whole). `node.meta["info"]`
            is the node's `Info`.
        placeholders: where each placeholder's value comes from.
        how: "export", or "trace: <why export failed>" for the fallback, which holds for the recorded call only.
        derived: what was made from this recording (rewrites, sample axes), the last `DERIVED` of it.
    """

    def __init__(
        self,
        graph: fx.Graph,
        placeholders: Mapping[str, Placeholder],
        call: Call,
        example: list[Tensor],
        *,
        how: str,
        dynamic: bool,
    ) -> None:
        """Keep the graph and what is needed to run it; the model's tensors are referenced, not copied."""
        self.graph, self.placeholders, self.how = graph, dict(placeholders), how
        self._model, self._key, self._names = call.model, call.key, call.names
        self._example = [t.detach() for t in example]
        self._sizes = [
            # a symbol may have turned out to be a constant while recording
            [s if isinstance(s, int) else s.node.maybe_as_int() for s in node.meta["val"].shape]
            for node in graph.find_nodes(op="placeholder")
            if self.placeholders[node.name].kind == "input"
        ]
        if not dynamic:
            self._sizes = [list(t.shape) for t in call.tensors]
        self.derived: dict[Any, Any] = Recent(DERIVED)

    def of(self, model: Any) -> Program:
        """The same program for a model object: the cache of recordings holds no model, or it would keep it alive."""
        bound = copy.copy(self)
        bound._model = model
        return bound

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The model that was recorded."""
        return self._model

    @property
    def nodes(self) -> list[fx.Node]:
        """The operations, in order of execution."""
        return [n for n in self.graph.nodes if n.op == "call_function"]

    @property
    def output(self) -> fx.Node:
        """The node whose value is the output."""
        (out,) = self.graph.find_nodes(op="output")
        value = out.args[0]
        assert isinstance(value, fx.Node)
        return value

    @property
    def dynamic(self) -> dict[str, tuple[int, ...]]:
        """The axes of each input whose size stayed free, e.g. ``{"input_ids": (0, 1)}``."""
        return {
            name: tuple(d for d, s in enumerate(sizes) if s is None) for name, sizes in zip(self._names, self._sizes, strict=True)
        }

    def __len__(self) -> int:
        """Number of operations."""
        return len(self.nodes)

    def __str__(self) -> str:
        """A table: node, operator, role, shape, module path, source line. Sizes that stayed free are named so."""
        rows = [("node", "op", "role", "shape", "module", "source")]
        rows += [
            (n.name, op_name(n), info(n).role, self._sizes_of(n), info(n).path, info(n).source)
            for n in self.graph.nodes
            if n.op == "call_function"
        ]
        widths = [min(max(len(r[i]) for r in rows), 44) for i in range(6)]
        lines = ["  ".join(c[:w].ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([repr(self), *lines])

    def _sizes_of(self, node: fx.Node) -> str:
        """The shape of a node's value, with the symbol of the batch as "batch" and others as "free"."""
        given = next((n for n in self.graph.find_nodes(op="placeholder") if self.placeholders[n.name].kind == "input"), None)
        batch = str(next(iter(_shape(given)), "")) if given is not None else ""
        return "x".join(re.sub(r"s\d+", lambda m: "batch" if m.group() == batch else "free", str(s)) for s in _shape(node))

    def __repr__(self) -> str:
        """One line."""
        active = sum(info(n).active for n in self.nodes)
        return f"Program({type(self.model).__name__}: {len(self)} nodes, {active} active, by {self.how.partition(':')[0]})"

    # -- running it ---------------------------------------------------------------------------------------------------

    def accepts(self, call: Call) -> bool:
        """Whether this program stands for that call too (same structure, dtypes and fixed sizes)."""
        return call.key == self._key and all(
            all(fixed in (None, size) for fixed, size in zip(sizes, t.shape, strict=True))
            for sizes, t in zip(self._sizes, call.tensors, strict=True)
        )

    def bind(self, tensors: list[Tensor], *, detached: bool = True) -> dict[str, Tensor]:
        """A value for every placeholder: the given input tensors, and the model's weights as they are now.

        Args:
            tensors: the input tensors.
            detached: give weights that require no grad. torch picks kernels by that flag, which round differently.
        """
        inputs = iter(tensors)
        return {name: next(inputs) if p.kind == "input" else self._held(p, detached) for name, p in self.placeholders.items()}

    def _held(self, p: Placeholder, detached: bool) -> Tensor:
        """A parameter or buffer, or a tensor that the model holds as a plain attribute."""
        held = _weight(self.model, p.name) if p.value is None else p.value
        return held.detach() if detached and held.requires_grad else held

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The placeholders that hold each parameter, by every name that it has in the model: tied ones have several."""
        if not isinstance(self.model, nn.Module):
            return {}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        held: dict[int, list[str]] = {}
        for node, p in self.placeholders.items():
            if p.kind == "parameter":
                held.setdefault(id(_weight(self.model, p.name)), []).append(node)
        return {name: held[id(tensor)] for name, tensor in named.items() if id(tensor) in held}

    def tensors(self, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
        """The tensors of a call, checked against what was recorded.

        Raises:
            ValueError: with the shapes of both, where these differ, and with dtypes and devices, of the weights too.
        """
        from .capture import Call, arguments

        _, args, keywords = arguments(self.model, inputs, kwargs)
        call = Call(self.model, args, keywords, self._key[-1])
        if not self.accepts(call):
            wanted = {n: ["free" if s is None else s for s in z] for n, z in zip(self._names, self._sizes, strict=True)}
            given = {n: list(t.shape) for n, t in zip(call.names, call.tensors, strict=True)}
            kinds = [_kinds(self._key), _kinds(call.key)]
            was, now = kinds if kinds[0] != kinds[1] else ("", "")
            raise ValueError(f"this program was recorded for {wanted}{was} ({self.how}), got {given}{now}: capture it anew")
        return call.tensors

    def __call__(self, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Tensor:
        """Run it as it is (the identity interpreter): the model's own value, to the bit."""
        with torch.no_grad():
            value: Tensor = evaluate(self.graph, self.bind(self.tensors(*inputs, kwargs=kwargs), detached=False))
        return value

    def run(self, call: Call) -> Tensor:
        """Run it on a call that it accepts."""
        with torch.no_grad():
            value: Tensor = evaluate(self.graph, self.of(call.model).bind(call.tensors))
        return value

    @property
    def axes(self) -> dict[str, SampleAxis | None]:
        """Where the samples of a batch lie in every active node's value; None where they cannot be told apart."""
        if "axes" not in self.derived:
            self.derived["axes"] = locate(self, self._example)
        found: dict[str, SampleAxis | None] = self.derived["axes"]
        return found

    # -- is it whole --------------------------------------------------------------------------------------------------

    def check(self) -> Program:
        """Raise CaptureError unless every node is known, functional and connected; return self."""
        self.graph.lint()
        for node in self.nodes:
            where = describe(node)
            if "info" not in node.meta:
                raise CaptureError(f"{where} was given no role")
            if isinstance(node.target, torch._ops.OpOverload):
                if node.target._schema.is_mutable:
                    raise CaptureError(f"{where} writes into its argument; a program must be functional")
            elif node.target is not operator.getitem and not callable(node.target):
                raise CaptureError(f"{where} is no operation that can be run")
            if info(node).active and not node.users:
                raise CaptureError(f"the value of {where} is used by nothing, and is not the output")
        for name in self.placeholders:
            if name not in {n.name for n in self.graph.find_nodes(op="placeholder")}:
                raise CaptureError(f"placeholder {name} is missing from the graph")
        return self


def _kinds(key: tuple[Any, ...]) -> str:
    """Dtypes and devices within the key of a call: of its tensors, and of the weights."""
    tensors = ", ".join(f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device, _ in key[1])
    weights = f", with weights in {str(key[3][0]).removeprefix('torch.')} on {key[3][1]}" if key[3] else ""
    return f" in {tensors}{weights}"


def info(node: fx.Node) -> Info:
    """The node's `Info`."""
    found = node.meta["info"]
    assert isinstance(found, Info)
    return found


def op_name(node: fx.Node) -> str:
    """Name of the operator without its overload: "linear", "add", "getitem", or that of a recognised pattern."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        space, _, name = target._schema.name.partition("::")
        return name if space == "aten" else f"{space}.{name}"
    return getattr(target, "__name__", str(target))


def describe(node: fx.Node) -> str:
    """`aten.linear at encoder.layer.0 (modeling.py:120)`, for messages."""
    known = node.meta.get("info") or Info("", *where(node))
    name = op_name(node)
    op = f"aten.{name}" if isinstance(node.target, torch._ops.OpOverload) and "." not in name else name
    return f"{op} at {known.path or 'the top of the model'}" + (f" ({known.source})" if known.source else "")


def where(node: fx.Node) -> tuple[str, str]:
    """Module path and source line of a node, from what export recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    if stack:
        last = list(stack.values())[-1]
        path = re.sub(r"@\d+", "", str(last[0])).removeprefix("model").removeprefix(".")
        path = "" if path.startswith("_empty_nn_module_stack") else path
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f for f in frames if "/torch/" not in f[0] and not f[0].startswith("<")]
    source = f"{own[-1][0].rpartition('/')[2]}:{own[-1][1]}" if own else ""
    return path, source


def annotate(graph: fx.Graph, placeholders: Mapping[str, Placeholder], shared: Collection[str] = ()) -> None:
    """Give every node its `Info`: role, path, source, origin. Inputs that all samples share are constants."""
    for node in graph.nodes:
        if node.op == "placeholder":
            held = placeholders[node.name]
            role = held.kind if held.kind != "buffer" else "constant"
            if held.kind == "input":
                role = "index" if not _is_floating(node) else "constant" if held.name in shared else "activation"
            node.meta["info"] = Info(role, origin=held.name)
        elif node.op == "call_function":
            path, source = where(node)
            role, origin = _role(node)
            node.meta["info"] = Info(role, path, source, origin)


def _role(node: fx.Node) -> tuple[str, str]:
    args = node.all_input_nodes
    if op_name(node) in FACTORIES:
        return "constant", ""
    name = op_name(node)
    if is_one_hot(node) or (name in BAGS and info(args[0]).role == "parameter"):
        if given := _looked_up(_ids(node)):
            return "cut", given
    if any(info(a).active for a in args) and _is_floating(node):
        return "activation", ""
    if name in ("embedding", "index", "index_select") and info(args[0]).role == "parameter":
        ids = [_looked_up(a) for a in args[1:]]
        if len(ids) == 1 and ids[0] is not None:
            return "cut", ids[0]
    if any(info(a).active or info(a).role == "index" for a in args) and not _is_floating(node):
        return "index", ""
    tensors = [a for a in args if isinstance(a.meta.get("val"), Tensor)]
    roles = {info(a).role for a in tensors}
    origin = info(tensors[0]).origin if len(tensors) == 1 and name in _VIEWS else ""
    return ("parameter" if roles == {"parameter"} else "constant"), origin


def is_one_hot(node: fx.Node) -> bool:
    """Whether a node makes numbers of one-hot ids: an embedding in the identity."""
    return op_name(node) in ("_to_copy", "to") and op_name(node.all_input_nodes[0]) == "one_hot" and _is_floating(node)


def _ids(cut: fx.Node) -> fx.Node:
    """What a cut looks up."""
    return cut.all_input_nodes[0].all_input_nodes[0] if is_one_hot(cut) else cut.all_input_nodes[1]


def _looked_up(node: fx.Node) -> str | None:
    """The argument that holds these ids, when they are the user's own up to views and casts."""
    while node.op == "call_function" and op_name(node) in _VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return info(node).origin if node.op == "placeholder" and info(node).role == "index" else None


@dataclass(frozen=True)
class Views:
    """The views that lie between the ids that were given (placeholder `ids`) and those that are looked up."""

    ids: str
    graph: fx.Graph

    def __call__(self, inputs: Mapping[str, Tensor], tags: Tensor) -> Tensor:
        """What becomes of tags, one for each id, on their way to the look-up."""
        moved: Tensor = evaluate(self.graph, {**inputs, self.ids: tags})
        return moved


def views_of_ids(cut: fx.Node) -> Views | None:
    """The views before a cut; None where there are none, and each looked-up row lies where its id does."""
    last = node = _ids(cut)
    wanted: set[fx.Node] = set()
    stack, moved = [last], False
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack += node.all_input_nodes
            moved |= op_name(node) in _VIEWS - {"_to_copy", "to", "clone", "contiguous", "alias"}
    if not moved:
        return None
    graph, seen = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in cut.graph.nodes:
        if node in wanted or node.op == "placeholder":
            seen[node] = graph.node_copy(node, seen.__getitem__)
    graph.output(seen[last])
    ids = next(n.name for n in wanted if n.op == "placeholder" and info(n).role == "index")
    return Views(ids, graph)


def _values(node: fx.Node) -> Iterator[Any]:
    value = node.meta.get("val")
    yield from value if isinstance(value, (tuple, list)) else (value,)


def _is_floating(node: fx.Node) -> bool:
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in _values(node))


def _shape(node: fx.Node) -> tuple[Any, ...]:
    first = next(_values(node))
    return tuple(first.shape) if isinstance(first, Tensor) else ()


def _weight(model: Any, path: str) -> Tensor:
    """The model's parameter or buffer at a dotted path, as it is now."""
    owner = model
    for name in path.split("."):
        owner = getattr(owner, name)
    if not isinstance(owner, Tensor):
        raise CaptureError(f"{path} of {type(model).__name__} is no tensor any more: capture the model anew")
    return owner
