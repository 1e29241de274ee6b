"""What one layer may become: its choices from cheap to dense, what each costs and what each spoils."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from termwise.core.pictures import Line, Lines, Picture, Pictured

from .factorization import Factorization
from .layers import Layer

__all__ = ["Curve", "Fitted", "Ladder", "Replacement", "ranks_below"]

Fitted = Mapping[str, Tensor]
"""What was worked out for a layer."""

WORTH = 0.95
"""Of a layer's size; a product that stores more than that costs time and saves nothing to speak of."""

STEPS = 64
"""Ranks on a ladder, at most."""


@dataclass(frozen=True, eq=False)
class Curve(Pictured):
    """Costs and errors of the choices of one layer. The last choice is the layer as it is.

    Attributes:
        costs: shape (k,), in one unit for all layers.
        errors: shape (k,), squared, of a unit that can be added over layers.
    """

    costs: np.ndarray
    errors: np.ndarray

    def __post_init__(self) -> None:
        if self.costs.shape != self.errors.shape or self.costs.ndim != 1 or not len(self.costs):
            raise ValueError(
                f"costs and errors are two lists of one length, got shapes {self.costs.shape} and {self.errors.shape}"
            )
        if not np.isfinite(self.costs).all() or not np.isfinite(self.errors).all() or (self.errors < 0).any():
            raise ValueError(
                "costs and errors are finite, and errors not negative: does the model or its derivative give NaN for these data?"
            )

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What each choice costs, and what it spoils."""
        line = Line("choices", self.costs.tolist(), self.errors.tolist())
        note = "The last choice is the layer as it is, whose error of 0 has no place here."
        return [Lines("What a layer may become", [line], x="cost", y="expected error, squared", log_y=True, note=note)]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What takes a layer's place.

    Attributes:
        module: of torch's classes, or of `low_rank_linear`.
        weight: its weight beside the one it stands for; None where it is the layer itself.
    """

    module: nn.Module
    weight: Factorization | None = None


@dataclass(frozen=True, eq=False)
class Ladder(Pictured):
    """The choices of one layer.

    Attributes:
        layer: as it is.
        labels: of the choices, "rank 128"; the last is "dense".
        params: numbers that each stores, without the bias, shape (k,).
        errors: what each is expected to spoil, shape (k,): squared, in the unit of the statistics it was made with.
        build: makes the choice with this index.
        families: of which kind each choice is, where several kinds come in several sizes; the last is None. Not given: one kind.
    """

    layer: Layer
    labels: Sequence[str]
    params: np.ndarray
    errors: np.ndarray
    build: Callable[[int], Replacement]
    families: Sequence[Hashable] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def curve(self, costs: np.ndarray | None = None) -> Curve:
        """Costs (`params` when not given) against errors."""
        return Curve(np.asarray(self.params if costs is None else costs, dtype=float), self.errors)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What each choice stores, and what it spoils; a curve for each family of choices."""
        kinds = list(dict.fromkeys(self.families[:-1])) if self.families else [None]
        of = [self.families[i] if self.families else None for i in range(len(self) - 1)]
        lines = []
        for kind in kinds:
            rows = [i for i, family in enumerate(of) if family == kind]
            share = [self.params[i] / self.layer.size for i in rows]
            lines.append(Line("choices" if kind is None else str(kind), share, [float(self.errors[i]) for i in rows]))
        ends = f"from {self.labels[0]} to {self.labels[-2]}" if len(self) > 1 else "none but the layer as it is"
        note = f"{len(self) - 1} choices, {ends}; dense, at 1, spoils nothing."
        title = "What the layer may become"
        return [Lines(title, lines, x="share of its numbers kept", y="expected error, squared", log_y=True, note=note)]

    def only(self, chosen: Sequence[int]) -> Ladder:
        """Some of its choices."""
        index = list(chosen)
        return Ladder(
            self.layer, [self.labels[i] for i in index], self.params[index], self.errors[index], lambda i: self.build(index[i]),
            [self.families[i] for i in index] if self.families else (),
        )  # fmt: skip


def with_dense(
    layer: Layer,
    labels: Sequence[str],
    params: np.ndarray,
    errors: np.ndarray,
    build: Callable[[int], Replacement],
    families: Sequence[Hashable] = (),
) -> Ladder:
    """A ladder of these choices that save something, and the layer as it is."""
    kept = [i for i in range(len(labels)) if params[i] <= WORTH * layer.size]
    last = len(kept)
    return Ladder(
        layer,
        [*(labels[i] for i in kept), "dense"],
        np.append(params[kept], layer.size).astype(np.int64),
        np.append(np.maximum(errors[kept], 0), 0.0),
        lambda i: Replacement(layer.module) if i == last else build(kept[i]),
        [*(families[i] for i in kept), None] if families else (),
    )


def ranks_below(limit: int, step: int = 1) -> np.ndarray:
    """Up to STEPS ranks from 1 to `limit`, evenly spread; where there are many 1, 2, 4 and multiples of `step`."""
    if limit < 8 * step:
        step = 1
    first = np.array([r for r in (1, 2, 4) if r < step], dtype=int)
    ranks = np.arange(step, limit + 1, step)
    room = STEPS - len(first)
    spread = ranks if len(ranks) <= room else ranks[np.unique(np.linspace(0, len(ranks) - 1, room).round().astype(int))]
    return np.concatenate([first, spread])
