"""Byte-pair encoding (Gage, 1994; Sennrich et al., 2016, arXiv:1508.07909) from a table of merge ranks.

A text is cut into pieces by a regular expression; within each piece the adjacent pair of lowest rank is merged, over
and over, until no pair is in the table. The table may come in a pickle: `read_pickle` takes its data and runs nothing
in it.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import AssetCorrupt, need

__all__ = ["BytePairs", "read_pickle"]


class BytePairs:
    """A byte-level tokenizer.

    Args:
        pattern: regular expression of the pieces (`regex` syntax).
        ranks: bytes of each token -> its rank, which is its id; all 256 single bytes are among them.
        special: name -> id of tokens that no text contains.

    Example:
        >>> ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"abc": 257}
        >>> BytePairs(r".+", ranks, {}).encode("abcab")
        [257, 256]
    """

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        regex = need("regex", extra="text", wanted_by="a byte-pair tokenizer")
        self._pieces, self._ranks = regex.compile(pattern), dict(ranks)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self._bytes |= {i: name.encode() for name, i in special.items()}

    def __len__(self) -> int:
        return max(self._bytes) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Names of special tokens in it are text like any other."""
        return [i for piece in self._pieces.findall(text) for i in self._merge(piece.encode())]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes.get(i, b"") for i in ids).decode(errors="replace")

    def name(self, token: int) -> str:
        """One token as a string, its leading space kept."""
        return self.decode([token])

    def _merge(self, piece: bytes) -> list[int]:
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 1:
            pairs = [self._ranks.get(a + b, len(self._ranks)) for a, b in itertools.pairwise(parts)]
            best = min(pairs)
            if best == len(self._ranks):
                break
            i = pairs.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self._ranks[part] for part in parts]


class _Encoding:
    """Takes the place of tiktoken's class while its pickle is read: keeps the state, does nothing with it."""

    state: Mapping[str, Any]

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise AssetCorrupt(f"the pickle asks for {module}.{name}; a tokenizer's has nothing to do with it: refused")


def read_pickle(path: Path) -> BytePairs:
    """The tokenizer in a pickle of a tiktoken `Encoding`, as plain data: no other class or function can be named in it.

    Args:
        path: the file.

    Returns:
        The tokenizer.

    Raises:
        AssetCorrupt: no pickle, no such object in it, or anything else asked for.
    """
    try:
        loaded = _Unpickler(io.BytesIO(path.read_bytes())).load()  # in memory a claimed length is held against what is there
        state = loaded.state
        pattern, ranks, special = state["pat_str"], state["mergeable_ranks"], state["special_tokens"]
        sound = isinstance(pattern, str) and all(_pairs(ranks, bytes)) and all(_pairs(special, str))
    except AssetCorrupt:
        raise
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:
        raise AssetCorrupt(f"{str(path)!r} is no pickled tokenizer: {error}") from error
    if not sound:
        raise AssetCorrupt(f"{str(path)!r} is no pickled tokenizer: its tables have other types")
    return BytePairs(pattern, ranks, special)


def _pairs(table: Mapping[Any, Any], key: type) -> Iterator[bool]:
    return (isinstance(k, key) and isinstance(v, int) for k, v in table.items())
