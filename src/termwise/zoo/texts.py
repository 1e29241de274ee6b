"""From a sentence to what a text model takes, and back to readable tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import need, no_file
from .words import Style, merge

__all__ = ["FastTokenizer", "TextPreparation", "Tokenizer", "Vocabulary"]


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; no special token is added or dropped by it."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def name(self, token: int) -> str: ...
    def __len__(self) -> int: ...


class FastTokenizer:
    """A `tokenizer.json` read with the tokenizers library: no padding, no truncation, no special tokens added.

    Names of special tokens *are* recognised in a text ("[SEP]", "<|im_start|>"), as chat templates need.

    Args:
        path: the file.
        raw: name tokens as they stand in the vocabulary ("##ing") instead of as decoded text (" the").
    """

    def __init__(self, path: str | os.PathLike[str], *, raw: bool) -> None:
        library = need("tokenizers", extra="text", wanted_by="this model's tokenizer")
        if not os.path.isfile(path):
            raise no_file("tokenizer", Path(path))
        try:
            self._tokenizer, self._raw = library.Tokenizer.from_file(os.fspath(path)), raw
        except Exception as problem:  # of the class itself
            raise ValueError(f"{path} is no tokenizer.json: {problem}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) if self._raw else self.decode([token])


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

    def __call__(self, text: object, *, truncate: bool = False, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """One text as a mapping of keyword inputs, batch 1, not padded.

        Args:
            text: one str; a list is not taken (texts differ in length).
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

    def names(self, prepared: Mapping[str, Tensor] | Int[Tensor, "b tokens"]) -> list[str]:
        """The tokens of a prepared text as strings, spaces and continuation marks kept."""
        return [self.tokenizer.name(i) for i in _ids(prepared)]

    def words(self, prepared: Mapping[str, Tensor] | Int[Tensor, "b tokens"]) -> list[tuple[str, list[int]]]:
        """The words of a prepared text, each with the indices of its tokens (a partition of them)."""
        ids = _ids(prepared)
        by_token = [(self.tokenizer.name(i), [k]) for k, i in enumerate(ids)]
        pieces = self._characters(ids) if self.style == "bytes" else by_token
        words = merge([text for text, _ in pieces], self.style)
        return [(word, [k for piece in members for k in pieces[piece][1]]) for word, members in words]

    def special(self, prepared: Mapping[str, Tensor] | Int[Tensor, "b tokens"]) -> list[int]:
        """Indices of the tokens that were put around the text: no deletion test should touch them."""
        around = {*self.prefix, *self.suffix}
        return [k for k, i in enumerate(_ids(prepared)) if i in around]

    def _characters(self, ids: list[int]) -> list[tuple[str, list[int]]]:
        """Tokens whose bytes make up one character put together, so that every piece but broken ones is readable."""
        pieces: list[tuple[str, list[int]]] = []
        open_: list[int] = []
        for k in range(len(ids)):
            open_.append(k)
            text = self.tokenizer.decode([ids[j] for j in open_])
            if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(open_) == 4:  # UTF-8 has no longer ones
                pieces.append((text, open_))
                open_ = []
        return [*pieces, (self.tokenizer.decode([ids[j] for j in open_]), open_)] if open_ else pieces


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
