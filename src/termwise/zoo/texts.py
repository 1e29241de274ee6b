"""From a sentence to what a text model takes, and back to readable tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from .words import Style, merge

__all__ = ["TextPreparation", "Tokenizer", "Vocabulary"]


class Tokenizer(Protocol):
    """What is asked of a tokenizer; no special token is added or dropped by it."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def name(self, token: int) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TextPreparation:
    """How a model wants its text.

    Args:
        tokenizer: text to ids and back.
        limit: how many tokens the model takes, the special ones included.
        prefix, suffix: ids put around every text ([CLS], [SEP], begin of sequence).
        baseline: id that stands in for a deleted token, or None where removing it is the better way.
        style: how the tokens mark words (see `words.merge`).
    """

    tokenizer: Tokenizer
    limit: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    baseline: int | None = None
    style: Style = "bytes"

    def __call__(self, text: str, *, truncate: bool = False, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """One text as a mapping of keyword inputs, batch 1, not padded.

        Args:
            text: one text; a list is not taken (texts differ in length).
            truncate: cut off what is too long instead of refusing it.
            device: where the ids go.

        Returns:
            `input_ids` and `attention_mask` (all ones), int64 of shape (1, tokens).

        Raises:
            TypeError: not a string.
            ValueError: empty, not valid Unicode, or too long; the message has the number of tokens and the limit.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be one str, got {type(text).__name__}: prepare texts one by one")
        if not text.strip():
            raise ValueError("the text is empty: there is nothing to explain; give at least one word")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
        body, room = self.tokenizer.encode(text), self.limit - len(self.prefix) - len(self.suffix)
        if len(body) > room and not truncate:
            raise ValueError(
                f"the text has {len(body) + self.limit - room} tokens and the model takes {self.limit}: shorten it, "
                f"or keep its beginning with prepare(text, truncate=True)"
            )
        ids = torch.tensor([[*self.prefix, *body[:room], *self.suffix]], device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def names(self, prepared: Mapping[str, Tensor] | Int[Tensor, "1 tokens"]) -> list[str]:
        """The tokens of a prepared text as strings, spaces and continuation marks kept."""
        return [self.tokenizer.name(i) for i in _ids(prepared)]

    def words(self, prepared: Mapping[str, Tensor] | Int[Tensor, "1 tokens"]) -> list[tuple[str, list[int]]]:
        """The words of a prepared text, each with the indices of its tokens (a partition of them)."""
        ids = _ids(prepared)
        words = merge([self.tokenizer.name(i) for i in ids], self.style)
        # a character split over several tokens is readable only when its bytes are put together again
        return [(self._whole(word, [ids[k] for k in indices]), indices) for word, indices in words]

    def special(self, prepared: Mapping[str, Tensor] | Int[Tensor, "1 tokens"]) -> list[int]:
        """Indices of the tokens that were put around the text: no deletion test should touch them."""
        around = {*self.prefix, *self.suffix}
        return [k for k, i in enumerate(_ids(prepared)) if i in around]

    def _whole(self, word: str, ids: list[int]) -> str:
        return self.tokenizer.decode(ids).strip() if "\N{REPLACEMENT CHARACTER}" in word else word


@dataclass(frozen=True)
class Vocabulary(Sequence[str]):
    """The class names of a language model, its tokens: read one at a time, never built as a list.

    Args:
        tokenizer: gives the string of each id.
        size: number of classes, which may exceed the tokenizer's (unused rows of the head).
    """

    tokenizer: Tokenizer
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str], as Sequence has it
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"token id {index} of a vocabulary of {self.size}")
        index %= self.size
        return self.tokenizer.name(index) if index < len(self.tokenizer) else f"<unused {index}>"


def _ids(prepared: Mapping[str, Tensor] | Tensor) -> list[int]:
    ids = prepared["input_ids"] if isinstance(prepared, Mapping) else prepared
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(f"names are those of one text: input_ids of shape (1, tokens), got {tuple(ids.shape)}")
    return ids[0].tolist()
