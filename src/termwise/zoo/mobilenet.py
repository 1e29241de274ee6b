"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) with the weights of torchvision's first ImageNet release.

An inverted residual widens with a 1x1 convolution, filters each channel by itself, and narrows again without an
activation:

    x -> expand (1x1, ReLU6) -> depthwise (3x3, ReLU6) -> project (1x1), plus x where shape and stride allow

The attributes are named as in the checkpoint's keys, so that it loads strictly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .assets import fetch

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# widening factor, output channels, number of blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _unit(channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6. Not in place: who explains a model stores its activations."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Widen, filter per channel, narrow; plus the input where it fits.

    Args:
        channels_in, channels_out: of the block.
        widening: the inner channels are `widening * channels_in`.
        stride: of the depthwise convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, widening: int, stride: int) -> None:
        super().__init__()
        inner = widening * channels_in
        self.skips = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *([_unit(channels_in, inner)] if widening != 1 else []),
            _unit(inner, inner, kernel=3, stride=stride, groups=inner),
            nn.Conv2d(inner, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout h2 w2"]:
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNetV2(nn.Module):
    """The network at width 1.0: 3,504,872 parameters for 1000 classes.

    Args:
        classes: number of classes.

    Example:
        >>> MobileNetV2(classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 32, kernel=3, stride=2)]
        channels = 32
        for widening, wide, repeats, first in STAGES:
            for k in range(repeats):
                layers.append(InvertedResidual(channels, wide, widening, first if k == 0 else 1))
                channels = wide
        self.features = nn.Sequential(*layers, _unit(channels, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2() -> MobileNetV2:
    """The network with its ImageNet weights, in evaluation mode, float32.

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    model = MobileNetV2()
    model.load_state_dict(torch.load(fetch("mobilenet-v2"), map_location="cpu", weights_only=True), strict=True)
    return model.eval()
