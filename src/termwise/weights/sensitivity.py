r"""What an error at a layer's output does to the output of the model, to second order.

    d(f(x), f~(x)) ~ sum over rows of dy^T H dy,      H = E[g g^T] per row,      g = J^T u

J is the Jacobian of the model's output with respect to the layer's. With random signs u, E[u u^T] = I, d is the squared change of
the output; with u the gradient of -log p(y) at labels y drawn from the model's own p, E[g g^T] is its Fisher matrix and
d / 2 the Kullback-Leibler divergence. One backward pass gives one draw for every layer at once.

Source: Martens & Grosse 2015, Optimizing neural networks with Kronecker-factored approximate curvature, section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batches import call, evaluating
from .gathered import Gathered
from .layers import Layer

__all__ = ["Distance", "distance", "output_of", "sensitivity"]

Distance = Literal["l2", "kl"]


def output_of(result: Any) -> Tensor:
    """The tensor that matters of what a model returns: its logits, or the only or first tensor.

    Raises:
        TypeError: when there is none.
    """
    if isinstance(result, Tensor):
        return result
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError(f"the model returns {type(result).__name__}, in which there is no tensor: wrap it to return one")


def distance(truth: Tensor, found: Tensor, metric: Distance) -> Tensor:
    """How far one output is from the other, one number per sample.

    Args:
        truth: shape (samples, ...); of "kl" the last axis holds logits.
        found: the same shape.
        metric: "l2": |found - truth|^2. "kl": 2 KL(p_truth || p_found), summed over positions (twice, so that both are quadratic
            forms of the error with the same factor).
    """
    if metric == "l2":
        return (found - truth).square().reshape(len(truth), -1).sum(1)
    p, q = truth.log_softmax(-1), found.log_softmax(-1)
    return 2 * (p.exp() * (p - q)).sum(-1).reshape(len(truth), -1).sum(1)


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, Layer],
    *,
    metric: Distance = "l2",
    generator: torch.Generator | None = None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """The matrices H of several layers, shape (m, m), summed over the rows of a sample: units of `distance` per squared output.

    Args:
        model: run in evaluation mode; hooks, modes and `requires_grad` are afterwards as they were.
        batches: as `read_batches` gives them.
        layers: at whose outputs to look.
        metric: "l2", the squared change of the output, or "kl", twice the divergence of its softmax.
        generator: of the random signs or labels; seed 0 when not given.
        after: called after each batch (a progress bar).

    Returns:
        H by layer, float64. A layer that the output does not depend on is missing. Expected squared change of the output of
        one sample under dW: tr(H dW G dW^T).

    Cost: one forward and one backward pass per batch, without gradients of weights; N m^2 per layer. Memory: activations of one
    batch, and O(sum of m^2).
    """
    generator = generator or torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gathered = {name: Gathered(functools.partial(_square, sums, name)) for name in layers}
    handles = [layer.module.register_forward_hook(_watch(layer, gathered[name])) for name, layer in layers.items()]
    samples = 0
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                y = output_of(call(model, batch))
                samples += len(y) if y.ndim else 1
                if y.requires_grad:
                    _draw(y, metric, generator).backward()
                after()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
    for rows in gathered.values():
        rows.finish()
    return {name: total / samples for name, total in sums.items()}


def _square(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
    square = (rows.T @ rows).double()  # a weight, and shrunk: single precision will do
    sums[name] = sums[name].add_(square) if name in sums else square


def _watch(layer: Layer, gathered: Gathered) -> Any:
    """A hook that lets gradients begin at a layer and keeps their squares."""

    def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        if not y.requires_grad:
            y.requires_grad_(True)

        y.register_hook(lambda gradient: gathered.add(layer.outputs(gradient).detach()))

    return hook


def _draw(y: Tensor, metric: Distance, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient at the output is one draw of u."""
    if metric == "l2":
        signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
        return (signs * y).sum()
    logs = y.log_softmax(-1).reshape(-1, y.shape[-1])
    labels = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(y.device)
    return -logs.gather(1, labels).sum()
