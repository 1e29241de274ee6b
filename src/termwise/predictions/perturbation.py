"""An input seen as features that can be replaced: patches of pixels, tokens, plain numbers.

The mechanism of every method that asks a model about changed inputs: which features there are, how relevant each is,
and the batch of inputs in which a given set of them is replaced by a baseline or taken out of the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Features", "blurred"]


class Features:
    """The features of an input: their relevance, and the input with some of them replaced.

    Arguments as of `termwise.predictions.faithfulness.deletion`; `n` features per sample, called `what`.
    """

    def __init__(
        self, inputs: Any, relevance: Tensor, baseline: Any, patch: int, keep: Tensor | None, name: str | None = None
    ) -> None:
        self.inputs, self.baseline, self.patch = inputs, baseline, patch
        self.name = _explained(inputs, relevance, name) if isinstance(inputs, Mapping) else None
        x: Tensor = inputs if self.name is None else inputs[self.name]
        self.x, self.batch, self.image = x, len(x), x.ndim == 4
        if self.image and relevance.ndim == 4:
            relevance = relevance.sum(1)
        expected = (self.batch, *x.shape[2:]) if self.image else tuple(x.shape)
        if tuple(relevance.shape) != expected:
            raise ValueError(f"relevance has shape {tuple(relevance.shape)} for an input {tuple(x.shape)}: expected {expected}")
        if x.ndim not in (2, 4):
            raise ValueError(
                f"inputs must be images (batch, channels, height, width) or rows (batch, features), got {tuple(x.shape)}"
            )
        self.relevance = relevance.detach()
        ids = not x.is_floating_point()
        if isinstance(baseline, str):
            if baseline != "remove":
                raise ValueError(f"baseline must be a number, a tensor, a token id or 'remove', got {baseline!r}")
            if not ids:
                raise ValueError("baseline='remove' takes tokens out of a sequence: these inputs are no token ids")
        elif ids and torch.as_tensor(baseline).is_floating_point():
            raise ValueError(f"baseline must be an integer token id or 'remove' for token ids, got {baseline!r}")
        if self.image:
            if keep is not None:
                raise ValueError("keep names tokens or features that stay; it has no meaning for images")
            if patch < 1:
                raise ValueError(f"patch must be at least 1 pixel, got {patch}")
            self.grid = tuple(-(-size // patch) for size in x.shape[2:])  # the last row and column may be narrower
            self.places = torch.arange(self.grid[0] * self.grid[1])
        else:
            keep = torch.zeros(x.shape[1], dtype=torch.bool) if keep is None else keep.bool().cpu()
            if tuple(keep.shape) != tuple(x.shape[1:]):
                raise ValueError(f"keep has shape {tuple(keep.shape)}, one sample has {tuple(x.shape[1:])}")
            self.places = (~keep).nonzero()[:, 0]
        self.n = len(self.places)
        if self.n == 0:
            raise ValueError("no feature is left to replace")
        self.what = f"{patch}x{patch} patches" if self.image else "tokens" if ids else "features"

    def scores(self, sample: int) -> Tensor:
        """Relevance of the features of one sample, (n,)."""
        relevance = self.relevance[sample].cpu()
        if not self.image:
            return relevance[self.places]
        rows, columns = (torch.arange(size) // self.patch for size in relevance.shape)
        cell = rows[:, None] * self.grid[1] + columns
        return relevance.new_zeros(self.n).index_add(0, cell.flatten(), relevance.flatten())

    def batches(self, sample: int, replaced: Tensor, size: int) -> Iterator[tuple[Tensor, Any]]:
        """(rows of `replaced`, the inputs with these features replaced); `replaced` is (rows, n), boolean."""
        if not isinstance(self.baseline, str):
            for rows in torch.arange(len(replaced)).split(size):
                yield rows, self._with(sample, self._masked(sample, replaced[rows]))
            return
        lengths = (~replaced).sum(1)
        for length in lengths.unique():  # a batch has one length
            for rows in (lengths == length).nonzero()[:, 0].split(size):
                yield rows, self._shortened(sample, replaced[rows])

    def _full(self, replaced: Tensor) -> Tensor:
        """Of the whole axis, not only of the places that may be replaced."""
        mask = torch.zeros(len(replaced), self.x.shape[1], dtype=torch.bool)
        mask[:, self.places] = replaced
        return mask

    def _masked(self, sample: int, replaced: Tensor) -> Tensor:
        x = self.x[sample]
        if self.image:
            cells = replaced.view(-1, *self.grid).repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
            mask = cells[:, None, : x.shape[1], : x.shape[2]]
        else:
            mask = self._full(replaced)
        value = torch.as_tensor(self.baseline, dtype=x.dtype, device=x.device)
        value = value[sample] if value.shape == self.x.shape else value
        return torch.where(mask.to(x.device), value, x)

    def _with(self, sample: int, x: Tensor) -> Any:
        if self.name is None:
            return x
        rows = {k: v[sample : sample + 1].expand(len(x), *v.shape[1:]) for k, v in self.inputs.items()}
        return {**rows, self.name: x}

    def _shortened(self, sample: int, replaced: Tensor) -> Any:
        stay = (~self._full(replaced)).to(self.x.device)

        def shorten(row: Tensor) -> Tensor:
            return row.expand(len(stay), -1)[stay].view(len(stay), -1)

        if self.name is None:
            return shorten(self.x[sample])
        shape = self.x.shape
        return {
            k: shorten(v[sample]) if v.shape == shape else v[sample : sample + 1].expand(len(stay), *v.shape[1:])
            for k, v in self.inputs.items()
        }


def blurred(images: Tensor, sigma: float = 10.0) -> Tensor:
    """Images seen through a Gaussian window, (batch, channels, height, width): what a patch is without its detail.

    Args:
        images: floating.
        sigma: width of the window, pixels. Borders are continued outwards.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    reach = torch.arange(-int(3 * sigma) - 1, int(3 * sigma) + 2, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (reach / sigma) ** 2)
    window = (window / window.sum()).expand(images.shape[1], 1, 1, -1)
    side, channels = len(reach) // 2, images.shape[1]
    wide = functional.pad(images, (side, side, side, side), mode="replicate")
    return functional.conv2d(functional.conv2d(wide, window, groups=channels), window.mT, groups=channels)


def _explained(inputs: Mapping[str, Tensor], relevance: Tensor, chosen: str | None) -> str:
    """The name of the input that `relevance` is about: the chosen one, or the first of its shape."""
    if chosen is not None:
        if chosen not in inputs:
            raise ValueError(f"there is no input {chosen!r}: there are {', '.join(inputs)}")
        return chosen
    for name, value in inputs.items():
        if value.shape == relevance.shape or (value.ndim == 4 and relevance.shape == (len(value), *value.shape[2:])):
            return name
    shapes = {k: tuple(v.shape) for k, v in inputs.items()}
    raise ValueError(f"relevance has shape {tuple(relevance.shape)}, and no input has it: {shapes}")
