"""Lectures rated by students (InstEval, ETH Zürich; the R package lme4): a table of ids such as click models are trained on.

73,421 ratings of 1,128 lecturers by 2,972 students, six columns of ids each. It comes inside the source distribution of
pydataset, in an archive of tables, is read from there, and has its own licence (GPL). A click is a rating of 4 or 5; the division
into four fifths to learn from and one to test on is ours and fixed.
"""

from __future__ import annotations

import csv
import io
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .assets import read_member
from .errors import unknown

__all__ = ["FIELDS", "ratings", "split"]

MEMBER = "resources/rdata/csv/lme4/InstEval.csv"
SHA256 = "106d163eaaee454f155bda351a5a21b0da9dd1a55051a643e0ee76eb0531a136"
FIELDS = {"student": "s", "lecturer": "d", "semesters": "studage", "age": "lectage", "service": "service", "department": "dept"}
"""By name, the column of the file: who rated whom, their semesters, how long ago, for another department or not, which one."""


@cache
def ratings() -> tuple[Tensor, Tensor]:
    """Every rating, in the order of the file.

    Returns:
        Ids from 0, one column per field of `FIELDS`, shape (73421, 6); and the ratings 1 to 5, shape (73421,).

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    content = read_member("r-tables", MEMBER, SHA256)
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"))))
    columns = [np.unique([int(row[name]) for row in rows], return_inverse=True)[1] for name in FIELDS.values()]
    return torch.from_numpy(np.stack(columns, 1)).long(), torch.tensor([int(row["y"]) for row in rows])


def split(part: str) -> tuple[Tensor, Tensor]:
    """Ids (n, 6) and clicks (n,), 1 for a rating of 4 or 5, of one part, in a fixed random order.

    Args:
        part: "train", four fifths, or "test".

    Raises:
        ValueError: unknown part.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    if part not in ("train", "test"):
        raise unknown("part", part, ("train", "test"))
    ids, rating = ratings()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(ids)))
    learned = len(ids) * 4 // 5
    chosen = order[:learned] if part == "train" else order[learned:]
    return ids[chosen], (rating[chosen] >= 4).float()
