r"""How linear the units of a network already are, on data: the best line through each, and what it misses.

    f(x) = a x + b + remainder,      a = cov(x, f(x)) / var(x),   b = mean f(x) - a mean x,   R^2 = 1 - var(remainder) / var f(x)

for every channel, over samples and positions. A unit with R^2 near 1 can be made linear as it stands; one that never changes its
side of the kink has R^2 = 1.

Source: ours, after Mehmeti-Goepel & Disselhoff 2023 (per-channel linearisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Line, Lines, Picture, Points

from .channel_slopes import Activation, PartlyLinear, attach_slopes

__all__ = ["LinearityScores", "linearity_scores"]


@dataclass(frozen=True, repr=False, eq=False)
class LinearityScores(Decomposition):
    """An activation as its best line by channel: `whole` = f(x), parts `linear` = a x and `bias` = b, the remainder its bend.

    Attributes:
        slope: (channels,), a.
        score: (channels,), R^2: the share of the variance of f(x) that the line explains; 1 for a unit that is constant.
    """

    slope: Tensor
    score: Tensor

    def summary(self) -> str:
        """One line: what the lines explain."""
        low, mid, high = (self.score.quantile(q).item() for q in (0.0, 0.5, 1.0))
        lines = f"lines through {len(self.score)} channels, R^2 {low:.2f} to {high:.2f}, median {mid:.2f}"
        return f"{lines}: adds up to {self.error():.1e}"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How linear the channels are, from the most bent; their slopes; and what the lines leave of one sample.

        Raises:
            ValueError: when there is no such sample.
        """
        score, slope = self.score.detach().double(), self.slope.detach().double()
        order = score.argsort()
        bent = Line(
            "share that a line explains (R²)", list(range(1, len(score) + 1)), score[order].tolist(), markers=len(score) < 9
        )
        note = "1: the channel is a line on these data, and can be made one as it stands."
        ranked = Lines("Channels, from the most bent", [bent], x="rank of the channel", y="R²", note=note)
        names = [f"channel {c}" for c in range(len(score))]
        cloud = Points("Slopes", names, slope.tolist(), score.tolist(), "slope of the line", "R²", front=False)
        return [ranked, cloud, *super().pictures(sample)]


def linearity_scores(model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> dict[str, LinearityScores]:
    """Fit a line to every channel of every activation of a network.

        f(x) = a x + b + remainder

    Args:
        model: in eval mode, as `attach_slopes` takes it; or a `PartlyLinear`, of which phi(x) is f(x) as it was.
        *inputs: data; a few hundred samples tell slopes to a few per cent.
        kwargs: keyword arguments of the model.

    Returns:
        For each activation, by name, a `LinearityScores`: a Decomposition of f(x), in the shape that it has in the network.

    Raises:
        ValueError: as `attach_slopes`; for inputs that are not finite.

    Cost: one forward pass; memory that of all values of activations, four times.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double().eval()
        >>> _ = model[0].bias.data.copy_(torch.tensor([100.0, -100.0, 0.0]))     # always on, always off, bent
        >>> scores = tw.functions.linearity_scores(model, torch.randn(64, 2, dtype=torch.float64))["1"]
        >>> torch.allclose(scores.slope[:2], torch.tensor([1.0, 0.0]).double()), bool(scores.score[2] < 0.99)
        (True, True)

    Source: ours, after Mehmeti-Goepel & Disselhoff 2023.
    """
    net = model if isinstance(model, PartlyLinear) else attach_slopes(model, *inputs, kwargs=kwargs)
    arriving = net.arriving(*inputs, **(kwargs or {}))
    program = {n.name: n for n in net.program.nodes}
    found = {}
    for a in net.layers:
        x, node = arriving[a.name], program[a.node]
        if not x.isfinite().all():
            raise ValueError(f"what arrives at {a.name} is not finite: look for nan or inf in the inputs")
        found[a.name] = _scores(x, node.target(x, *node.args[1:], **node.kwargs), a)  # type: ignore[operator]
    return found


def _scores(x: Tensor, y: Tensor, a: Activation) -> LinearityScores:
    """The lines of one activation, from what arrives and what leaves."""
    axes = [d for d in range(x.ndim) if d != x.ndim + a.axis]
    mean = [v.mean(axes, keepdim=True) for v in (x, y)]
    dx, dy = x - mean[0], y - mean[1]
    variance, spread = dx.square().mean(axes, keepdim=True), dy.square().mean(axes, keepdim=True)
    slope = (dx * dy).mean(axes, keepdim=True) / torch.where(variance > 0, variance, 1.0)
    bias = mean[1] - slope * mean[0]
    left = (y - slope * x - bias).square().mean(axes, keepdim=True)
    score = torch.where(spread > 0, 1 - left / torch.where(spread > 0, spread, 1.0), 1.0)
    return LinearityScores(y, {"linear": slope * x, "bias": bias.expand_as(y).clone()}, slope.flatten(), score.flatten())
