"""Infidelity: how badly a map predicts what a change of the input does to the score.

    INFD(Φ) = E_I [ ( I·Φ - (f(x) - f(x - I)) )² ]

I is a random change. Φ is gradient-like: a change times Φ is a change of the score. Of an attribution that has the input
in it (relevance, integrated gradients, gradient x input) the change is divided by x - baseline first. `normalize` takes the
best scale out of the map: Φ becomes βΦ with β = E[(I·Φ) Δf] / E[(I·Φ)²], so that only its shape is judged.

Cost: `samples` forward passes per sample, in batches; memory: one batch.
Source: Yeh et al. 2019, arXiv 1901.09392, definition 2.1 and section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from termwise.core.arguments import seeded, whole_number

from .fill_ins import filled
from .metric import Metric
from .perturbation import Features
from .refusals import finite_inputs
from .scoring import Inquiry
from .targets import Target

__all__ = ["infidelity"]

Perturb = Callable[[Tensor], tuple[Tensor, Tensor]]


def infidelity(
    model: nn.Module | Callable[..., Any],
    inputs: Float[Tensor, "batch ..."],
    relevance: Tensor,
    target: Target = None,
    *,
    perturb: Perturb | None = None,
    samples: int = 10,
    normalize: bool = False,
    times_input: bool = False,
    baseline: Any = 0.0,
    score: str = "logit",
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Metric:
    """The infidelity of a map, per sample; low is good.

    Args:
        model: in eval mode; gives logits (batch, classes), or what a callable target takes.
        inputs: floating, (batch, features) or (batch, channels, height, width).
        relevance: the map, of the inputs' shape.
        target: class, the model's own answer when not given, or a function from the output to one score per sample.
        perturb: from inputs (rows, ...) to (I, inputs - I). When not given, I is Gaussian with a tenth of the standard
            deviation of the inputs.
        samples: how many changes of each input.
        normalize: judge the shape of the map and not its scale.
        times_input: the map has the input in it; each change is divided by inputs - baseline (0 where that is 0).
        baseline: what the attribution was measured from, where it has the input in it: a number, a tensor, or a name.
        score: "logit" or "probability".
        generator: of the default changes; seeded with 0 when not given.
        batch_size: inputs per forward pass.

    Raises:
        ValueError: a map of another shape, no samples, changes of another shape.

    Example:
        >>> model = torch.nn.Linear(4, 2, dtype=torch.float64).eval()
        >>> x = torch.randn(3, 4, dtype=torch.float64)
        >>> infidelity(model, x, model.weight[1].expand(3, -1), 1).mean < 1e-24      # the gradient of a linear function
        True
    """
    if relevance.shape != inputs.shape:
        raise ValueError(f"relevance has shape {tuple(relevance.shape)}, inputs {tuple(inputs.shape)}: they must be the same")
    finite_inputs((), {"inputs": inputs, "relevance": relevance})
    samples = whole_number("samples", samples)
    batch_size = whole_number("batch_size", batch_size)
    x, phi = inputs.detach(), relevance.detach()
    generator = seeded(generator)
    rows = x.repeat_interleave(samples, 0)
    change, changed = (perturb or _gaussian(x, generator))(rows)
    if change.shape != rows.shape or changed.shape != rows.shape:
        raise ValueError(f"perturb must give two tensors of shape {tuple(rows.shape)}, it gave {tuple(change.shape)}")
    if times_input:
        value = filled(x, baseline)
        if value is None:
            raise ValueError("baseline='remove' has no meaning here: an attribution is measured from values")
        away = (x - value).repeat_interleave(samples, 0)
        change = torch.where(away == 0, torch.zeros_like(change), change / torch.where(away == 0, torch.ones_like(away), away))
    predicted = (change * phi.repeat_interleave(samples, 0)).flatten(1).sum(1).view(-1, samples)
    inquiry = Inquiry(model, Features(x, baseline=0.0), target, batch_size=batch_size)
    batches = ((rows, changed[rows.to(changed.device)]) for rows in torch.arange(len(changed)).split(batch_size))
    after = inquiry.of(batches, torch.arange(len(x)).repeat_interleave(samples)).of(score)
    happened = inquiry.whole.of(score)[:, None] - after.view(-1, samples)
    if normalize:
        size = predicted.square().mean(1, keepdim=True)
        beta = (predicted * happened).mean(1, keepdim=True) / torch.where(size == 0, torch.ones_like(size), size)
        predicted = beta * predicted
    return Metric("infidelity", (predicted - happened).square().mean(1), higher_is_better=False)


def _gaussian(x: Tensor, generator: torch.Generator) -> Perturb:
    scale = x.double().std().item() / 10

    def perturb(rows: Tensor) -> tuple[Tensor, Tensor]:
        change = scale * torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        return change, rows - change

    return perturb
