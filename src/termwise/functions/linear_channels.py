r"""Units made linear under a price: which non-linearities does a network need, and when in its training?

    loss(w, a) = task(w, a) + omega sum_c |1 - a_c|^(1/2),      phi_c(x) = (1 - a_c) f(x) + a_c x,   0 <= a_c <= 1

A slope that comes within `tol` of 1 is set to 1 for good: its channel is linear. What stays active resists a pull of omega / 2,
the gradient of the penalty at a = 0: omega is the price of a unit in loss, and more of it leaves fewer units.

Weights are trained by Adam. Slopes are not, for it would divide omega away: with g the gradient of the task, averaged over twenty
batches, and q = (omega / 2) (1 - a)^(-1/2) the pull, they take T steps of (3 / T) (q - g) / (q + |g|), which come to rest where
those of gradient descent do, and make a unit that costs nothing linear in a third of the run.

Source: Mehmeti-Goepel & Disselhoff 2023 (loss, snapping). Deviations: the step of the slopes, and `keep`, a share of units at
which the price ends, so that networks of one sparsity can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.arguments import integer, seeded
from termwise.core.pictures import Bars, Line, Lines, Picture, Pictured

from .channel_slopes import PartlyLinear, attach_slopes
from .progress import progress_bar

__all__ = ["LinearizedChannels", "linearize_channels"]

Batch = tuple[Any, Tensor]


@dataclass(frozen=True, eq=False)
class LinearizedChannels(Pictured):
    """A network whose channels were made linear under a price. `torch.save` keeps it, or the `state_dict` of its `model` alone.

    Attributes:
        model: the network, an nn.Module with the parameters of a copy; its slopes are frozen where they ended.
        omega: the price.
        history: by epoch: "loss" (of the task, mean over batches), "penalty", "share" (of all units, those that are active).
    """

    model: PartlyLinear
    omega: float
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "penalty": [], "share": []})

    @property
    def share(self) -> float:
        """Of all units, how many are active."""
        return self.model.share

    @property
    def by_layer(self) -> dict[str, float]:
        """Of the channels of each activation, how many are active."""
        return {name: on.double().mean().item() for name, on in self.model.active.items()}

    def summary(self) -> str:
        """One line: units left, layers without any, and what was not touched."""
        units, gone = len(self.model.slopes), sum(not share for share in self.by_layer.values())
        text = f"{round(self.share * units)} of {units} units active in {len(self.by_layer)} layers, {gone} of them linear"
        others = f"; {len(self.model.untouched)} other operations are not linear" if self.model.untouched else ""
        return f"{text}, at a price of {self.omega:g}{others}"

    def __repr__(self) -> str:
        """The class and that line."""
        return f"{type(self).__name__}({self.summary()})"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The core network: by layer the channels that are active, and those that were made linear; and how it came to be."""
        left = [int(on.sum()) for on in self.model.active.values()]
        linear = [a.channels - n for a, n in zip(self.model.layers, left, strict=True)]
        names = [a.name for a in self.model.layers]
        note = f"{self.share:.0%} of the units are active; in a layer without any, its neighbours are one matrix."
        counts = {"active": left, "made linear": linear}
        found: list[Picture] = [Bars("Core network", names, counts, y="channels", stacked=True, note=note)]
        epochs = list(range(1, len(self.history["share"]) + 1))
        if epochs:
            share = [Line("units active", epochs, self.history["share"])]
            losses = [Line("of the task", epochs, self.history["loss"]), Line("the price paid", epochs, self.history["penalty"])]
            found += [
                Lines("Units active over the training", share, x="epoch", y="share of all units"),
                Lines("Loss over the training", losses, x="epoch", y="loss, mean over batches"),
            ]
        return found


def linearize_channels(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[Batch],
    *,
    omega: float = 3e-3,
    epochs: int = 20,
    start: int = 0,
    keep: float = 0.0,
    lr: float = 1e-3,
    batch_size: int = 64,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    tol: float = 0.01,
    select: Callable[[Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> LinearizedChannels:
    """Train a network under a price on every unit that is not linear.

        task + omega sum_c |1 - a_c|^(1/2)

    Args:
        model: in eval mode; trained already, or not, to see what linearising early costs. It is copied, and left as it is.
        data: inputs (n, ...) and targets (n, ...), shuffled each epoch; or an iterable of batches that can be run through again
            (a DataLoader): one tensor or a tuple of the model's inputs, and a tensor of targets.
        omega: the price of one unit, in loss.
        epochs: passes over the data, in all.
        start: the epoch at which the price begins; before it the network is trained as it is.
        keep: the share of units at which the price ends, and those that are left become what they were; with 0 it never ends.
        lr: of Adam, for the weights.
        batch_size: where `data` is a pair of tensors.
        loss: of the output and the targets, a mean over the batch.
        tol: how near to 1 a slope is set to it.
        select: picks the tensor out of what the model returns, where it has no logits.
        generator: of the shuffling; one seeded with 0 when not given.
        progress: show a bar, where there is a terminal.

    Returns:
        A `LinearizedChannels`: the network, the history, the active share by layer, `plot()`.

    Raises:
        ValueError: for a model without activations that can be made linear; for no data, inputs that are not finite, a loss that
            becomes so or is no number, or settings out of their range.
        TypeError: for what is no module, or data of another kind.

    Cost: that of training, with one more element-wise operation per activation.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(64, 2)
        >>> found = tw.linearize_channels(model, (x, (x[:, 0] > 0).long()), omega=1.0, progress=False)
        >>> found.share  # a price that no unit is worth: half planes need none
        0.0

    Source: Mehmeti-Goepel & Disselhoff 2023.
    """
    _check(omega=omega, epochs=epochs, start=start, keep=keep, lr=lr, batch_size=batch_size, tol=tol)
    epochs, start = int(epochs), int(start)
    batches = _Batches(data, int(batch_size), generator)
    found = LinearizedChannels(attach_slopes(model, *batches.example(), select=select), omega)
    net, slopes = found.model, found.model.slopes
    optimizer = torch.optim.Adam(net.model.parameters(), lr=lr)
    average, step = torch.zeros_like(slopes), 3 / (len(batches) * max(epochs - start, 1))
    with progress_bar(epochs, show=progress) as advance:
        for epoch in range(epochs):
            losses, penalties = [], []
            for inputs, targets in batches:
                net.zero_grad()
                task = loss(net(*inputs), targets)
                if task.numel() != 1:
                    raise ValueError(f"the loss has shape {tuple(task.shape)}, not one number: give its mean over the batch")
                if not task.isfinite():
                    raise ValueError(f"the loss is {task.item()} in epoch {epoch}: check data and loss, or lower lr ({lr:g})")
                task.backward()
                optimizer.step()
                losses.append(task.item())
                penalties.append(net.penalty().item())
                if epoch >= start:
                    average.lerp_(slopes.grad, 0.05)  # type: ignore[arg-type]
                    _move(slopes, average, omega, step, tol, math.ceil(keep * len(slopes)))
            row = {"loss": sum(losses) / len(losses), "penalty": sum(penalties) / len(penalties), "share": net.share}
            for name, value in row.items():
                found.history[name].append(value)
            advance(1, f"epoch {epoch + 1}/{epochs}: loss {row['loss']:.3g}, {row['share']:.0%} of the units active")
    slopes.requires_grad_(False)
    return found


@torch.no_grad()
def _move(slopes: Tensor, gradient: Tensor, omega: float, step: float, tol: float, enough: int) -> None:
    """One step of the slopes that are not 1 yet; then to 1 those within `tol`, where not all may be the least resisting ones."""
    active = slopes != 1
    if spare := max(int(active.sum()) - enough, 0):
        pull = 0.5 * omega * (1 - slopes[active]).rsqrt()
        against = gradient[active]
        slopes[active] = (slopes[active] + step * (pull - against) / (pull + against.abs())).clamp(0, 1 - tol / 2)
        near = active & (1 - slopes < tol)
        ready = torch.where(near, gradient, math.inf).topk(min(spare, int(near.sum())), largest=False)
        slopes[ready.indices] = 1.0
        if int((slopes != 1).sum()) <= enough:
            slopes[slopes != 1] = 0.0


class _Batches:
    """Batches of inputs (a tuple) and targets, anew at each pass."""

    def __init__(self, data: Any, size: int, generator: torch.Generator | None) -> None:
        self.data, self.size = data, size
        self.generator = seeded(generator)
        self.pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
        if not self.pair and (not isinstance(data, Iterable) or isinstance(data, (Tensor, Iterator))):
            raise TypeError(
                "data must be a pair of tensors, inputs and targets, or an iterable of such batches that can be run through "
                f"again (a DataLoader, a list); got {type(data).__name__}"
            )
        if self.pair and len(data[0]) != len(data[1]):
            raise ValueError(f"there are {len(data[0])} inputs and {len(data[1])} targets: give one target for each input")
        self.count = -(-len(data[0]) // size) if self.pair else sum(1 for _ in data)
        if not self.count:
            raise ValueError("there is no data: give (inputs, targets), or batches of these")

    def __len__(self) -> int:
        return self.count

    def example(self) -> tuple[Any, ...]:
        """The inputs of a batch, unshuffled."""
        return (self.data[0][: self.size],) if self.pair else self._checked(next(iter(self.data)))[0]

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        if not self.pair:
            yield from map(self._checked, self.data)
            return
        for rows in torch.randperm(len(self.data[0]), generator=self.generator).split(self.size):
            yield self._checked((self.data[0][rows], self.data[1][rows]))

    def _checked(self, batch: Any) -> tuple[tuple[Any, ...], Tensor]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise TypeError(f"a batch must be (inputs, targets), got {type(batch).__name__}: give tuples of two")
        inputs = tuple(batch[0]) if isinstance(batch[0], (tuple, list)) else (batch[0],)
        if any(isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all() for t in inputs):
            raise ValueError("an input is not finite: drop or fill the samples with nan and inf first")
        return inputs, batch[1]


def _check(**given: Any) -> None:
    """Settings within their ranges."""
    for name in ("epochs", "batch_size"):
        if integer(given[name]) is None or given[name] < 1:
            raise ValueError(f"{name} is a number of 1 or more, got {given[name]!r}")
    for name in ("omega", "lr"):
        if not 0 < given[name] < math.inf:
            raise ValueError(f"{name} is positive and finite, got {given[name]!r}")
    if not 0 <= given["keep"] <= 1 or not 0 < given["tol"] < 1:
        raise ValueError(f"keep lies in [0, 1] and tol in (0, 1), got {given['keep']!r} and {given['tol']!r}")
    if integer(given["start"]) is None or not 0 <= given["start"] <= given["epochs"]:
        raise ValueError(f"start is an epoch out of 0 ... {given['epochs']}, got {given['start']!r}")
