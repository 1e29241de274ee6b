"""A result set as the pages need it: its scalars and the orders that were asked for in memory, read again when it has grown."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Bars
from termwise.engine import Results

from .distribution import distribution
from .query import Order, Query, kept, ranked

__all__ = ["Browsed", "Unreadable"]

T = TypeVar("T")

KEPT = 16
"""Orders that are kept, of 4 bytes a row."""

SHARE = 10
"""A run that goes on is looked at again after so many times as long as the last look took."""


class Unreadable(ValueError):
    """A row of the table that is damaged, or of a class that is not defined here."""


class Browsed:
    """The results in a folder, one question at a time.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError, ValueError: as `Results`.

    Attributes:
        kinds: of the columns that say something, by name; texts before numbers: they say what a row is.

    Memory: the scalars of all rows, and at most `KEPT` orders of 4 bytes a row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # pages are made in threads; files of parquet are read by one at a time
        self._looked_again()

    def look(self) -> None:
        """Read the scalars again."""
        begun = time.monotonic()
        self.results = Results(self.path)
        self.table = self.results.scalars().combine_chunks()  # rows are taken from all over it
        self.errors = self.results.errors
        self.kinds = self._kinds()
        self.looked = time.time()
        self._again = time.monotonic() + SHARE * (time.monotonic() - begun)
        self._orders: OrderedDict[str, Order] = OrderedDict()
        self._pictures: OrderedDict[str, list[Bars]] = OrderedDict()

    def answer(self, question: Callable[[Browsed], T]) -> T:
        """Ask one question, of the results as they are now."""
        with self._lock:
            if not self.results.finished and time.monotonic() >= self._again:
                self._looked_again()
            try:
                return question(self)
            except FileNotFoundError:  # a run that ended since has moved its rows from batches to the table
                self._looked_again()
                return question(self)

    def _looked_again(self) -> None:
        try:
            self.look()
        except FileNotFoundError:  # it ended while they were read
            self.look()

    def _kinds(self) -> dict[str, str]:
        kinds = {"row": "int", "key": "str", "label": "str", **self.results.manifest["columns"]}
        row, key, *names = self.results.columns
        if len(self.table):
            names = [n for n in names if self.table[n].null_count < len(self.table)]
        return {n: kinds.get(n, "float") for n in [row, key, *sorted(names, key=lambda n: kinds.get(n) != "str")]}

    @property
    def averages(self) -> bool:
        """Whether there are rows whose whole is one number, of which a mean can be taken."""
        return "whole" in self.table.column_names and self.table["whole"].null_count < len(self.table)

    def order(self, query: Query) -> Order:
        """The places that a query asks for, of all pages; filters and orders are worked out once."""
        places = _once(self._orders, query.unsorted().encoded(), lambda: kept(self.table, query))
        return _once(self._orders, replace(query, page=1).encoded(), lambda: ranked(self.table, query, places))

    def distributions(self, query: Query) -> list[Bars]:
        """How the numbers that matter lie, over all rows that a query lets through."""

        def drawn() -> list[Bars]:
            names = [n for n in ("error", "whole") if n in self.table.column_names]
            names = names or [n for n, kind in self.results.manifest["columns"].items() if kind == "float"][:3]
            places = self.order(query.unsorted())
            found = []
            for name in names:
                column = self.table[name] if len(places) == len(self.table) else self.table[name].take(places)
                found.append(distribution(name, column.to_numpy().astype(np.float64), by_tens=name == "error"))
            return [picture for picture in found if picture.names]

        return _once(self._pictures, query.unsorted().encoded(), drawn)

    def place(self, row: int) -> int | None:
        """Where the row of this number in the data set stands in the table; None where there is nothing to open."""
        if not self.results.manifest["decomposes"]:
            return None
        numbers = self.table["row"].to_numpy() if len(self.table) else np.empty(0, np.int64)
        place = int(np.searchsorted(numbers, min(row, 2**62)))
        return place if place < len(numbers) and numbers[place] == row else None

    def opened(self, place: int) -> Decomposition:
        """The decomposition of a row.

        Raises:
            Unreadable: when the table does not hold one that can be made here.
        """
        try:
            return self.results[place]
        except FileNotFoundError:  # the run has ended: see `answer`
            raise
        except Exception as problem:  # a table that came from elsewhere may be damaged in any way
            row = self.table["row"][place].as_py()
            raise Unreadable(f"Row {row} cannot be read ({type(problem).__name__}: {problem})") from problem

    def rows(self, places: Sequence[int] | Order) -> list[dict[str, Any]]:
        """What the table says of some rows."""
        rows: list[dict[str, Any]] = self.table.select(list(self.kinds)).take(places).to_pylist()
        return rows


def _once(kept: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
    """What was made before for this key, or made now; what was not asked for longest is forgotten."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
