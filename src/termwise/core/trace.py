"""The fallback of capture: trace this very call, where `torch.export` refuses Python that branches on data.

The trace holds for these sizes and for the decisions taken in this call. Every number that Python read from a tensor
is recorded, and read again at each run: another decision is an error, never a silently wrong program.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from .interpret import evaluate
from .program import CaptureError, Placeholder, Program

if TYPE_CHECKING:
    from .capture import Call

__all__ = ["Decision", "from_trace", "slow_transformer_path"]

aten = torch.ops.aten


class Decision:
    """A number read from a tensor (`.item()`, `if x.sum() > 0`), which must come out as it did when recorded."""

    def __init__(self, value: Any, where: str) -> None:
        """Remember what it was, and in which module."""
        self.value, self.where = value, where
        self.__name__ = self.__qualname__ = "decision"
        self.__module__ = __name__

    def __call__(self, tensor: Tensor) -> Any:
        """Read it again.

        Raises:
            CaptureError: when it is another number now.
        """
        found = tensor.item()
        if found != self.value:
            raise CaptureError(
                f"the model decided by a number read from a tensor at {self.where or 'the top of the model'}: it was "
                f"{self.value} when the call was recorded and is {found} now. Capture this input on its own "
                "(one sample at a time, program by program)"
            )
        return found


def from_trace(call: Call, why: str) -> Program:
    """Record one call: trace it with `make_fx` (Python runs for real), then functionalise the trace by export."""
    from .capture import finish

    model = call.model
    weights: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        weights = dict(model.named_parameters(remove_duplicate=False))
        weights |= dict(model.named_buffers(remove_duplicate=False))
    holder = _Holder(call)

    def function(tensors: list[Tensor], named: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(holder, {f"model.{n}": t for n, t in named.items()}, tuple(tensors))
        return output

    tensors = [t.detach() for t in call.tensors]
    with _module_paths(model), slow_transformer_path():
        # private argument, guarded by a test: without it any number read from a tensor is refused
        traced = make_fx(function, pre_dispatch=True, _error_on_data_dependent_ops=False)(tensors, weights)
    reads = _take_out_reads(traced)
    values = [*tensors, *(w.detach() for w in weights.values())]
    decided = fx.Interpreter(traced).run(*values)[1:]
    replay = _Replay(traced)
    exported = torch.export.export(replay, tuple(values), strict=False).run_decompositions({})

    names = iter([*(("input", n) for n in call.names), *(("parameter", n) for n in weights)])
    placeholders = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            placeholders[spec.arg.name] = Placeholder(*next(names))
        else:
            value = {**exported.constants, **exported.state_dict}[spec.target]
            placeholders[spec.arg.name] = Placeholder("constant", "made in forward", value)
    graph = exported.graph_module.graph
    _name_modules(graph, replay)
    (out,) = graph.find_nodes(op="output")
    value, *read_nodes = [n for n in pytree.tree_leaves(out.args) if isinstance(n, fx.Node)]
    out.args = (value,)
    for node, read, number in zip(read_nodes, reads, decided, strict=True):
        with graph.inserting_before(out):
            graph.call_function(Decision(number.item(), read), (node,))
    program = finish(graph, placeholders, call, tensors, how=f"trace: {why}", dynamic=False)
    _compare_elsewhere(program, call)
    return program


def _compare_elsewhere(program: Program, call: Call) -> None:
    """A value that passed through numpy is a constant of the trace; on another input that shows."""
    generator = torch.Generator().manual_seed(0)
    moved = [
        t + (1e-3 * torch.randn(t.shape, generator=generator)).to(t) * (1 + t.abs().nan_to_num(posinf=0))
        if t.is_floating_point()
        else t
        for t in call.tensors
    ]
    with torch.no_grad(), slow_transformer_path():  # the fused path rounds otherwise, visibly so in bfloat16
        try:
            found = evaluate(program.graph, program.of(call.model).bind(moved))
        except CaptureError:  # it would decide otherwise there, which is told apart already
            return
        expected = call.run(*moved)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise CaptureError("part of the computation happens outside torch (numpy?), and was recorded as a constant")


class _Holder(nn.Module):
    """The call as a module, so that its model's parameters can be handed in."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call, self.model = call, call.model

    def forward(self, *tensors: Tensor) -> Any:
        return self.call.run(*tensors)


class _Tag(nn.Module):
    """Runs what it is given; its own path in a recording says which module of the model it stands for."""

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


class _Replay(nn.Module):
    """A traced graph, run node by node under the tag of the module each node came from."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced
        self.paths = sorted({_path(n) for n in traced.graph.nodes})
        self.tags = nn.ModuleList(_Tag() for _ in self.paths)

    def forward(self, *values: Tensor) -> Any:
        replay = self

        class Tagged(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                return replay.tags[replay.paths.index(_path(n))](lambda: super(Tagged, self).run_node(n))

        return Tagged(self.traced).run(*values)


def _path(node: fx.Node) -> str:
    return next(iter(node.meta.get("nn_module_stack", {}).values()), ("",))[0]


def _name_modules(graph: fx.Graph, replay: _Replay) -> None:
    """Give every node the path of the user's module instead of the tag it ran under."""
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        tag = re.search(r"tags\.(\d+)", str(stack[-1][0])) if stack else None
        path = replay.paths[int(tag.group(1))] if tag else ""
        node.meta["nn_module_stack"] = {"path": (path, "")}
        node.meta.pop("stack_trace", None)  # lines of the replay, not of the model


def _take_out_reads(traced: fx.GraphModule) -> list[str]:
    """Turn every `item` node into one more output; returns the module path of each."""
    graph = traced.graph
    items = [
        n for n in graph.nodes if n.op == "call_function" and n.target in (aten.item.default, aten._local_scalar_dense.default)
    ]
    (out,) = graph.find_nodes(op="output")
    (value,) = [n for n in pytree.tree_leaves(out.args) if isinstance(n, fx.Node)]
    # a copy, since the tensor may be written to later
    reads = []
    for item in items:
        with graph.inserting_before(item):
            reads.append(graph.call_function(aten.clone.default, (item.args[0],)))
        if item.users:
            raise CaptureError(f"a number read from a tensor at {_path(item) or 'the top of the model'} is used as a tensor")
        graph.erase_node(item)
    out.args = ((value, *reads),)
    graph.set_codegen(fx.graph.CodeGen())
    traced.recompile()
    return [_path(r) or _path(i) for r, i in zip(reads, items, strict=True)]


@contextlib.contextmanager
def _module_paths(model: Any) -> Iterator[None]:
    """While tracing, stamp every node with the path of the module that runs (hooks, removed afterwards)."""
    stack: list[str] = []
    handles = []

    def stamp() -> None:
        traceback.current_meta = {"nn_module_stack": {"path": (stack[-1] if stack else "", "")}}

    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            stack.append(name)
            stamp()

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            stack.pop()
            stamp()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        traceback.current_meta = {}
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def slow_transformer_path() -> Iterator[None]:
    """nn.TransformerEncoder's fused fast path is one opaque operator; switch it off for the recording."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
