"""GradCAM: an inner map of a convolutional network, its channels weighted by how much the output feels them.

    α_k = mean_ij ∂f/∂A_kij,      L_ij = ReLU(Σ_k α_k A_kij),      enlarged to the picture

Enlarging spreads each entry over pixels with bilinear weights that sum to 1, so that the map keeps its sum. Without the
ReLU a network of convolutions, a global average pool and a linear layer adds up: f(x) is the map and the head's bias (class
activation mapping). With it, and behind deeper heads, the remainder says what is missing.

Cost: one forward pass and the backward pass down to the layer.
Source: Selvaraju et al. 2017, arXiv 1610.02391, equations 1-2; CAM: Zhou et al. 2016, arXiv 1512.04150.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from termwise.core.program import Program, info

from .enlarge import enlarged
from .explanation import Explanation
from .gradients import Differentiated
from .rules.selection import nearest

__all__ = ["gradcam"]


def gradcam(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    layer: str | None = None,
    relu: bool = True,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Where in the picture a layer's channels speak for the explained scalar.

    Args:
        model: in eval mode, as `explain` takes it; convolutional, with one image among its inputs.
        *inputs: its arguments, batch first.
        kwargs: its keyword arguments.
        target: as of `explain`, one per sample.
        layer: path of the module whose output is read. The last map of the last convolution's shape when not given: behind
            its normalisation and activation, before pooling.
        relu: keep what speaks for the target only, as published.
        names: ignored but for the contract.
        classes: names of the classes.

    Returns:
        An `Explanation` whose part has the image's shape: the map, shared evenly by the channels of each pixel.

    Raises:
        ValueError: as `explain`; no image, no convolution, an unknown layer, or one whose output is no map.

    Example:
        >>> head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 2, bias=False)]
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2, stride=2), torch.nn.ReLU(), *head).eval()
        >>> gradcam(model, torch.randn(2, 3, 8, 8), target=0, relu=False).error() < 1e-5      # class activation mapping
        True
    """
    f = Differentiated(model, inputs, kwargs, target)
    images = [leaf for leaf in f.leaves if leaf.value.ndim == 4]
    if len(images) != 1 or len(f.leaves) != 1:
        raise ValueError(f"gradcam needs one image (batch, channels, height, width) and nothing else, got {len(f.leaves)} inputs")
    node = _last_map(f.program) if layer is None else _output_of(f.program, layer)
    activation, gradient = f.inner(node)
    if activation.ndim != 4 or len(activation) != f.batch:
        raise ValueError(f"the output of {layer or node!r} is {tuple(activation.shape)}, no map (batch, channels, height, width)")
    alpha = gradient.mean((2, 3), keepdim=True)
    small = (alpha * activation).sum(1)
    picture = images[0].value
    spread = enlarged(small.relu() if relu else small, picture.shape[2:])
    relevance = (spread / picture.shape[1])[:, None].expand_as(picture)
    return f.explanation([relevance], "gradcam", names=names, classes=classes)


def _last_map(program: Program) -> str:
    """The last node whose value has the shape that the last convolution over an image has."""
    shape, found = None, None
    for node in program.nodes:
        value = node.meta.get("val")
        if not info(node).active or not isinstance(value, Tensor) or value.ndim != 4:
            continue
        size = tuple(value.shape[1:])
        if "conv" in str(node.target) and size[1] * size[2] > 1:
            shape, found = size, node.name
        elif size == shape:
            found = node.name
    if found is None:
        raise ValueError(f"{type(program.model).__name__} has no convolution over an image: name a layer, or take another method")
    return found


def _output_of(program: Program, layer: str) -> str:
    """The last node of a module."""
    inside = [n for n in program.nodes if info(n).path == layer or info(n).path.startswith(layer + ".")]
    if not inside:
        paths = sorted({info(n).path for n in program.nodes if info(n).path})
        raise ValueError(f"no module {layer!r} in {type(program.model).__name__}{nearest(layer, paths)}")
    return inside[-1].name
