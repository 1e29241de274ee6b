"""Capture once: a model becomes a Program, a flat list of tensor operations whose every node knows its role.

`torch.export` (non-strict) records the model, functionalised, with high-level operators kept whole (linear, layer_norm,
scaled_dot_product_attention, gelu, lstm). Where export refuses (Python that branches on data), this very call is traced
with `make_fx` instead, and the Program says so. The user's model is only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from . import patterns
from .arguments import uninitialised
from .program import CaptureError, Placeholder, Program, annotate, op_name

__all__ = ["CaptureError", "capture"]

log = logging.getLogger(__name__)

KEPT = 8
"""How many recordings of a model are kept: of other shapes, arguments or targets. The one not asked for longest is dropped."""

# model -> what it was made of, and the programs recorded of it as such, the last one used last
_cache: weakref.WeakKeyDictionary[Any, tuple[int, list[Program]]] = weakref.WeakKeyDictionary()


def capture(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> Program:
    """Record what `model` computes on these inputs, as a `Program` that can be run, rewritten and interpreted.

    Args:
        model: any module (in eval mode) or a function of tensors. Compiled models are unwrapped.
        *inputs: positional arguments of the model; tensors may sit in tuples, lists and dicts.
        kwargs: keyword arguments of the model. A single mapping as the only input is taken as keywords too.
        select: picks the tensor to explain out of what the model returns. By default `logits` where the output has
            them, otherwise its first floating tensor; so a model that also returns a cache is no obstacle.

    Returns:
        The Program. It is cached per model: a second call whose inputs fit returns the same one, while it is among the last
        `KEPT`. Batch size (and the length of token inputs) stay free where export allows, see `Program.dynamic`.

    Cost: recording, which computes nothing; on inputs of integers, or of another dtype than the weights, one forward pass of
        the recording besides, to see that it takes their values. It leaves the model's buffers and random numbers as they were.

    Raises:
        TypeError: when `model` cannot be called.
        ValueError: when a module of it is in training mode.
        CaptureError: when neither export nor the fallback trace can record the model.

    Example:
        >>> program = capture(torch.nn.Linear(3, 2).eval(), torch.ones(4, 3))
        >>> bool((program(torch.ones(5, 3)) == program.model(torch.ones(5, 3))).all())
        True
    """
    model, inputs, kwargs = arguments(model, inputs, kwargs)
    known = recorded(model, *inputs, kwargs=kwargs, select=select)
    return _recorded_anew(Call(model, inputs, kwargs, select)) if known is None else known


def recorded(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> Program | None:
    """The program of an earlier call of `capture` that stands for this one; arguments as there.

    Raises:
        ValueError: when a module of it is in training mode.
    """
    model, inputs, kwargs = arguments(model, inputs, kwargs)
    if isinstance(model, nn.Module) and (training := [n for n, m in model.named_modules() if m.training]):
        raise ValueError(
            f"{type(model).__name__} is in training mode{f' (at {training[0]})' if training[0] else ''}, where dropout and "
            "batch statistics make its output random: call model.eval() first"
        )
    if lazy := uninitialised(model):
        raise ValueError(f"{lazy} of {type(model).__name__} is not initialised (a lazy module): run the model once before")
    if select is not None and not callable(select):
        raise TypeError(f"select must be a function from the output to a tensor, got {type(select).__name__}")
    call = Call(model, inputs, kwargs, select)
    known = _known(model)
    for program in known:
        if program.accepts(call):
            known.remove(program)
            known.append(program)
            return program.of(model)
    return None


def _recorded_anew(call: Call) -> Program:
    """Record, and keep it."""
    known = _known(call.model)
    program = _record(call)
    if _doubtful(call):
        try:
            with torch.random.fork_rng([t.device for t in call.tensors if t.is_cuda]):  # a trial draws nothing of the user's
                program.run(call)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:
            call.try_model()
            raise CaptureError(f"what was recorded of {type(call.model).__name__} does not run: {problem}") from problem
    with contextlib.suppress(TypeError):  # no weak reference to it: recorded anew each time
        # what a first forward pass sets (tables made for a length) is no change
        _cache[call.model] = _makeup(call.model), [*known, program.of(None)][-KEPT:]
    return program


def _doubtful(call: Call) -> bool:
    """Whether a recording, made of sizes alone, may meet values that it cannot take: ids out of range, another precision."""
    weights = next(iter(call.model.parameters()), None) if isinstance(call.model, nn.Module) else None
    return any(not t.is_floating_point() or (weights is not None and t.dtype != weights.dtype) for t in call.tensors)


def _known(model: Any) -> list[Program]:
    """The programs recorded of a model as it is now."""
    try:
        makeup, known = _cache.get(model, (0, []))
    except TypeError:
        return []
    return known if makeup == _makeup(model) else []


def arguments(
    model: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The model itself (unwrapped from `torch.compile`) and its call, with a lone mapping read as keywords."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__} and must be one of its objects: call it, {model.__name__}(...)")
    if not callable(model):
        raise TypeError(f"model must be a torch.nn.Module or a function of tensors, got {type(model).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping from names of arguments to values, got {type(kwargs).__name__}")
    keywords = dict(kwargs or {})
    if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not keywords:
        return model, (), dict(inputs[0])
    return model, tuple(inputs), keywords


class Call:
    """One call of a model, flattened: its tensors by name, everything else baked in."""

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        select: Callable[[Any], Tensor] | None,
    ) -> None:
        """Name every tensor leaf by the argument that holds it."""
        self.model, self.select = model, select
        named, self._spec = pytree.tree_flatten_with_path((inputs, dict(kwargs)))
        positional = _parameters(model)
        self.leaves: list[Any] = _apart([leaf for _, leaf in named])
        self.slots = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.names = [_argument_name(named[i][0], positional) for i in self.slots]
        for path, leaf in named:
            if not isinstance(leaf, Tensor) and _holds_tensors(leaf):
                raise TypeError(
                    f"the argument {_argument_name(path, positional)} is a {type(leaf).__name__}, inside which there are "
                    "tensors that cannot be followed: pass tensors, or tuples, lists and dicts of them (of a model with a "
                    "cache, explain the whole sequence without it)"
                )

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [self.leaves[i] for i in self.slots]

    @property
    def shared(self) -> frozenset[str]:
        """The tensors that belong to no sample: they lack the batch axis of the first one, or are 0 and -inf (masks)."""
        tensors = self.tensors
        batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
        return frozenset(
            name
            for name, t in zip(self.names, tensors, strict=True)
            if t.is_floating_point() and ((batch > 1 and (t.ndim == 0 or t.shape[0] != batch)) or _is_mask(t))
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """What must agree, besides shapes, for a recorded program to stand for this call."""
        weights = next(iter(self.model.parameters()), None) if isinstance(self.model, nn.Module) else None
        return (
            repr(self._spec),
            tuple((t.dtype, t.device, t.ndim) for t in self.tensors),
            tuple(repr(leaf) for leaf in self.leaves if not isinstance(leaf, Tensor)),
            None if weights is None else (weights.dtype, weights.device),
            self.shared,
            self.select,
        )

    def try_model(self) -> None:
        """Run the model as it is, to tell its own errors from those of recording it.

        Raises:
            CaptureError: when the model itself refuses these inputs.
        """
        args, kwargs = pytree.tree_unflatten(self.leaves, self._spec)
        try:
            with torch.no_grad():
                output = self.model(*args, **kwargs)
        except Exception as problem:
            given = ", ".join(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in zip(self.names, self.tensors, strict=True))
            text = str(problem).strip().splitlines()
            raise CaptureError(
                f"{type(self.model).__name__} itself raises {type(problem).__name__} for {given or 'these arguments'}: "
                f"{text[0] if text else 'no message'}. Call the model with them first, and mend the inputs or the model"
            ) from problem
        try:
            chosen = (self.select or explained)(output)
        except (TypeError, ValueError):  # which say what they need
            raise
        except Exception as problem:
            raise CaptureError(
                f"the function that picks from the output of {type(self.model).__name__} raises {type(problem).__name__} for "
                f"{_shape(output)}: {problem}"
            ) from problem
        if not isinstance(chosen, Tensor) or not (chosen.is_floating_point() or chosen.is_complex()):
            raise CaptureError(f"a floating tensor must be picked from the output, it was {_shape(chosen)}")

    def run(self, *tensors: Tensor) -> Any:
        """Call the model with other tensors in place of its own; returns the tensor to explain."""
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        chosen: Tensor = (self.select or explained)(self.model(*args, **kwargs))
        return chosen


def _apart(leaves: list[Any]) -> list[Any]:
    """The same leaves, in which no tensor object stands twice: recorded, two arguments would become one."""
    found: list[Any] = []
    for leaf in leaves:
        again = isinstance(leaf, Tensor) and any(leaf is other for other in found)
        found.append(leaf.detach() if again else leaf)
    return found


def _makeup(model: Any) -> int:
    """Hash of what a module's forward may depend on besides tensors: its modules, their hooks, their plain attributes.

    A module put in place of another, a hook or a switch (`layer.scale = 2`) makes another program.
    """
    found = []
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        config: Any = getattr(module, "config", None)
        plain = [(k, str(v)) for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple, type(None)))]
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        found.append((name, type(module), id(module), getattr(config, "_attn_implementation", None), hooks, tuple(plain)))
    return hash(tuple(found))


def explained(output: Any) -> Tensor:
    """The tensor of a model's output that is explained: `logits` where there are some, else the first floating one."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    for leaf in _leaves(output):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
    what = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
    raise CaptureError(f"the model returned {what}, in which there is no floating tensor to explain: return scores or logits")


def _shape(value: Any) -> str:
    """What it is, for a message."""
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _leaves(output: Any) -> Iterator[Any]:
    """Leaves in order, looking into any mapping, sequence or dataclass, but into no other object (a cache, say)."""
    if dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        output = [getattr(output, f.name) for f in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            yield from _leaves(item)
    else:
        yield output


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    """Whether an object keeps tensors somewhere, as a cache of keys and values does."""
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (nn.Module, type)) or callable(value):
        return False
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(_holds_tensors(v, depth - 1) for v in (*inner, *getattr(value, "__dict__", {}).values()))


def _is_mask(tensor: Tensor) -> bool:
    """Whether it is an additive mask of attention, which hides and owns nothing."""
    hidden = tensor.isneginf()
    return bool(hidden.any() and (hidden | (tensor == 0)).all())


def _parameters(model: Callable[..., Any]) -> list[str]:
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _argument_name(path: Sequence[Any], positional: list[str]) -> str:
    """`input_ids`, or `past.0.key` for a tensor inside an argument."""
    kind, *rest = [getattr(p, "idx", getattr(p, "key", getattr(p, "name", p))) for p in path]
    if kind == 0:  # positional
        first, *rest = rest
        rest = [positional[first] if first < len(positional) else f"input_{first}", *rest]
    return ".".join(map(str, rest))


class _Recorded(nn.Module):
    """What is exported: tensors in, one tensor out."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.model = call.model  # a module is registered, so that its parameters are named

    def forward(self, *tensors: Tensor) -> Any:
        return self.call.run(*tensors)


def _record(call: Call) -> Program:
    """Export; where that fails with dynamic sizes, with these sizes; where that fails, trace this very call."""
    recorded = _Recorded(call)
    recorded.training = False  # of the wrapper alone: the user's module keeps its flags
    problems = []
    with _quiet(), torch.inference_mode(False), torch.no_grad(), _exportable_experts(call.model):
        for dynamic in (True, False):
            tensors = [_widened(t) for t in call.tensors] if dynamic else call.tensors
            try:
                program = _from_export(recorded, call, tensors, dynamic)
                if program.accepts(call):
                    return program
                problems.append("a size became fixed while recording")
            except Exception as problem:  # export fails in very many ways
                problems.append(": ".join([type(problem).__name__, *str(problem).strip().splitlines()[:1]]))
        from .trace import from_trace

        log.info("torch.export refused %s (%s): tracing this call", type(call.model).__name__, problems[-1])
        try:
            return from_trace(call, why=problems[-1])
        except Exception as problem:
            call.try_model()
            raise CaptureError(_why_not(call.model, problems[-1], problem)) from problem


def _why_not(model: Any, exported: str, traced: Exception) -> str:
    """What to say of a model that runs, and cannot be recorded."""
    start = f"{type(model).__name__} could not be recorded"
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if scripted := [n or "the top" for n, m in modules.items() if isinstance(m, torch.jit.ScriptModule)]:
        return f"{start}: it holds TorchScript (at {scripted[0]}), which has no Python to follow. Use the module it was made from"
    if re.search(r"aten\.\w+\.data\b|pack_padded", f"{exported} {traced}"):
        return (
            f"{start}: it packs sequences by their lengths (pack_padded_sequence). Give the recurrent layer the padded batch, "
            "and take each sample's last step by its length"
        )
    if isinstance(traced, CaptureError) and exported.endswith(str(traced)):
        return f"{start}: {traced}"
    return (
        f"{start}. torch.export said: {exported}; the fallback trace said: {type(traced).__name__}: {traced}. Code that leaves "
        "torch (numpy, .item() on an input that decides what is computed) cannot be taken apart: explain the part of the model "
        "behind it"
    )


def _widened(tensor: Tensor) -> Tensor:
    """A batch of one repeated to two: export takes sizes 0 and 1 for constants."""
    if tensor.ndim and tensor.shape[0] == 1:
        return tensor.expand(2, *tensor.shape[1:]).clone()
    return tensor


def _from_export(recorded: _Recorded, call: Call, tensors: list[Tensor], dynamic: bool) -> Program:
    from torch.export import Dim

    # token inputs are free in their length too; image sizes are not, some models take a minute for that
    free = [
        dict.fromkeys(range(min(t.ndim, 2 if not t.is_floating_point() else 1)), Dim.AUTO) if dynamic else {} for t in tensors
    ]
    exported = torch.export.export(recorded, tuple(tensors), strict=False, dynamic_shapes=(tuple(free),))
    exported = exported.run_decompositions({})  # decomposes nothing: functionalises
    module = exported.graph_module
    placeholders: dict[str, Placeholder] = {}
    names = iter(call.names)
    for spec in exported.graph_signature.input_specs:
        target = (spec.target or "").removeprefix("model.").removeprefix("call.")
        if spec.kind == InputKind.USER_INPUT:
            placeholders[spec.arg.name] = Placeholder("input", next(names))
        elif spec.kind == InputKind.PARAMETER:
            placeholders[spec.arg.name] = Placeholder("parameter", target)
        elif spec.kind == InputKind.BUFFER:
            placeholders[spec.arg.name] = Placeholder("buffer", target)
        else:
            placeholders[spec.arg.name] = Placeholder("constant", target, exported.constants[spec.target])
    outputs = [s.arg.name for s in exported.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    (out,) = [n for n in module.graph.nodes if n.op == "output"]
    (value,) = [n for n in pytree.tree_leaves(out.args) if isinstance(n, fx.Node) and n.name == outputs[0]]
    out.args = (value,)
    return finish(module.graph, placeholders, call, tensors, how="export", dynamic=dynamic)


def finish(
    graph: fx.Graph, placeholders: dict[str, Placeholder], call: Call, tensors: list[Tensor], *, how: str, dynamic: bool
) -> Program:
    """Clean the graph, recognise patterns, give every node its role, and look where the samples lie."""
    if kept := graph.find_nodes(op="get_attr"):
        user = next(iter(kept[0].users), kept[0])
        raise CaptureError(f"{op_name(user)} keeps its branches as they are: write the control flow in Python (if, for)")
    patterns.clean(graph)
    patterns.recognise(graph)
    annotate(graph, placeholders, call.shared)
    patterns.mark_gates(graph)
    program = Program(graph, placeholders, call, tensors, how=how, dynamic=dynamic)
    program.check()
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export's warnings and logs are about export, not about the user's model; failures are reported by us."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # it also prints whole graphs there
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _exportable_experts(model: Any) -> Iterator[None]:
    """Mixture-of-experts configs choose at call time how experts run; only one choice exports, in every dtype."""
    changed = []
    for module in model.modules() if isinstance(model, nn.Module) else ():
        config: Any = getattr(module, "config", None)
        choice = getattr(config, "_experts_implementation", None)
        if choice is not None and choice != "batched_mm":
            changed.append((config, choice))
            config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        for config, choice in changed:
            config._experts_implementation = choice
