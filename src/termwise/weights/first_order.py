r"""What the terms that a layer leaves out do to the output of the model, sample by sample, to first order.

    W - W_r = sum_{k > r} left_k right_k^T,      x_i the rows that the layer reads for one sample
    e(r) = E (sum_{k > r} s_k)^2,                s_k = sum_i (g_i . left_k) (right_k . (x_i - mean)),      g = J^T u

with u as in `sensitivity`. The sum over the rows of a sample is inside the square: how errors of positions add up or cancel is in
it, for these very terms, where tr(E^T H E G) takes rows for independent. A cumulative sum over k gives all ranks at once.

Source: ours. The sum over i of g_i x_i^T is the gradient of one sample with respect to W, which is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .judged import Judged
from .ladder import Fitted
from .layers import Layer
from .sensitivity import Distance, draw, listened, listening

__all__ = ["first_order"]


def first_order(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, Layer],
    fitted: Mapping[str, Fitted],
    *,
    metric: Distance = "l2",
    judged: Judged | None = None,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The errors of every rank of several layers, at the output of the model.

    Args:
        model: run in evaluation mode; hooks, modes and `requires_grad` are afterwards as they were.
        batches: as `read_batches` gives them, other ones than the terms were made with.
        layers: whose terms they are.
        fitted: by layer `left` (m, k) and `right` (k, n), whose product is W, and where it is known the `mean` of the rows, (n,).
        metric: "l2" or "kl", see `sensitivity`.
        judged: what counts of the output; looked at on the first batch when not given.
        draws: of the random signs or labels for each sample.
        generator: of those; seed 0 when not given.

    Returns:
        e by layer, shape (k + 1,), float64: squared, of one sample, in units of `distance`; not rising with the rank. A layer
        that no data reach is missing.

    Cost: one forward pass per batch and a backward pass for each draw; N k (m + n) per layer. Memory: activations of one batch,
    and N k more per layer.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if judged is None:
        batches = list(batches)
        judged = Judged.of(model, batches[0])
    left_out = {name: _LeftOut(layer, fitted[name]) for name, layer in layers.items()}
    count = 0
    with listening(model, {one.layer.module: one.hook for one in left_out.values()}), torch.enable_grad():
        for batch in batches:
            y = judged(model, batch)
            count += len(y) * draws
            for i in range(draws if y.requires_grad else 0):
                for one in left_out.values():
                    one.begin(len(y) if judged.by_sample else 1)
                draw(y, metric, generator).backward(retain_graph=i < draws - 1)
                for one in left_out.values():
                    one.end()
    return {name: one.total.flip(0).cummax(0).values.flip(0) / count for name, one in left_out.items() if one.total is not None}


class _LeftOut:
    """The scores of one layer's terms, summed over the rows of each sample, and their squares over samples."""

    def __init__(self, layer: Layer, fitted: Fitted) -> None:
        self.layer, self.fitted = layer, fitted
        self.total: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
        """Look at the rows from the right, and at what comes back from the left."""
        x = self.layer.read(args, kwargs).detach()
        right = self.fitted["right"]
        single = right.float() if right.element_size() < 4 else right
        inner = self.layer.rows(x).to(single) @ single.T
        if self.layer.bias is not None and "mean" in self.fitted:  # which the bias takes
            inner -= single @ self.fitted["mean"].to(single)
        first = len(x)

        def keep(gradient: Tensor) -> None:
            outer = self.layer.outputs(gradient.detach()).to(single) @ self.fitted["left"].to(single)
            scores = outer.mul_(inner).double()
            apart = first % self.samples == 0 and len(scores) % self.samples == 0
            groups = self.samples if apart else 1  # the draws of samples are independent, so that all together will do
            by_sample = scores.reshape(groups, -1, scores.shape[1]).sum(1)
            self.scores = by_sample if self.scores is None else _joined(self.scores, by_sample)

        return listened(y, keep)

    def begin(self, samples: int) -> None:
        """Before one draw is sent back."""
        self.samples = samples
        self.scores: Tensor | None = None

    def end(self) -> None:
        """After it came back."""
        if self.scores is None:
            return
        zero = self.scores.new_zeros(len(self.scores), 1)
        tails = torch.cat([self.scores, zero], 1).flip(1).cumsum(1).flip(1)
        square = tails.square().sum(0)
        self.total = square if self.total is None else self.total + square


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Scores of two calls of one layer: of each sample, or of all where one of them does not tell samples apart."""
    return a + b if len(a) == len(b) else a.sum(0, keepdim=True) + b.sum(0, keepdim=True)
