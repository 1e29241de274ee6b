"""SmoothGrad: the gradient averaged over noisy copies of the input.

    signed    R_i = E[∂f/∂x_i (x + ε)]          absolute    E[|∂f/∂x_i|]          squared    E[(∂f/∂x_i)²]
    ε ~ N(0, s²),      s = noise * (max x - min x) of each sample

It is a sensitivity, not a decomposition: in the published form its parts have another unit than f, and the remainder says
so. With `times_input` the signed form is x E[∂f/∂x], which is gradient x input where f is linear.

All samples of a batch get the same noise (scaled to each), so that a sample's map does not depend on its neighbours.
Cost: n input-gradient passes, `batch_size` rows at a time; memory: one such batch.
Source: Smilkov et al. 2017, arXiv 1706.03825; squared: Hooker et al. 2019, arXiv 1806.10758.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import seeded, whole_number

from .explanation import Explanation
from .gradients import Differentiated

__all__ = ["smoothgrad"]

KINDS: dict[str, Callable[[Tensor], Tensor]] = {"signed": lambda g: g, "absolute": Tensor.abs, "squared": Tensor.square}
"""What is averaged of the gradient."""


def smoothgrad(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    n: int = 25,
    noise: float = 0.15,
    kind: str = "absolute",
    times_input: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """The gradient of the explained scalar, averaged over noise.

    Args:
        model: in eval mode, as `explain` takes it.
        *inputs: its arguments, batch first.
        kwargs: its keyword arguments.
        target: as of `explain`, one per sample.
        n: noisy copies.
        noise: standard deviation as a share of the range of each sample's values.
        kind: "signed", "absolute" or "squared".
        times_input: multiply by the input; with "signed" only.
        generator: of the noise; seeded with 0 when not given.
        batch_size: rows of a pass.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation`; of a token the part is the sum over what was looked up for it.

    Raises:
        ValueError: as `explain`; an unknown kind, n below 1, negative noise.

    Example:
        >>> model = torch.nn.Linear(4, 2, bias=False).eval()
        >>> smoothgrad(model, torch.randn(3, 4), target=0, kind="signed", times_input=True).error() < 1e-5
        True
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    n = whole_number("n", n)
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a share of the range of the input, 0 or more, got {noise}")
    if times_input and kind != "signed":
        raise ValueError(f"times_input gives a first-order term, which needs kind='signed', got {kind!r}")
    generator = seeded(generator)
    f = Differentiated(model, inputs, kwargs, target, rows=batch_size)
    spreads = [_range(leaf.value) * noise for leaf in f.leaves]
    sums = [torch.zeros_like(leaf.value) for leaf in f.leaves]
    for copies in [min(f.chunk, n - done) for done in range(0, n, f.chunk)]:
        # one copy after the other, so that the noise does not depend on how many share a pass
        drawn = [[_normal(leaf.value, generator) for leaf in f.leaves] for _ in range(copies)]
        points = [
            (leaf.value[None] + spread[None] * torch.stack([d[i] for d in drawn])[:, None]).flatten(0, 1)
            for i, (leaf, spread) in enumerate(zip(f.leaves, spreads, strict=True))
        ]
        for total, gradient in zip(sums, f.gradients(points), strict=True):
            total += KINDS[kind](gradient).view(copies, *total.shape).sum(0) / n
    relevance = [leaf.value * total if times_input else total for leaf, total in zip(f.leaves, sums, strict=True)]
    return f.explanation(relevance, f"smoothgrad ({kind})", names=names, classes=classes)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the shape of one sample."""
    return torch.randn(x.shape[1:], generator=generator, dtype=torch.float64).to(x)


def _range(x: Tensor) -> Tensor:
    """Largest less smallest value of every sample, shaped to multiply it."""
    flat = x.reshape(len(x), -1)
    return (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (x.ndim - 1))
