r"""A layer without the DC: every channel less its mean over space.

    y = x - mean of x over its spatial axes

Source: papers.toml "dc-is-all-you-need" (networks whose activations are followed by this).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["RemoveDC"]


class RemoveDC(nn.Module):
    """Subtract the mean over space, for every sample and channel by itself; no parameters, the same in training and evaluation.

    A mean over space behind it (global average pooling) is 0: end such a network with another head.

    Args:
        dims: axes to take the mean over; None: every axis behind batch and channel.

    Raises:
        ValueError: in `forward`, for an input without such axes.

    Cost: two passes.

    Example:
        >>> x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        >>> bool(tw.functions.RemoveDC()(x).mean((2, 3)).abs().max() < 1e-15)
        True

    Source: Kechris et al. 2024.
    """

    def __init__(self, dims: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.dims = None if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *space) to the same."""
        dims = tuple(range(2, x.ndim)) if self.dims is None else self.dims
        if not dims or not all(-x.ndim <= d < x.ndim for d in dims):
            axes = "axes behind batch and channel" if self.dims is None else f"the axes {self.dims}"
            raise ValueError(f"RemoveDC takes the mean over {axes}, which a tensor of shape {tuple(x.shape)} does not have")
        return x - x.mean(dims, keepdim=True)

    def extra_repr(self) -> str:
        """The axes, where they were chosen."""
        return "" if self.dims is None else f"dims={self.dims}"
