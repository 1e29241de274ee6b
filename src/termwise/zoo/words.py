"""Words out of sub-words: which tokens make up which word.

Three spellings of "a new word begins here" are in use, and this file knows them all: byte-level byte pairs keep the
space in front of a word (as " ", or GPT-2's "Ġ"), SentencePiece writes "▁", WordPiece marks the *continuations* with
"##". Every token lands in exactly one word, in order, so relevance summed by words is relevance summed by tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

__all__ = ["Style", "merge"]

Style = Literal["bytes", "wordpiece"]

_SPACES = {"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t"}
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def merge(tokens: Sequence[str], style: Style | None = None) -> list[tuple[str, list[int]]]:
    """Merge sub-word tokens into words.

    Args:
        tokens: token strings as `Subject.names` or a tokenizer's `convert_ids_to_tokens` gives them.
        style: how a word begins; None guesses from the tokens ("wordpiece" when some token begins with "##" or is
            "[CLS]", else "bytes").

    Returns:
        One (word, indices of its tokens) per word; the indices partition `range(len(tokens))`. Punctuation and special
        tokens such as "<|endoftext|>" are words of their own, and so is every ideograph.

    Example:
        >>> merge(["un", "believ", "able", ",", " my", " friend", "'s", " cat"])
        [('unbelievable', [0, 1, 2]), (',', [3]), ('my', [4]), ("friend's", [5, 6]), ('cat', [7])]
        >>> merge(["[CLS]", "token", "##ization", "[SEP]"])
        [('[CLS]', [0]), ('tokenization', [1, 2]), ('[SEP]', [3])]
    """
    if style not in (None, "bytes", "wordpiece"):
        raise ValueError(f"style is 'bytes' or 'wordpiece', or None to guess; got {style!r}")
    if style is None:
        style = "wordpiece" if any(t == "[CLS]" or (t.startswith("##") and len(t) > 2) for t in tokens) else "bytes"
    words: list[tuple[str, list[int]]] = []
    for index, token in enumerate(tokens):
        text = _plain(token, style)
        if words and _continues(words[-1][0], token, text, style):
            word, indices = words.pop()
            words.append((word + text, [*indices, index]))
        else:
            words.append((text, [index]))
    return [(word.strip() or word, indices) for word, indices in words]


def _plain(token: str, style: Style) -> str:
    if style == "wordpiece":
        return token.removeprefix("##") if len(token) > 2 else token
    return "".join(_SPACES.get(character, character) for character in token)


def _continues(word: str, token: str, text: str, style: Style) -> bool:
    """Whether `text` goes on with `word`."""
    if style == "wordpiece":
        return token.startswith("##") and len(token) > 2
    if not text or not word or text[0].isspace() or _special(text) or _special(word):
        return False
    last, first = word[-1], text[0]
    if _BROKEN in (last, first):  # bytes of one character, split over tokens
        return last == first
    if first in "'’" and len(text) > 1 and text[1].isalpha():  # friend + 's
        return last.isalpha()
    joined = (last.isalnum() or last == "_") and (first.isalnum() or first == "_")
    return joined and not (_wide(last) or _wide(first))


def _special(text: str) -> bool:
    return text.startswith("<|") and text.endswith("|>")


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"
