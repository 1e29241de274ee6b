"""What a run left, to read: the scalars of all rows, the decomposition of one, the reasons of those that failed."""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from termwise.core.decomposition import Decomposition
from termwise.core.one_file import refuse_newer

from .folder import FORMAT
from .parquet import arrow
from .table import error_table, errors_of, restored

__all__ = ["Results"]

TERMS = ("tensors", "common", "own")
"""Columns that hold a decomposition."""

DAMAGED = (LookupError, TypeError, AttributeError, RuntimeError, OSError, UnicodeError, json.JSONDecodeError)
"""What reading raises where bytes are not what they were."""

SAID = {"format": int, "verb": str, "settings": dict, "dataset": dict, "decomposes": bool, "columns": dict, "versions": dict}
"""What a manifest must say."""


class Results:
    """The results in a folder, finished or not: of a run that goes on, those of the batches that were done when it was opened.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: when it holds no results.
        ValueError: when a newer version wrote them, or a file is damaged or not what the manifest says (named). Files may come
            from anywhere: they are data, and nothing in them is run.

    Attributes:
        path: the folder.
        manifest: what the run was asked, and of what: settings, model, data set, versions.
        finished: whether all rows are there.

    Example:
        >>> results = tw.engine.Results("results")                               # doctest: +SKIP
        >>> results.scalars("key", "error").sort_by([("error", "descending")])   # doctest: +SKIP
        >>> results[0].check().show()                                            # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "manifest.json"
        if not file.exists():
            raise FileNotFoundError(f"{path} holds no results: there is no manifest.json in it")
        self.manifest = _told(file)
        whole = self.path / "table.parquet"
        self.finished = whole.exists()
        files = [whole] if self.finished else sorted((self.path / "batches").glob("*.parquet"))
        self._files: list[Any] = [self._opened(f) for f in files] if self.finished else files  # not thousands open at a time
        self._starts, self._groups = [0], []  # of every row group: its first row; its file and its number there
        for f in self._files:
            opened = self._opened(f)
            with self._readable():
                columns, facts = opened.schema_arrow, opened.metadata
            self._fits(columns, f if isinstance(f, Path) else whole)
            for group in range(facts.num_row_groups):
                self._groups.append((f, group))
                self._starts.append(self._starts[-1] + facts.row_group(group).num_rows)
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        """Number of rows that have a result."""
        return self._starts[-1]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of scalars."""
        fixed = ["row", "key", "label"] + (["whole", "error", "cancellation"] if self.manifest["decomposes"] else [])
        return fixed + list(self.manifest["columns"])

    def scalars(self, *names: str) -> Any:
        """Columns of scalars of every row; the tensors are not read.

        Args:
            names: of `columns`; all when none is given.

        Returns:
            A pyarrow Table: `.to_pandas()`, `.to_pydict()`, `.sort_by()`, `.filter()`.

        Raises:
            ValueError: no such column.
        """
        pa, _ = arrow()
        wanted = list(names or self.columns)
        if unknown := [n for n in wanted if n not in self.columns]:
            raise ValueError(f"{self.path} has no column {', '.join(unknown)}; it has {', '.join(self.columns)}")
        with self._readable():
            tables = [self._opened(f).read(columns=wanted).replace_schema_metadata(None) for f in self._files]
        return pa.concat_tables(tables) if tables else pa.table({n: [] for n in wanted})

    def __getitem__(self, place: int) -> Decomposition:
        """The decomposition of one row, by its place among those that have a result (not its number in the data set).

        Raises:
            IndexError: beyond them.
            TypeError: when the job made no decompositions.
            ValueError: for a row that is damaged, or of a class that is not defined here.
        """
        if not self.manifest["decomposes"]:
            raise TypeError(f"{self.path} holds scalars only ({self.manifest['verb']} decomposes nothing): see scalars()")
        place = range(len(self))[place]  # raises IndexError, and counts from the end
        group = bisect_right(self._starts, place) - 1
        with self._readable(f", the row in place {place},"):
            return restored(self._group(group), place - self._starts[group], str(self.path))

    def __iter__(self) -> Iterator[Decomposition]:
        """One decomposition after the other; one row group is in memory at a time."""
        return (self[i] for i in range(len(self)))

    @staticmethod
    def _opened(file: Any) -> Any:
        pa, pq = arrow()
        try:
            return pq.ParquetFile(file) if isinstance(file, Path) else file
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as problem:
            raise ValueError(f"{file} is no parquet file, or a damaged one: {problem}") from None

    def _fits(self, columns: Any, file: Path) -> None:
        """Compare the columns of a file with those of the manifest."""
        is_ = arrow()[0].types
        checks = {"int": is_.is_integer, "float": is_.is_floating, "bool": is_.is_boolean}
        kinds = {"row": "int", "whole": "float", "error": "float", "cancellation": "float", **self.manifest["columns"]}
        wanted = [*self.columns, *(TERMS if self.manifest["decomposes"] else ())]
        if missing := [name for name in wanted if name not in columns.names]:
            raise ValueError(f"{file} has no column {', '.join(missing)}, which the manifest beside it promises")
        for name in self.columns:
            kind, found = kinds.get(name, "str"), columns.field(name).type
            if not checks.get(kind, lambda t: is_.is_string(t) or is_.is_large_string(t))(found):
                raise ValueError(f"column {name!r} of {file} holds {found}, the manifest beside it says {kind}")

    @contextlib.contextmanager
    def _readable(self, where: str = "") -> Iterator[None]:
        """Say whose fault it is when what was opened cannot be read."""
        try:
            yield
        except FileNotFoundError:  # a run that has ended since moved it
            raise
        except (arrow()[0].ArrowException, *DAMAGED) as problem:
            raise ValueError(f"{self.path}{where} is damaged ({type(problem).__name__}: {problem})") from problem

    def _group(self, number: int) -> Any:
        if self._held[0] != number:
            self._held = (-1, None)  # not two in memory
            file, group = self._groups[number]
            self._held = (number, self._opened(file).read_row_group(group, columns=list(TERMS)))
        return self._held[1]

    @cached_property
    def errors(self) -> Any:
        """Rows that have no result, as a pyarrow Table: row, key, reason."""
        if self.finished:
            with self._readable():
                return (
                    self._opened(self.path / "errors.parquet")
                    .read(columns=["row", "key", "reason"])
                    .select(["row", "key", "reason"])
                )
        return error_table([e for f in self._files for e in errors_of(self._opened(f).schema_arrow)])

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Sums over the data set, where the job has any and the run is finished."""
        from safetensors.torch import load_file

        file = self.path / "statistics.safetensors"
        return load_file(file) if file.exists() else {}

    def __repr__(self) -> str:
        """What was done, how many rows, and whether it is all."""
        rows = self.manifest["dataset"]["rows"]
        state = "finished" if self.finished else "unfinished"
        return f"Results({self.manifest['verb']}, {len(self)} of {rows} rows, {len(self.errors)} failed, {state}: {self.path})"


def _told(file: Path) -> dict[str, Any]:
    """What a manifest says."""
    try:
        said = json.loads(file.read_text("utf-8"))
    except ValueError as problem:  # no UTF-8, no JSON
        raise ValueError(f"{file} cannot be read: {problem}") from None
    said = said if isinstance(said, dict) else {}
    if isinstance(said.get("format"), int):
        refuse_newer(file.parent, said["format"], FORMAT)
    wrong = [name for name, kind in SAID.items() if not isinstance(said.get(name), kind)]
    data = {} if wrong else said["dataset"]
    wrong = wrong or [
        f"dataset.{name}" for name, kind in {"path": str, "rows": int}.items() if not isinstance(data.get(name), kind)
    ]
    if wrong:
        raise ValueError(f"{file} is no manifest of results, or a damaged one: it does not say {', '.join(wrong)}")
    return said
