r"""A network with a slope at every channel of its activations: 0 leaves the unit as it is, 1 makes it linear.

    phi_c(x) = (1 - a_c) f(x) + a_c x,      for f = relu: max(x, 0) + a_c min(x, 0), the PReLU

A channel is a feature of a linear layer or a map of a convolution: one slope for all its positions. The penalty on what is left
of non-linearity is sum_c |1 - a_c|^p with p = 1/2, concave, so that slopes end at 0 or 1 and not between.

Source: Mehmeti-Goepel & Disselhoff 2023 (PReLU, the penalty). Deviation: gelu and silu too, by the same formula.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from termwise.core.capture import arguments, capture
from termwise.core.interpret import evaluate, interpret
from termwise.core.program import Info, Placeholder, Program, describe, info, op_name

from .activations import CELLS, ELEMENTWISE

__all__ = ["Activation", "PartlyLinear", "attach_slopes", "find_activations"]

aten = torch.ops.aten

GATED = ("relu", "gelu", "silu")
"""Activations that get slopes."""

OTHERS = ELEMENTWISE - {*GATED} | CELLS | {
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool2d", "amax", "maximum", "minimum",
    "softmax", "_softmax", "scaled_dot_product_attention", "layer_norm", "native_layer_norm", "rms_norm", "group_norm",
    "instance_norm", "glu",
}  # fmt: skip
"""Not linear, and left as they are."""

LAST = {"linear", "addmm", "mm", "bmm", "matmul", "layer_norm", "native_layer_norm", "rms_norm"}
SECOND = {"batch_norm", "group_norm", "instance_norm", "convolution"}
ALIKE = {"add", "sub", "mul", "div", "neg", "clone", "contiguous", "_to_copy", "to"} | {*GATED, "tanh", "sigmoid"} | {
    "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d", "adaptive_avg_pool2d", "pad", "constant_pad_nd", "cat",
}  # fmt: skip
"""Whose channels lie where those of their operand do."""


@dataclass(frozen=True)
class Activation:
    """One place where a network is rectified.

    Attributes:
        name: module path and, where it is no module's own (F.relu), the operation; unique.
        node: of the recording.
        op: "relu", "gelu" or "silu".
        axis: of the channels, counted from the end.
        channels: how many.
    """

    name: str
    node: str
    op: str
    axis: int
    channels: int


def find_activations(program: Program) -> list[Activation]:
    """The activations of a program that can be given slopes, in order of execution; that of the output itself is none.

    Raises:
        ValueError: where there are none (others are named), or the channels of one cannot be told.
    """
    found: list[Activation] = []
    for node in program.nodes:
        if op_name(node) in GATED and info(node).active and node is not program.output:
            axis, value = _channel_axis(node), node.meta["val"]
            size = value.shape[axis] if axis is not None and value.ndim > 1 else None
            if not isinstance(size, int):
                raise ValueError(
                    f"the channels of {describe(node)} cannot be told: its value, of shape {tuple(value.shape)}, comes from no "
                    "layer whose channels are known. Put the activation directly behind its linear layer, convolution or norm"
                )
            path = info(node).path
            name = path if path and _is_module(program, path, op_name(node)) else f"{path}.{op_name(node)}".strip(".")
            found.append(Activation(name, node.name, op_name(node), axis - value.ndim, size))  # type: ignore[operator]
    if not found:
        others = untouched(program)
        raise ValueError(
            f"{type(program.model).__name__} has no activation that can be made linear ({', '.join(GATED)} before its output): "
            f"what it has besides linear operations is {'; '.join([*others[:3], *['...'][: len(others) - 3]]) or 'nothing'}"
        )
    names = [a.name for a in found]
    return [
        a
        if names.count(a.name) == 1
        else Activation(f"{a.name}#{names[: k + 1].count(a.name)}", a.node, a.op, a.axis, a.channels)
        for k, a in enumerate(found)
    ]


def untouched(program: Program) -> list[str]:
    """What is not linear and gets no slopes, with its place: other activations, max-pooling, attention, norms, gates."""
    gated = {*GATED}
    return [
        describe(n)
        for n in program.nodes
        if info(n).active
        and (
            op_name(n) in OTHERS
            or (op_name(n) in gated and n is program.output)
            or (op_name(n) in ("mul", "bmm", "matmul", "div") and sum(info(a).active for a in n.all_input_nodes) > 1)
        )
    ]


def _is_module(program: Program, path: str, op: str) -> bool:
    """Whether the module at that path is the activation itself."""
    kinds: dict[str, tuple[type, ...]] = {"relu": (nn.ReLU,), "gelu": (nn.GELU,), "silu": (nn.SiLU,)}
    modules = dict(program.model.named_modules()) if isinstance(program.model, nn.Module) else {}
    return isinstance(modules.get(path), kinds[op])


def _channel_axis(node: fx.Node) -> int | None:
    """Where the channels of a value lie, by the layer that it comes from."""
    ndim = node.meta["val"].ndim
    while True:
        name = op_name(node) if node.op == "call_function" else ""
        if name in LAST:
            return ndim - 1
        if name in SECOND:
            return 1
        if match := re.fullmatch(r"conv(\d)d", name):
            return int(ndim - int(match[1]) - 1)
        before = [a for a in node.all_input_nodes if info(a).active and a.meta["val"].ndim == ndim]
        if name not in ALIKE or not before:
            return 1 if ndim == 2 else None
        node = before[0]


class PartlyLinear(nn.Module):
    """A copy of a network with a slope at every channel of its activations; it trains as the network does.

    It runs what was recorded: without dropout, batch norms on their running statistics. Its `state_dict` fits what
    `attach_slopes` makes of a model of the same architecture. Pickled (`torch.save`), it carries the example that it was
    recorded from, and is recorded anew when it is read, in the dtype and on the device that it has then.

    Attributes:
        model: the copy, whose parameters these are.
        slopes: (units,), those of all layers one after the other; at 1 a unit is linear, exactly.
        layers: the activations.
        untouched: what else is not linear, and stays as it is.
    """

    def __init__(
        self, model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], select: Callable[[Any], Tensor] | None
    ) -> None:
        """Made by `attach_slopes`, with all slopes 0."""
        super().__init__()
        self.model = model
        self._example = (*self._each(lambda t: t.detach(), (inputs, dict(kwargs))), select)
        self._record()
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.slopes = nn.Parameter(like.new_zeros(sum(a.channels for a in self.layers)))

    def _record(self) -> None:
        inputs, kwargs, select = self._example
        program = capture(self.model, *inputs, kwargs=kwargs, select=select)
        self.layers, self.untouched = tuple(find_activations(program)), tuple(untouched(program))
        self._program = sloped(program, self.layers).of(None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording, which no file can hold."""
        return {k: v for k, v in self.__dict__.items() if k != "_program"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Record anew: in eval mode, as it was, in the dtype and on the device of the slopes."""
        super().__setstate__(state)
        here = self.slopes.detach()
        moved = self._each(lambda t: t.to(here) if t.is_floating_point() else t.to(here.device), self._example[:2])
        self._example = (*moved, self._example[2])
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        self._record()
        for module, mode in modes.items():
            module.training = mode

    @staticmethod
    def _each(change: Callable[[Tensor], Tensor], example: Any) -> Any:
        return pytree.tree_map(lambda value: change(value) if isinstance(value, Tensor) else value, example)

    @property
    def program(self) -> Program:
        """The recording with `slopes` as one more input, bound to the copy."""
        return self._program.of(self.model)

    def values(self, *inputs: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A value for every placeholder of `program`, of a call with these inputs."""
        given = copy.copy(self.program)
        given.placeholders = {n: p for n, p in given.placeholders.items() if n != "slopes"}
        return {**given.bind(given.tensors(*inputs, kwargs=kwargs), detached=False), "slopes": self.slopes}

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """What the model returned when it was recorded, with these slopes."""
        found: Tensor = evaluate(self.program.graph, self.values(*inputs, **kwargs))
        return found

    def arriving(self, *inputs: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What arrives at each activation, by its name: x of phi(x), as the recording has it."""
        seen: dict[str, Tensor] = {}
        places = {a.node: a.name for a in self.layers}

        def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node.name in places:
                seen[places[node.name]] = args[0]
            return node.target(*args, **kwargs)  # type: ignore[operator]

        with torch.no_grad():
            interpret(self.program.graph, self.values(*inputs, **kwargs), visit)
        return seen

    def by_layer(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """The slopes (or others, one for each unit) of each activation: its name -> (channels,)."""
        pieces = (self.slopes if values is None else values).split([a.channels for a in self.layers])
        return {a.name: piece for a, piece in zip(self.layers, pieces, strict=True)}

    @property
    def active(self) -> dict[str, Tensor]:
        """Which channels of each activation are not linear: its name -> (channels,) booleans."""
        return self.by_layer(self.slopes.detach() != 1)

    @property
    def share(self) -> float:
        """Of all units, how many are active: 1 for the network as it was, 0 for one whose units are all linear."""
        return (self.slopes.detach() != 1).double().mean().item()

    def penalty(self, p: float = 0.5) -> Tensor:
        """sum_c |1 - a_c|^p over the units that are not linear yet: at 1 its gradient is infinite, and a linear unit has none."""
        if not 0 < p <= 1:
            raise ValueError(f"p lies in (0, 1], where the penalty makes slopes end at 1; got {p!r}")
        return (1 - self.slopes[self.slopes != 1]).abs().pow(p).sum()

    @torch.no_grad()
    def snap_(self, tol: float = 0.01) -> int:
        """Make units linear whose slope is nearer to 1 than `tol`; how many units are linear now."""
        self.slopes.clamp_(0, 1)
        self.slopes[(1 - self.slopes) < tol] = 1.0
        return int((self.slopes == 1).sum())


def attach_slopes(
    model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None, select: Callable[[Any], Tensor] | None = None
) -> PartlyLinear:
    """Give every channel of every activation a slope.

        phi_c(x) = (1 - a_c) f(x) + a_c x

    Activations are found in the recorded operations: modules (nn.ReLU, nn.GELU, nn.SiLU, one used twice counting twice) and
    functions (F.relu) alike. What else is not linear is listed in `untouched` and stays as it is.

    Args:
        model: in eval mode; it is copied, and left as it is.
        *inputs: an example of its inputs, from which the operations are recorded.
        kwargs: keyword arguments of the model.
        select: picks the tensor out of what the model returns, where it has no logits.

    Returns:
        A `PartlyLinear` with all slopes 0: equal to the model.

    Raises:
        ValueError: for a model without such activations, or where the channels of one cannot be told (named, with its place).
        TypeError: for a function, which has no parameters to keep.

    Cost: one more element-wise operation per activation; memory one number per unit.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double().eval()
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> net = tw.functions.attach_slopes(model, x)
        >>> torch.equal(net(x), model(x)), net.slopes.shape
        (True, torch.Size([4]))
        >>> _ = net.slopes.data.fill_(1.0)
        >>> torch.allclose(net(x), model[2](model[0](x)))  # all units linear
        True

    Source: Mehmeti-Goepel & Disselhoff 2023.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose parameters are kept; got {type(model).__name__}")
    model, positional, keywords = arguments(model, inputs, kwargs)  # type: ignore[assignment]
    return PartlyLinear(copy.deepcopy(model), positional, keywords, select).eval()


def sloped(program: Program, layers: tuple[Activation, ...]) -> Program:
    """The program with one more input, `slopes`, by which f(x) goes over into x at each activation."""
    graph, seen = fx.Graph(), dict[fx.Node, fx.Node]()
    places, start = {a.node: a for a in layers}, 0
    slopes: fx.Node | None = None
    for node in program.graph.nodes:
        if node.op != "placeholder" and slopes is None:
            slopes = graph.placeholder("slopes")
            slopes.meta["info"] = Info("parameter", origin="slopes")
        new = seen[node] = graph.node_copy(node, seen.__getitem__)
        if node.name in places:
            a = places[node.name]
            own = graph.call_function(aten.slice.Tensor, (slopes, 0, start, start + a.channels))
            shaped = graph.call_function(aten.view.default, (own, [a.channels, *[1] * (-a.axis - 1)]))
            mixed = graph.call_function(aten.lerp.Tensor, (new, new.args[0], shaped))  # exact at 0 and at 1
            for made in (own, shaped):
                made.meta["info"] = Info("parameter", origin="slopes")
            mixed.meta |= {"info": info(node), "val": node.meta["val"]}
            seen[node], start = mixed, start + a.channels
    made_program = copy.copy(program)
    made_program.graph, made_program.derived = graph, {}
    made_program.placeholders = {**program.placeholders, "slopes": Placeholder("parameter", "slopes")}
    return made_program
