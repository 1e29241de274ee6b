"""The last computed values of one feature, kept in one block of memory, and what they forecast.

Memory: (order + 1) copies of the feature. A forecast reads them once and writes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["History"]


class History:
    """The last `size` values of a tensor, or of a tree of tensors, at the times when they were computed.

    Args:
        size: how many to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.nodes: list[float] = []  # newest first
        self._slots: list[int] = []  # where in the buffers, in the order of `nodes`
        self._buffers: list[Tensor] = []
        self._moving: list[int] = []  # which leaves of the tree are forecast
        self._leaves: list[object] = []
        self._spec: pytree.TreeSpec | None = None

    def append(self, value: object, at: float) -> None:
        """Keep a copy of what was computed. A value of another shape than before begins anew."""
        leaves, spec = pytree.tree_flatten(value)
        moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not moving:
            raise TypeError(
                f"a {type(value).__name__} came out in which no floating tensor is seen: return a tensor, or a tuple, dict or "
                "output class of diffusers or transformers with some"
            )
        if not self.fits(value):
            self.nodes, self._slots, self._moving, self._spec = [], [], moving, spec
            self._buffers = [leaves[i].new_empty(self.size, *leaves[i].shape) for i in moving]
        self._leaves = [None if i in moving else leaf for i, leaf in enumerate(leaves)]
        slot = self._slots[-1] if len(self._slots) == self.size else len(self._slots)
        for buffer, i in zip(self._buffers, moving, strict=True):
            buffer[slot].copy_(leaves[i].detach())  # a copy: what was computed may be changed in place by its owner
        self.nodes = [at, *self.nodes][: self.size]
        self._slots = [slot, *self._slots][: self.size]

    def fits(self, value: object) -> bool:
        """Whether a value has the structure, shapes and types of those kept."""
        leaves, spec = pytree.tree_flatten(value)
        moving = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return spec == self._spec and [(b.shape[1:], b.dtype, b.device) for b in self._buffers] == [
            (m.shape, m.dtype, m.device) for m in moving
        ]

    def combine(self, weights: Sequence[float] | np.ndarray) -> list[Tensor]:
        """sum_j weights_j value_j of every tensor of the tree, newest first, in single precision at least."""
        placed = np.zeros(self.size)
        placed[self._slots[: len(weights)]] = weights
        used = len(self._slots)
        out = []
        for buffer in self._buffers:
            wide = torch.promote_types(buffer.dtype, torch.float32)  # differences of half precision have no digits left
            w = torch.as_tensor(placed[:used], dtype=wide, device=buffer.device)
            out.append(torch.tensordot(w, buffer[:used].to(wide), 1))
        return out

    def value(self, weights: Sequence[float] | np.ndarray) -> object:
        """The same as a tree like those kept, in their precision. What is no floating tensor is the newest."""
        leaves = list(self._leaves)
        for i, made, buffer in zip(self._moving, self.combine(weights), self._buffers, strict=True):
            leaves[i] = made.to(buffer.dtype)
        assert self._spec is not None
        return pytree.tree_unflatten(leaves, self._spec)

    def moving(self, value: object) -> list[Tensor]:
        """The tensors of a tree that are forecast."""
        leaves, _ = pytree.tree_flatten(value)
        return [leaves[i] for i in self._moving]

    @property
    def bytes(self) -> int:
        """Of memory."""
        return sum(b.numel() * b.element_size() for b in self._buffers)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of every sample (first axis) over all tensors, (batch,) in float64."""
    squares = [
        t.detach().flatten(1).double().square().sum(1) if t.ndim > 1 else t.detach().double().square().reshape(-1)
        for t in tensors
    ]
    return torch.stack(squares).sum(0).sqrt()
