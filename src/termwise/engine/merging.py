"""Batches into one: rows asked one by one into their batch, batches into the table, sums into statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .folder import Folder
from .job import total
from .parquet import arrow
from .table import WRITING, as_bytes, error_table, errors_of
from .worker import Done, Task

__all__ = ["errors_in", "finish", "join"]

GROUP_ROWS, GROUP_BYTES = 4096, 8 << 20
"""A row group of the table ends with the batch that reaches one of these: small enough to open one row quickly."""


def errors_in(file: bytes | Path) -> list[dict[str, Any]]:
    """The errors that a batch's file tells of; no more than its foot is read."""
    pa, pq = arrow()
    return errors_of(pq.read_schema(pa.BufferReader(file) if isinstance(file, bytes) else file))


def join(rows: Sequence[Done]) -> Done:
    """One batch of its rows, which came in any order."""
    from safetensors.torch import load, save

    pa, pq = arrow()
    rows = sorted(rows, key=lambda done: done.task.start)
    tables = [pq.read_table(pa.BufferReader(done.table)) for done in rows]
    errors = [e for done in rows for e in errors_in(done.table)]
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).combine_chunks()
    sums = total(load(done.sums) for done in rows if done.sums)
    task = Task(rows[0].task.number, rows[0].task.start, rows[-1].task.stop)
    return Done(task, as_bytes(table.replace_schema_metadata({"errors": json.dumps(errors)})), save(sums) if sums else b"")


def finish(folder: Folder, count: int, columns: Any) -> None:
    """Write the table, and before it what belongs to it; a run is finished when the table is there.

    Args:
        folder: with every batch.
        count: of batches.
        columns: the table's schema.
    """
    from safetensors.torch import load_file, save

    _, pq = arrow()
    errors = [e for i in range(count) for e in errors_in(folder.batch(i))]
    folder.write(folder.path / "errors.parquet", as_bytes(error_table(errors)))
    files = [path for i in range(count) if (path := folder.batch(i, ".safetensors")).exists()]
    if files:
        folder.write(folder.path / "statistics.safetensors", save(total(map(load_file, files))))
    with folder.replacing(folder.path / "table.parquet") as partial, pq.ParquetWriter(partial, columns, **WRITING) as writer:
        for group in _groups(folder, count):
            writer.write_table(group, row_group_size=max(1, group.num_rows))


def _groups(folder: Folder, count: int) -> Iterator[Any]:
    """The batches in order, several together."""
    pa, pq = arrow()
    held: list[Any] = []
    for i in range(count):
        held.append(pq.read_table(folder.batch(i)).replace_schema_metadata(None))
        full = sum(t.num_rows for t in held) >= GROUP_ROWS or sum(t.nbytes for t in held) >= GROUP_BYTES
        if full or i == count - 1:
            yield pa.concat_tables(held).combine_chunks()
            held = []
