"""What a job must give so that the engine can do it for every row of a data set.

A job is made in the process of the caller, sent to the workers (so it pickles, and holds no model yet), started there
once, and then asked for one batch of rows after another. It must answer the same rows with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from termwise.core.decomposition import Decomposition

__all__ = ["Answers", "Job", "Row", "RowResult", "total"]


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes:
        index: its place in the data set, from 0.
        key: what people call it: a file's name, a line's number.
        value: a text, the bytes of a picture, or the path of one.
        label: what the data set says it is; None where it says nothing.
        problem: why it cannot be read; None where it can.
    """

    index: int
    key: str
    value: str | bytes | Path = ""
    label: str | None = None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class RowResult:
    """What a job found for one row.

    Attributes:
        scalars: numbers and short texts, one for each of the job's `scalars`; missing ones are empty in the table.
        terms: the decomposition of this one sample, first axis kept; None where the job makes none.
    """

    scalars: Mapping[str, Any] = field(default_factory=dict)
    terms: Decomposition | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """What a job found for a batch.

    Attributes:
        rows: for each row its result, or the exception that says why there is none.
        sums: named sums over these rows, which the engine adds up over the data set.
    """

    rows: Sequence[RowResult | Exception]
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Job(Protocol):
    """The same question to every row.

    Attributes:
        verb: what is done, as the command is called.
        scalars: columns of the table, name -> int, float, str or bool.
        decomposes: whether every row gets a decomposition.
    """

    verb: str
    scalars: Mapping[str, type]
    decomposes: bool

    def settings(self) -> dict[str, Any]:
        """What was asked, as JSON: everything that decides the numbers, and nothing else."""

    def start(self) -> dict[str, Any]:
        """Load what is needed, once per process. Returns what was loaded, as JSON: hashes of a model's weights."""

    def run(self, rows: Sequence[Row]) -> Answers:
        """Answer a batch. When this raises, the engine asks row by row, so that only the bad ones are lost."""


def total(sums: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums of several batches as one, added in this order; a name that some do not have counts as 0 there.

    Example:
        >>> total([{"n": torch.tensor(2)}, {"n": torch.tensor(3), "squares": torch.tensor(1.0)}])
        {'n': tensor(5), 'squares': tensor(1.)}
    """
    found: dict[str, Tensor] = {}
    for one in sums:
        found |= {name: found[name] + value if name in found else value for name, value in one.items()}
    return found
