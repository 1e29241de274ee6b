"""Sentences from film reviews with how positive people found them (Hutto & Gilbert, ICWSM 2014; 20 raters each).

10,605 of them, mean score -4 to 4. They come inside the source distribution of vaderSentiment (MIT), in an archive.
The division into parts is ours and fixed: `split("train")` 8,000, `split("look")` 1,284, `split("test")` the last 1,284 of
the 10,568 that have a sign.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .assets import read_member
from .errors import unknown

__all__ = ["film_sentences", "split"]

MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
PARTS = {"train": slice(0, 8000), "look": slice(8000, 9284), "test": slice(9284, None)}


@cache
def film_sentences() -> tuple[tuple[str, float], ...]:
    """Every (sentence, mean score), in the order of the file.

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    content = read_member("film-sentences", MEMBER, SHA256)
    rows = [line.split("\t") for line in content.decode("utf-8").splitlines()]
    return tuple((text.strip(), float(score)) for _, score, text in rows)


def split(part: str) -> list[tuple[str, int]]:
    """(sentence, 1 where it is positive, 0 where negative) of one part, in a fixed random order.

    Args:
        part: "train", "look" (to choose and look at), or "test".

    Raises:
        ValueError: unknown part.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    signed = [(text, int(score > 0)) for text, score in film_sentences() if score]
    order = np.random.default_rng(0).permutation(len(signed))
    return [signed[i] for i in order[PARTS[part]]]
