"""An input seen as features that can be replaced: patches of pixels, tokens, plain numbers, or groups of one's own.

    images (batch, channels, height, width)     a patch         ids (batch, tokens)         a token
    sequences (batch, tokens, features)         a token         numbers (batch, features)   a number

The mechanism of every method that asks a model about changed inputs: which features there are, how relevant each is,
in which order they go, and the batches of inputs in which given ones are replaced by a fill-in or taken out of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from termwise.core.arguments import whole_number

from .fill_ins import filled
from .groups import Groups, patches
from .refusals import finite_inputs

__all__ = ["Features"]


class Features:
    """The features of an input, and the input with some of them replaced.

    Attributes:
        x: the explained input, first axis the sample.
        cells: the feature that each position belongs to, (batch, positions), -1 where it always stays.
        n: number of features of the sample that has the most.
        counts: number of features of every sample, (batch,).
        what: name of a feature in the plural.
    """

    def __init__(
        self,
        inputs: Any,
        *,
        baseline: Any,
        patch: int = 8,
        keep: Tensor | None = None,
        name: str | None = None,
        feature_mask: Tensor | Groups | None = None,
        relevance: Tensor | None = None,
    ) -> None:
        """Arguments as of `termwise.predictions.deletion`; `relevance` tells which of several inputs is meant."""
        self.inputs = inputs
        self.name = _explained(inputs, relevance, name) if isinstance(inputs, Mapping) else None
        x: Tensor = inputs if self.name is None else inputs[self.name]
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs must be a tensor, or a mapping from names to tensors; got {type(x).__name__}")
        if x.ndim not in (2, 3, 4):
            raise ValueError(
                "inputs must be images (batch, channels, height, width), sequences (batch, tokens, features) or rows (batch, "
                f"features), got {tuple(x.shape)}"
            )
        finite_inputs((), {self.name or "inputs": x})
        self.x, self.batch, self.image = x.detach(), len(x), x.ndim == 4
        self.channels = {2: None, 3: 2, 4: 1}[x.ndim]  # the axis whose entries go together
        self.positions = tuple(x.shape[2:] if self.image else x.shape[1:2])
        self.fill = filled(self.x, baseline)
        ids = not x.is_floating_point()
        if feature_mask is not None:
            self.cells, self.what = self._groups(feature_mask), "groups"
        elif self.image:
            self.cells, self.what = self._patches(patch), f"{patch}x{patch} patches"
        else:
            self.cells, self.what = (
                torch.arange(self.positions[0]).expand(self.batch, -1),
                "tokens" if ids or x.ndim == 3 else "features",
            )
        if keep is not None:
            self._keep(keep)
        self.n = int(self.cells.max()) + 1 if self.cells.numel() else 0
        present = torch.zeros(self.batch, self.n + 1, dtype=torch.bool).scatter(1, self.cells + 1, True)[:, 1:]
        used = present.any(0)
        if not bool(present.any(1).all()) or not self.n:
            raise ValueError("no feature is left to replace")
        if not bool(used.all()):  # numbers that no sample uses
            renumbered = torch.cat([torch.tensor([-1]), used.cumsum(0) - 1])
            self.cells, present, self.n = renumbered[self.cells + 1], present[:, used], int(used.sum())
        self.present, self.counts = present, present.sum(1)

    def _patches(self, patch: int) -> Tensor:
        if patch < 1:
            raise ValueError(f"patch must be at least 1 pixel, got {patch}")
        return patches(*self.positions, patch).flatten().expand(self.batch, -1)

    def _groups(self, mask: Tensor | Groups) -> Tensor:
        """A feature mask: one number per position, for all samples or for each."""
        mask = mask.mask if isinstance(mask, Groups) else mask
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise TypeError(f"feature_mask must hold integers, one number per group; it has {mask.dtype}")
        given = mask[:, 0] if self.image and mask.ndim == 4 and mask.shape[1] == 1 else mask
        if given.ndim == len(self.positions):
            given = given[None]
        if tuple(given.shape[1:]) != self.positions or len(given) not in (1, self.batch):
            raise ValueError(
                f"feature_mask has shape {tuple(mask.shape)}: it must be {self.positions} for all samples, or "
                f"{(self.batch, *self.positions)} with one for each"
            )
        if bool((given < -1).any()):
            raise ValueError(f"feature_mask must number groups from 0 (-1: stays as it is), got {int(given.min())}")
        numbers, cells = given.flatten(1).long().cpu().unique(return_inverse=True)  # which may be any
        return (cells - int(bool((numbers < 0).any()))).expand(self.batch, -1)

    def _keep(self, keep: Tensor) -> None:
        if self.image:
            raise ValueError("keep names tokens or features that stay; it has no meaning for images")
        if tuple(keep.shape) not in (self.positions, (self.batch, *self.positions)):
            raise ValueError(f"keep has shape {tuple(keep.shape)}, one sample has {self.positions}")
        self.cells = self.cells.masked_fill(keep.bool().cpu(), -1)

    # -- in which order -----------------------------------------------------------------------------------------------

    def scores(self, relevance: Tensor) -> Tensor:
        """Relevance of every feature, the sum over its positions and channels, (batch, n)."""
        if not isinstance(relevance, Tensor):
            kind = type(relevance).__name__
            raise TypeError(f"relevance must be a tensor of the input's shape, got {kind} (of an Explanation: .ranking())")
        x, shape = self.x, tuple(relevance.shape)
        if self.channels is not None and relevance.ndim == x.ndim:
            relevance = relevance.sum(self.channels)
        if tuple(relevance.shape) != (self.batch, *self.positions):
            raise ValueError(
                f"relevance has shape {shape} for an input {tuple(x.shape)}: expected {(self.batch, *self.positions)}"
            )
        flat = relevance.detach().flatten(1).cpu()
        if not bool(flat.isfinite().all()):
            raise ValueError(
                f"relevance has {int((~flat.isfinite()).sum())} values that are NaN or infinite: no order of the features follows"
            )
        return flat.new_zeros(self.batch, self.n + 1).scatter_add(1, self.cells + 1, flat)[:, 1:]

    def ranks(self, scores: Tensor, *, descending: bool, generator: torch.Generator) -> Tensor:
        """The place of every feature in the order of replacement, (batch, n); ties in random order, absent ones last."""
        shuffled = self._shuffles(generator, self.batch)
        ordered = scores.gather(1, shuffled).argsort(dim=1, descending=descending, stable=True)
        return self._absent_last(shuffled.gather(1, ordered))

    def random_ranks(self, generator: torch.Generator, *, alike: bool = False) -> Tensor:
        """As `ranks`, for a random order; `alike` for every sample, so that none depends on the others of its batch."""
        order = self._shuffles(generator, 1 if alike else self.batch)
        return self._absent_last(order.expand(self.batch, -1))

    def _shuffles(self, generator: torch.Generator, rows: int) -> Tensor:
        return torch.rand(rows, self.n, generator=generator, dtype=torch.float64).argsort(1)

    def _absent_last(self, order: Tensor) -> Tensor:
        absent = ~self.present.gather(1, order)
        return order.gather(1, absent.to(torch.int8).argsort(dim=1, stable=True)).argsort(1)

    def numbers(self, steps: int, fractions: Sequence[float] | None) -> tuple[Tensor, Tensor]:
        """The fractions to measure at, from 0, and how many features of each sample that is, (batch, points)."""
        if fractions is None:
            steps = whole_number("steps", steps)
            fractions = [k / steps for k in range(steps + 1)]
        if not fractions or not all(0 <= f <= 1 for f in fractions):
            raise ValueError(f"fractions must lie in 0..1, got {list(fractions)}")
        wanted = sorted({0.0, *fractions})
        if bool((self.counts == self.n).all()):  # then a point is a number of features, and none is measured twice
            numbers = sorted({round(f * self.n) for f in wanted})
            if len(numbers) == 1:
                raise ValueError(
                    f"fractions {list(fractions)} of {self.n} features replace none: ask for at least {1 / self.n:.2g}"
                )
            exact = torch.tensor(numbers)
            return exact.double() / self.n, exact.expand(self.batch, -1)
        nominal = torch.tensor(wanted, dtype=torch.float64)
        return nominal, (nominal * self.counts[:, None]).round().long()

    # -- changed inputs -----------------------------------------------------------------------------------------------

    def batches(self, samples: Tensor, replaced: Callable[[Tensor], Tensor], size: int) -> Iterator[tuple[Tensor, Any]]:
        """(rows, the inputs of these rows), at most `size` rows at a time.

        Args:
            samples: the sample of each row, (rows,).
            replaced: from row numbers (k,) to which features are replaced in them, (k, n), boolean; asked chunk by chunk.
            size: rows of a batch.
        """
        every = torch.arange(len(samples))
        if self.fill is not None:
            for rows in every.split(size):
                yield rows, self._with(samples[rows], self._filled(samples[rows], replaced(rows)))
            return
        stay = torch.cat([~self._spread(samples[rows], replaced(rows)) for rows in every.split(4096)])
        lengths = stay.sum(1)
        if not bool(lengths.all()):
            raise ValueError(
                "nothing is left of a sequence when all its tokens are removed: say which ones stay (keep=), stop earlier "
                "(fractions=), or give the id of a mask token as baseline"
            )
        for length in lengths.unique():  # a batch has one length
            for rows in (lengths == length).nonzero()[:, 0].split(size):
                yield rows, self._shortened(samples[rows], stay[rows])

    def given(self, samples: Tensor) -> Any:
        """The inputs of these samples as they are."""
        return self._with(samples, self.x[samples.to(self.x.device)])

    def _spread(self, samples: Tensor, replaced: Tensor) -> Tensor:
        """From features to positions, (rows, positions)."""
        never = torch.zeros(len(replaced), 1, dtype=torch.bool)
        return torch.cat([never, replaced], 1).gather(1, self.cells[samples] + 1)

    def _filled(self, samples: Tensor, replaced: Tensor) -> Tensor:
        samples = samples.to(self.x.device)
        x, value = self.x[samples], self.fill
        assert value is not None
        value = value[samples] if value.shape == self.x.shape else value
        mask = self._spread(samples.cpu(), replaced).to(x.device).view(len(samples), *self.positions)
        return torch.where(mask if self.channels is None else mask.unsqueeze(self.channels), value, x)

    def _with(self, samples: Tensor, x: Tensor) -> Any:
        return x if self.name is None else {k: self._taken(v, samples) for k, v in self.inputs.items()} | {self.name: x}

    def _taken(self, value: Any, samples: Tensor) -> Any:
        """Some samples of another input; all of one that has none."""
        own = isinstance(value, Tensor) and value.ndim and len(value) == self.batch
        return value[samples.to(value.device)] if own else value

    def _shortened(self, samples: Tensor, stay: Tensor) -> Any:
        def shorten(value: Tensor) -> Tensor:
            return value[samples.to(value.device)][stay.to(value.device)].view(len(stay), -1)

        if self.name is None:
            return shorten(self.x)
        decoder = self.name.startswith("decoder_")  # whose text is another one
        return {
            k: shorten(v)
            if isinstance(v, Tensor) and v.shape == self.x.shape and k.startswith("decoder_") == decoder
            else self._taken(v, samples)
            for k, v in self.inputs.items()
        }


def _explained(inputs: Mapping[str, Any], relevance: Tensor | None, chosen: str | None) -> str:
    """The name of the input that `relevance` is about: the chosen one, or the first of its shape."""
    if chosen is not None:
        if chosen not in inputs:
            raise ValueError(f"there is no input {chosen!r}: there are {', '.join(inputs)}")
        return chosen
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    if relevance is None:
        return next(iter(tensors))
    for name, value in tensors.items():
        if relevance.shape in (value.shape, value.shape[:1] + value.shape[2:] if value.ndim == 4 else value.shape[:2]):
            return name
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    raise ValueError(f"relevance has shape {tuple(relevance.shape)}, and no input has it: {shapes}")
