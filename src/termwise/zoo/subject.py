"""A subject: a real model with all that is needed to ask it something and to read its answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from .pictures import PicturePreparation
from .texts import TextPreparation

__all__ = ["Subject"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, what it takes, and what its outputs are called.

    Args:
        name: its key in `zoo.subjects`.
        model: in evaluation mode, float32. It is yours: `subject.model.double()` makes `prepare` give float64 too.
        preparation: turns a picture or a text into its input.
        classes: names of the outputs, in order.
        licence: of the weights.

    Example:
        >>> s = load("mobilenet-v2")                                  # doctest: +SKIP
        >>> x = s.prepare(photo("china"))                             # doctest: +SKIP
        >>> s.classes[s.model(x).argmax()]                            # doctest: +SKIP
        'palace'
    """

    name: str
    model: nn.Module
    preparation: PicturePreparation | TextPreparation
    classes: Sequence[str]
    licence: str

    @property
    def kind(self) -> Literal["image", "text"]:
        """What it takes."""
        return "image" if isinstance(self.preparation, PicturePreparation) else "text"

    @property
    def baseline(self) -> float | int | None:
        """What stands in for a deleted input: a normalised pixel value, a token id, or None (remove the token)."""
        return self.preparation.baseline

    def prepare(self, source: Any, *, truncate: bool = False) -> Any:
        """What goes into `termwise.explain(subject.model, ...)`, on the model's device, floating values in its dtype.

        Args:
            source: a picture (path, PIL image, array, tensor: see `pictures.read`) or a text (str).
            truncate: for a text that is too long, keep its beginning instead of refusing it.

        Returns:
            A picture as a tensor (1, 3, h, w); a text as a mapping of keyword inputs of shape (1, tokens).

        Raises:
            TypeError: neither picture nor text.
            ValueError: a damaged or empty picture; an empty text, or one longer than the model takes.
        """
        first = next(self.model.parameters(), torch.empty(0))  # a model may have nothing to learn
        if isinstance(self.preparation, TextPreparation):
            return self.preparation(source, truncate=truncate, device=first.device)
        if truncate:
            raise TypeError(f"truncate is for texts; {self.name} takes pictures")
        dtype = first.dtype if first.dtype.is_floating_point else torch.float32
        return self.preparation(source, dtype=dtype, device=first.device)

    def names(self, prepared: Mapping[str, Tensor] | Tensor) -> list[str] | None:
        """The tokens of a prepared text, in order; None for a picture."""
        return self.preparation.names(prepared) if isinstance(self.preparation, TextPreparation) else None

    def words(self, prepared: Mapping[str, Tensor] | Tensor) -> list[tuple[str, list[int]]] | None:
        """The words of a prepared text, each with the indices of its tokens (a partition); None for a picture."""
        return self.preparation.words(prepared) if isinstance(self.preparation, TextPreparation) else None

    def special(self, prepared: Mapping[str, Tensor] | Tensor) -> list[int] | None:
        """Indices of the tokens that are not the text's ([CLS] and the like); None for a picture."""
        return self.preparation.special(prepared) if isinstance(self.preparation, TextPreparation) else None

    def picture(self, prepared: Tensor) -> UInt8[np.ndarray, "h w 3"]:
        """What the model saw of a picture, as pixels.

        Raises:
            TypeError: the subject takes text.
        """
        if not isinstance(self.preparation, PicturePreparation):
            raise TypeError(f"{self.name} takes text: there is no picture to draw, see names() and words()")
        return self.preparation.picture(prepared)

    def index(self, name: str) -> int:
        """The class of a name, or of a number written out ("698").

        Args:
            name: as in `classes`; upper and lower case count only where they tell two classes apart.

        Returns:
            Its index.

        Raises:
            ValueError: no such class; the message has the nearest.
        """
        if name in self.classes:
            return self.classes.index(name)
        lower = [label.lower() for label in self.classes]
        if name.lower() in lower:
            return lower.index(name.lower())
        if name.isdecimal() and int(name) < len(lower):
            return int(name)
        near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
        nearest = " or ".join(repr(self.classes[lower.index(n)]) for n in near)
        hint = f"did you mean {nearest}?" if near else "none is near"
        raise ValueError(f"{self.name} has no class {name!r} among {len(lower)}: {hint}")
