"""Parquet files as a data set, read by row groups; and the one place where pyarrow is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .dataset import LOOKED_AT, Dataset, chosen_columns, record_row
from .job import Row

__all__ = ["Parquet", "arrow"]


def arrow() -> tuple[ModuleType, ModuleType]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        ImportError: with the line that installs them.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError('data sets and their results need pyarrow: pip install "termwise[engine]"') from None
    return pyarrow, pyarrow.parquet


class Parquet(Dataset):
    """The rows of one or more parquet files, in the order of their names. One row group is in memory at a time."""

    def __init__(self, path: Path, files: Sequence[Path], column: str | None = None) -> None:
        pa, pq = arrow()
        self.path, self._files = path, list(files)
        self._starts, self._groups = [0], []  # of every row group: its first row, its file and its number there
        for number, name in enumerate(files):
            try:
                facts = pq.ParquetFile(name).metadata
            except (pa.ArrowInvalid, OSError) as problem:
                raise ValueError(f"{name} is no parquet file, or a damaged one: {problem}") from None
            for group in range(facts.num_row_groups):
                if n := facts.row_group(group).num_rows:
                    self._groups.append((number, group))
                    self._starts.append(self._starts[-1] + n)
        if not self._groups:
            raise ValueError(f"{path} has no rows")
        self._held: tuple[int, Any] = (-1, None)
        number, group = self._groups[0]
        with pq.ParquetFile(files[number]) as file:
            examples = next(file.iter_batches(LOOKED_AT, row_groups=[group])).to_pylist()
        self.column, self.kind, self._label = chosen_columns(path, examples, column)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": (-1, None)}

    def files(self) -> Sequence[Path]:
        """The parquet files."""
        return self._files

    def rows(self, start: int, stop: int) -> list[Row]:
        """Read them; the row group of the last one stays in memory for who asks on."""
        found = []
        for i in range(start, min(stop, len(self))):
            place = bisect_right(self._starts, i) - 1
            record = self._group(place).slice(i - self._starts[place], 1).to_pylist()[0]
            found.append(record_row(self, i, f"row {i}", record, self._label))
        return found

    def _group(self, place: int) -> Any:
        if self._held[0] != place:
            self._held = (-1, None)  # not two in memory
            _, pq = arrow()
            number, group = self._groups[place]
            wanted = [self.column, *([self._label] if self._label else [])]
            with pq.ParquetFile(self._files[number]) as file:
                self._held = (place, file.read_row_group(group, columns=wanted))
        return self._held[1]
