"""Data sets of lines: texts, JSON lines, CSV. The offset of every record is found once; records are read where they lie."""

from __future__ import annotations

import csv
import io
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .dataset import LOOKED_AT, Dataset, chosen_columns, record_row
from .job import Row

__all__ = ["FORMATS", "Csv", "JsonLines", "Lines"]


class Lines(Dataset):
    """One text a line, in UTF-8. Empty lines do not count."""

    def __init__(self, path: Path, column: str | None = None) -> None:
        self.path = path
        self._offsets, self._numbers = array("q"), array("q")
        with path.open("rb") as file:
            for offset, number in self._found(file):
                self._offsets.append(offset)
                self._numbers.append(number)
        if not self._offsets:
            raise ValueError(f"{path} has no rows")
        self._offsets.append(path.stat().st_size)
        examples = [record for record in map(self._tried, range(min(LOOKED_AT, len(self)))) if not isinstance(record, Exception)]
        if not examples:
            raise ValueError(f"line {self._numbers[0]} of {path} cannot be read, nor can those after it: {self._tried(0)}")
        self._label: str | None = None
        if records := [record for record in examples if isinstance(record, dict)]:
            self.column, self.kind, self._label = chosen_columns(path, records, column)
        elif column is not None:
            raise ValueError(f"{path} has no columns, every line is a text: leave --column out")
        else:
            self.column, self.kind = None, "text"

    def _found(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        """Offset and line number of every record."""
        offset = 0
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield offset, number
            offset += len(line)

    def _record(self, text: str) -> Any:
        """What stands between two offsets."""
        return text.rstrip("\r\n")

    def _tried(self, index: int) -> Any:
        """A record, or why it cannot be read: no UTF-8, no JSON, another number of fields."""
        try:
            return self._record(self._read(index))
        except (ValueError, csv.Error) as problem:
            return problem

    def _read(self, index: int) -> str:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return file.read(self._offsets[index + 1] - self._offsets[index]).decode("utf-8-sig")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def files(self) -> Sequence[Path]:
        """The one file."""
        return [self.path]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Read them."""
        return [self._row(i) for i in range(start, min(stop, len(self)))]

    def _row(self, index: int) -> Row:
        key = f"line {self._numbers[index]}"
        record = self._tried(index)
        if isinstance(record, Exception):
            return Row(index, key, problem=f"cannot be read: {record}")
        return record_row(self, index, key, record, self._label)


class JsonLines(Lines):
    """One JSON object a line, or one JSON text."""

    def _record(self, text: str) -> Any:
        return json.loads(text)


class Csv(Lines):
    """Values with a header, separated by commas, or by semicolons or tabs where these alone divide the header.

    A quoted field may hold line breaks.
    """

    def _found(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        offset = number = 0

        def lines() -> Iterator[str]:
            nonlocal offset, number
            for line in file:
                offset, number = offset + len(line), number + 1
                yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace")

        header = file.readline().decode("utf-8-sig", errors="replace")
        file.seek(0)
        self._delimiter = next((d for d in ",;\t" if len(next(csv.reader([header], delimiter=d), [])) > 1), ",")
        records = csv.reader(lines(), delimiter=self._delimiter)
        try:
            self._header = next(records, [])
            begin = offset, number + 1
            for record in records:
                if record:
                    yield begin
                begin = offset, number + 1
        except csv.Error as problem:
            raise ValueError(f"{self.path}, line {number}: {problem}") from None

    def _record(self, text: str) -> Any:
        values = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter))
        if len(values) != len(self._header):
            raise ValueError(f"{len(values)} fields where the header has {len(self._header)}")
        return dict(zip(self._header, values, strict=True))


FORMATS: dict[str, type[Lines]] = {".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": Csv, ".txt": Lines}
