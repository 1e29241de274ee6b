"""Rows gathered until there are enough of them for one product: many short texts cost what one long one does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Gathered"]


class Gathered:
    """Rows of one width, handed on as many at a time as they are wide, or more.

    Args:
        use: takes rows of shape (N, n).
    """

    def __init__(self, use: Callable[[Tensor], None]) -> None:
        self.use, self.waiting, self.count = use, [], 0  # type: ignore[var-annotated]

    def add(self, rows: Tensor) -> None:
        """Take some. They are copied where they wait, so that what is done to them later does not matter."""
        if self.count + len(rows) >= rows.shape[1]:
            self.use(torch.cat([*self.waiting, rows]) if self.waiting else rows)
            self.waiting, self.count = [], 0
        elif len(rows):
            self.waiting.append(rows.clone())
            self.count += len(rows)

    def finish(self) -> None:
        """Hand on what still waits."""
        if self.waiting:
            self.use(torch.cat(self.waiting))
            self.waiting, self.count = [], 0
