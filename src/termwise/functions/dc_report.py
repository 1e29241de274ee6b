r"""Where the DC of a network comes from: what each activation adds, and how much of the energy lies at frequency 0.

    E y^2  =  E (mean y)^2  +  E (y - mean y)^2,       dc = E y,      predicted = E f(x) over x ~ N(mean, std^2) of each channel

The means within E run over space (time), for every sample and channel by itself; where a layer has no space, over the samples,
for every unit. The first term is the energy of the bin 0 of the Fourier transform (Parseval).

The operations are the recorded ones, so that activations called as functions are seen, and no module of the model is touched.

Source: papers.toml "dc-is-all-you-need".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.capture import arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.interpret import interpret
from termwise.core.pictures import Bars, Line, Lines, Picture
from termwise.core.program import info, op_name

from .activations import ACTIVATIONS
from .dc_component import dc_component

__all__ = ["DCReport", "dc_report"]

CLOSED: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "hardtanh": nn.Hardtanh,
}  # fmt: skip
CHANNELS, CLOUDS = 80, 6
"""Channels of a layer, and layers told apart, in a picture."""

CONVOLUTIONS, PRODUCTS = {"conv1d", "conv2d", "conv3d", "convolution"}, {"linear", "addmm", "mm", "matmul", "bmm"}


@dataclass(frozen=True, repr=False, eq=False)
class DCReport(Decomposition):
    """The energy of every activation layer: `whole` (layers,) = E y^2, parts `dc` at frequency 0 and `rest` at all others.

    Attributes:
        layers: their names, module path and operator.
        measured: (layers,), E y, the mean over channels of the DC.
        predicted: (layers,), the same of Gaussian pre-activations with each channel's mean and standard deviation.
        off: (layers,), root mean square over channels of predicted - measured, over that of measured.
        channels: by layer (channels, 4): mean and standard deviation of the pre-activation, measured DC, predicted DC.
    """

    layers: list[str]
    measured: Tensor
    predicted: Tensor
    off: Tensor
    channels: Mapping[str, Tensor]

    @property
    def share(self) -> Tensor:
        """(layers,): how much of the energy lies at frequency 0, from 0 to 1."""
        return self.parts["dc"] / torch.where(self.whole > 0, self.whole, torch.ones_like(self.whole))

    def table(self) -> str:
        """A line for each layer: channels, measured and predicted DC, how far these are apart, the share of the energy."""
        width = max(map(len, self.layers), default=5)
        rows = [f"{'layer':{width}}  channels        dc  Gaussian   off  energy at 0"]
        for i, name in enumerate(self.layers):
            rows.append(
                f"{name:{width}}  {len(self.channels[name]):8}  {self.measured[i]:8.4f}  {self.predicted[i]:8.4f}"
                f"  {self.off[i]:4.0%}  {self.share[i]:11.1%}"
            )
        return "\n".join(rows)

    def summary(self) -> str:
        """One line: how many layers add a DC, and how much of the energy it is."""
        up = int((self.measured > 0).sum())
        return (
            f"{len(self.layers)} activation layers, {up} with a positive DC; at frequency 0 lie {self.share.min():.0%} to "
            f"{self.share.max():.0%} of the energy, median {self.share.median():.0%}; Gaussians are off by "
            f"{self.off.median():.0%} (median); adds up to {self.error():.1e}"
        )

    @property
    def by_sample(self) -> bool:
        """False: the first axis counts layers."""
        return False

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The share of the energy at frequency 0 and the DC, measured and predicted, by layer; and the channels."""
        note = f"Where the mean of a signal is. Both parts together leave over {self.error():.1g} of the energy."
        share = {"energy at frequency 0": self.share.tolist()}
        shares = Bars("Energy at frequency 0, by activation", self.layers, share, y="share of the energy", note=note)
        lines = [
            Line("measured", self.layers, self.measured.tolist()),
            Line("of Gaussians with the same mean and deviation", self.layers, self.predicted.tolist(), role="chance"),
        ]
        means = Lines("DC of every activation", lines, x="activation", y="mean output over channels")
        return [shares, means, self._channels()]

    def _channels(self) -> Lines:
        """Predicted against measured, a cloud for each layer, or one of all where there are many."""
        some = {n: v[:: -(-len(v) // CHANNELS), 2:] for n, v in self.channels.items()}
        if len(some) > CLOUDS:
            every = torch.cat(list(self.channels.values()))[:, 2:]
            some = {"channels of all layers": every[:: -(-len(every) // (CHANNELS * CLOUDS))]}
        ends = torch.cat(list(some.values()))
        ends = [float(ends.min()), float(ends.max())]
        clouds = [Line(n, v[:, 0].tolist(), v[:, 1].tolist(), markers=True) for n, v in some.items()]
        right = Line("where the prediction is right", ends, ends, role="chance")
        return Lines("Channels", [*clouds, right], x="measured DC", y="DC predicted for a Gaussian")


def dc_report(model: nn.Module | Callable[..., Any], data: Any, *, select: Callable[[Any], Tensor] | None = None) -> DCReport:
    """Measure the DC behind every activation of a network, and hold it against the Gaussian prediction.

        E y^2 = E (mean y)^2 + E (y - mean y)^2,       relu:  dc = s phi(m/s) + m Phi(m/s)

    Args:
        model: in eval mode, as `capture` takes it: CNNs in one to three dimensions, MLPs, transformers.
        data: one batch (a tensor, or a mapping of keywords), a tuple of inputs and targets, of which the inputs are one batch, or
            an iterable of batches (a list, a DataLoader); of a batch that is a list or tuple the first entry is the input.
        select: picks the tensor that the recording ends with, where the model has no logits.

    Returns:
        A `DCReport`, layers in order of execution, in float64: `table()`, `plot()`, `share`, `channels`.

    Raises:
        ValueError: for no data, data that are not finite, a model without an activation.
        TypeError: for data that are no batches.

    Cost: one pass over the data, and the Gaussian integral of every channel; memory that of one forward pass, in float64 for one
        layer at a time.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 9), torch.nn.ReLU(), torch.nn.Conv1d(4, 2, 9), torch.nn.ReLU())
        >>> r = tw.functions.dc_report(model.eval(), torch.randn(8, 1, 64)).check()
        >>> r.layers, bool((r.measured > 0).all())
        (['1 relu', '3 relu'], True)

    Source: Kechris et al. 2024.
    """
    layers: dict[str, _Layer] = {}
    batches = 0
    for batch in _batches(data):
        batches += 1
        called, positional, keywords = arguments(model, [batch], None)
        for value in (*positional, *keywords.values()):
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"batch {batches - 1} is not finite: it has NaN or infinite entries")
        program = capture(called, *positional, kwargs=keywords, select=select)

        def visit(node: fx.Node, args: Any, kwargs: Any) -> Any:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
            if op_name(node) in ACTIVATIONS and info(node).active and value.ndim > 1:
                if node.name not in layers:
                    layers[node.name] = _Layer(node, args, kwargs)
                layers[node.name].add(args[0], value)
            return value

        with torch.no_grad():
            interpret(program.graph, program.bind(program.tensors(*positional, kwargs=keywords)), visit)
    if not batches:
        raise ValueError("there are no batches in data")
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no activation layer: known are {', '.join(sorted(ACTIVATIONS - {'pointwise'}))}"
        )
    return _report(list(layers.values()))


def _batches(data: Any) -> Iterable[Any]:
    """Inputs, batch by batch."""
    if isinstance(data, (Tensor, Mapping)) or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)):
        data = [data]  # of inputs and targets the first is taken below
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise TypeError(f"data is a batch or an iterable of batches, got {type(data).__name__}")
    for batch in data:
        found = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if not isinstance(found, (Tensor, Mapping)):
            raise TypeError(f"a batch is a tensor or a mapping of keywords, got {type(found).__name__}")
        if isinstance(found, Tensor) and (not found.ndim or not len(found)):
            raise ValueError(f"a batch of shape {tuple(found.shape)} holds no samples")
        yield found


class _Moments:
    """Mean and sum of squared deviations over all axes but one, batch after batch (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """(entries, channels)."""
        mean = x.mean(0)
        step, total = mean - self.mean.to(mean), self.count + len(x)
        self.squares = self.squares.to(mean) + (x - mean).square().sum(0) + step.square() * (self.count * len(x) / total)
        self.mean = self.mean.to(mean) + step * (len(x) / total)
        self.count = total


class _Layer:
    """What is summed up of one activation."""

    def __init__(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Of its recorded operation and first arguments."""
        self.name = f"{info(node).path} {op_name(node)}".strip()
        self.axis = _channel_axis(node)
        op = op_name(node)
        rest = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args[1:]]  # as the moments are
        self.act = CLOSED[op](*rest) if op in CLOSED else lambda v: node.target(v, *rest, **kwargs)  # type: ignore[operator]
        self.before, self.after = _Moments(), _Moments()
        self.energy, self.at_zero, self.others, self.count = 0.0, 0.0, 0.0, 0
        self.space = True

    def add(self, x: Tensor, y: Tensor) -> None:
        """One batch."""
        x, y = (v.double().movedim(self.axis, -1) for v in (x, y))
        x, y = (v.flatten(1, -2) if v.ndim > 2 else v.unsqueeze(1) for v in (x, y))
        if self.count and y.shape[-1] != self.after.mean.numel():
            raise ValueError(f"{self.name} has {self.after.mean.numel()} channels in one batch and {y.shape[-1]} in another")
        self.space = y.shape[1] > 1  # (samples, space, channels)
        self.before.add(x.flatten(0, 1))
        self.after.add(y.flatten(0, 1))
        means = y.mean(1, keepdim=True)
        self.energy += y.square().sum().item()
        self.at_zero += means.square().sum().item() * y.shape[1]
        self.others += (y - means).square().sum().item()
        self.count += y.numel()


def _channel_axis(node: fx.Node) -> int:
    """Where the channels of an activation are: the second axis of a convolution before it, the last of a product, moved since."""
    above, since = node, []
    while op_name(above) not in CONVOLUTIONS | PRODUCTS:
        since.append(above)
        found = next((a for a in above.all_input_nodes if a.op == "call_function" and info(a).active), None)
        if found is None:
            return 1
        above = found
    size = above.meta["val"].ndim
    axis = 1 if op_name(above) in CONVOLUTIONS else size - 1
    for step in reversed(since):
        value = step.meta["val"]
        now = value.ndim if isinstance(value, Tensor) else size
        if op_name(step) == "transpose":
            a, b = (int(d) % now for d in step.args[1:3])  # type: ignore[arg-type]
            axis = {a: b, b: a}.get(axis, axis)
        elif op_name(step) == "permute":
            axis = [d % now for d in step.args[1]].index(axis)  # type: ignore[operator, union-attr, arg-type]
        elif now != size and axis == size - 1:
            axis = now - 1
        size = now
    return axis


def _report(layers: list[_Layer]) -> DCReport:
    """Sums made into means, and the prediction."""
    names: list[str] = []
    columns: dict[str, list[float]] = {k: [] for k in ("whole", "dc", "rest", "measured", "predicted", "off")}
    channels = {}
    for layer in layers:
        again = sum(n == layer.name or n.startswith(f"{layer.name} (") for n in names)
        names.append(f"{layer.name} ({again + 1})" if again else layer.name)
        before, after = layer.before, layer.after
        std = (before.squares / before.count).sqrt()
        predicted = dc_component(layer.act, before.mean, std)
        channels[names[-1]] = torch.stack([before.mean, std, after.mean, predicted], 1)
        # without space every unit is a signal over the samples
        at_zero, others = layer.at_zero, layer.others
        if not layer.space:
            at_zero, others = (after.mean.square().sum() * after.count).item(), after.squares.sum().item()
        size = after.mean.square().mean().sqrt()
        gap = (predicted - after.mean).square().mean().sqrt()
        columns["whole"].append(layer.energy / layer.count)
        columns["dc"].append(at_zero / layer.count)
        columns["rest"].append(others / layer.count)
        columns["measured"].append(after.mean.mean().item())
        columns["predicted"].append(predicted.mean().item())
        columns["off"].append((gap / size).item() if size > 0 else gap.item())
    found = {k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()}
    parts = {k: found[k] for k in ("dc", "rest")}
    return DCReport(found["whole"], parts, names, found["measured"], found["predicted"], found["off"], channels)
