"""Gradient x input: R = x ∂f/∂x, the first-order term of f at 0 as seen from x.

On a network of linear layers, convolutions, ReLU and max-pooling without biases it adds up to f(x), since f is homogeneous
of degree one there. Elsewhere it does not, and the remainder says by how much: biases, normalisers and saturation.

Cost: one input-gradient pass. It is the yardstick that other methods' seconds are divided by.
Source: Shrikumar et al. 2016, arXiv 1605.01713; with LRP-0: Ancona et al. 2018, arXiv 1711.06104.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from .explanation import Explanation
from .gradients import Differentiated

__all__ = ["gradient_x_input"]


def gradient_x_input(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Each input times the derivative of the explained scalar; of a token, summed over what was looked up for it.

    Args:
        model: in eval mode, as `explain` takes it.
        *inputs: its arguments, batch first.
        kwargs: its keyword arguments.
        target: as of `explain`, one per sample.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation` with a part for each input. What biases and constants did is the remainder.

    Raises:
        ValueError: as `explain`.

    Example:
        >>> model = torch.nn.Linear(4, 2, bias=False).eval()
        >>> why = gradient_x_input(model, torch.randn(3, 4), target=0).check()
        >>> list(why.parts)
        ['input:input']
    """
    f = Differentiated(model, inputs, kwargs, target)
    values = [leaf.value for leaf in f.leaves]
    relevance = [x * g for x, g in zip(values, f.gradients(values), strict=True)]
    return f.explanation(relevance, "gradient x input", names=names, classes=classes)
