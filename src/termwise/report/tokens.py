"""A sentence with coloured words: relevance of tokens, sub-words merged into the words people read.

A word's relevance is the sum of its tokens': nothing is averaged away, and the words add up to what the tokens did.
Four conventions are understood: "##ing" continues (WordPiece); "▁word" (SentencePiece), "Ġword" (byte-level BPE, whose
bytes are read back) and " word" begin a word. Punctuation stands alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from termwise.core.pictures import Words

from .colour import blended, robust_scale

if TYPE_CHECKING:
    from termwise.core.decomposition import Decomposition

__all__ = ["Word", "merge", "printable", "rich_text", "words"]

SPECIAL = re.compile(r"<[^<>\s]{1,30}>|\[[A-Za-z0-9_ ]{1,20}\]")
"""Tokens that are marks of a model and no text: "[CLS]", "</s>", "<|endoftext|>"."""

CLOSING = (".", ",", ";", ":", "!", "?", ")", "]", "}", "'", "’", "%")
"""Marks that follow a word without a space, where the convention does not say."""


@dataclass(frozen=True)
class Word:
    """One word: its text, its relevance, the tokens it was merged from, whether a space stands before it."""

    text: str
    value: float
    pieces: tuple[str, ...]
    space: bool = True
    special: bool = False


def merge(tokens: Sequence[str], values: Sequence[float]) -> list[Word]:
    """Words of a sentence with the summed relevance of their tokens.

    Args:
        tokens: as the tokenizer names them, or as it decodes them one by one.
        values: one relevance per token.

    Raises:
        ValueError: when there are not as many values as tokens.

    Example:
        >>> [(w.text, w.value) for w in merge(["[CLS]", "un", "##believ", "##able", "!"], [0, 1, 2, 3, -1])]
        [('[CLS]', 0), ('unbelievable', 6), ('!', -1)]
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens and {len(values)} relevances: give one relevance per token")
    style = _style(tokens)
    found: list[Word] = []
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        special = SPECIAL.fullmatch(token.strip()) is not None
        text, begins, space = _read(token, style)
        begins |= special or not found or found[-1].special or _mark(text, style) or _mark(found[-1].text, style)
        if begins:
            glued = style in ("", "##") and text in CLOSING
            apart = (space or special or (bool(found) and found[-1].special)) and place > 0 and not glued
            found.append(Word(text, value, (token,), apart, special))
        else:
            last = found[-1]
            found[-1] = Word(last.text + text, last.value + value, (*last.pieces, token), last.space, False)
    return [Word(_text(w, style), w.value, w.pieces, w.space, w.special) for w in found]


def words(decomposition: Decomposition, sample: int = 0) -> list[Word]:
    """The words of one sample, merged from the tokens it shows; none where it shows none."""
    shown = (merge(p.tokens, p.values) for p in decomposition.pictures(sample) if isinstance(p, Words))
    return next(shown, [])


def rich_text(sentence: Sequence[Word], scale: float | None = None) -> Text:
    """The sentence for a terminal: dark letters on a background whose colour is the relevance."""
    scale = robust_scale([w.value for w in sentence], 100) if scale is None else scale
    line = Text()
    for word in sentence:
        if word.space and line:
            line.append(" ")
        r, g, b = blended(word.value, scale)
        line.append(printable(word.text), style=f"#1b1f24 on #{r:02x}{g:02x}{b:02x}")
    return line


def printable(text: str) -> str:
    """Text without characters that move a cursor or hide (control and format characters): each becomes "·"."""
    return "".join("·" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text)


def _style(tokens: Sequence[str]) -> str:
    """Which convention these tokens follow."""
    if any(t.startswith("##") and len(t) > 2 for t in tokens):
        return "##"
    for mark in ("Ġ", "▁", " "):
        if any(t.startswith(mark) for t in tokens):
            return mark
    return ""


def _read(token: str, style: str) -> tuple[str, bool, bool]:
    """Text of a token, whether it begins a word, whether a space stands before it."""
    if style == "##":
        continues = token.startswith("##") and len(token) > 2
        return (token[2:], False, False) if continues else (token, True, True)
    if style and token.startswith(style):
        return token[len(style) :] or " ", True, True
    return token, not style, not style  # no convention: every token is a word


def _mark(text: str, style: str) -> bool:
    """Whether this is punctuation or white space alone."""
    if style == "Ġ" and not text.isascii():  # characters that stand for bytes
        return False
    return bool(text) and not any(
        c.isalnum() or c in "'’_\N{REPLACEMENT CHARACTER}" or unicodedata.category(c)[0] == "M" for c in text
    )


def _text(word: Word, style: str) -> str:
    """What people read; in byte-level BPE the characters stand for bytes."""
    if style != "Ġ" or word.special:
        return word.text.strip() or "␣"
    data = bytes(_BYTES[c] for c in word.text if c in _BYTES)
    return (data.decode("utf-8", errors="replace") if data else word.text).strip() or "␣"


def _byte_alphabet() -> dict[str, int]:
    """The characters of byte-level BPE: visible Latin-1 stands for itself, the other bytes for 256, 257, ..."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_alphabet()
