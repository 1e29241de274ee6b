"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le, 2019, arXiv:1905.11946) for mobile hardware, with TensorFlow's habits.

Against B0: ReLU6 in place of swish, no squeeze-and-excite, stem and head not scaled. From TensorFlow: batch norm with
eps = 1e-3, and "same" padding, which pads more at the bottom and right where a stride leaves an odd rest. The
attributes (underscores included) are named as in the checkpoint's keys, so that it loads strictly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .assets import fetch
from .pictures import PicturePreparation

__all__ = ["EfficientNetLite0", "MBConv", "SamePaddedConv2d", "efficientnet_lite0", "preparation"]

preparation = PicturePreparation(resize=256, crop=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, filter="bicubic")
"""(value - 127) / 128. ImageNet's mean and deviation look alive here and give wrong classes."""

# kernel, stride of the first block, widening factor, output channels, number of blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SamePaddedConv2d(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels, the odd pixel of padding at the bottom and right."""

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout h2 w2"]:
        """Pad by (ceil(n / s) - 1) s + k - n, half of it (rounded down) before and the rest after; then convolve."""
        pads = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            padding = max((-(-n // s) - 1) * s + k - n, 0)  # F.pad counts from the last axis
            pads += [padding // 2, padding - padding // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class MBConv(nn.Module):
    """Widen, filter per channel, narrow; plus the input where it fits.

    Args:
        channels_in, channels_out: of the block.
        kernel, stride: of the depthwise convolution.
        widening: the inner channels are `widening * channels_in`.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = widening * channels_in
        self.skips = stride == 1 and channels_in == channels_out
        self.widens = widening != 1
        if self.widens:
            self._expand_conv = nn.Conv2d(channels_in, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SamePaddedConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = nn.Conv2d(inner, channels_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout h2 w2"]:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """The network: 4,652,008 parameters for 1000 classes.

    Args:
        classes: number of classes.

    Example:
        >>> EfficientNetLite0(classes=10).eval()(torch.zeros(1, 3, 63, 65)).shape  # odd sizes are what "same" is about
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SamePaddedConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList()
        channels = 32
        for kernel, first, widening, wide, repeats in STAGES:
            for k in range(repeats):
                self._blocks.append(MBConv(channels, wide, kernel, first if k == 0 else 1, widening))
                channels = wide
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(x.mean((2, 3))))


def efficientnet_lite0() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode, float32.

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(fetch("efficientnet-lite0"), map_location="cpu", weights_only=True), strict=True)
    return model.eval()
