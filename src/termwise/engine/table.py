"""Rows of results as an arrow table: scalars in columns of their own, decompositions as tensors and JSON.

| column                       | what it holds                                                                            |
|------------------------------|------------------------------------------------------------------------------------------|
| `row`, `key`, `label`        | of the data set's row                                                                    |
| `whole`, `error`, `cancellation` | of the decomposition: its whole where that is one number, and its honest line        |
| the job's scalars            | as it declares them                                                                      |
| `tensors`                    | list of {name, dtype, shape, data}: the whole, every part, other fields that are tensors |
| `common`, `own`              | the JSON of `Decomposition.packed`: what all rows of a batch share, and the rest         |

Data is float64 whatever the dtype: bytes of equal significance are stored together (BYTE_STREAM_SPLIT) and compressed, so
that the zeros at the end of a float32 cost next to nothing. Errors and sums of a batch travel in the table's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from termwise.core.decomposition import Decomposition

from .job import Row, RowResult
from .parquet import arrow

__all__ = ["WRITING", "as_bytes", "batch_table", "error_table", "errors_of", "restored", "schema"]

WRITING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["label", "common", "own", "tensors.list.element.name", "tensors.list.element.dtype"],
    "use_byte_stream_split": ["tensors.list.element.data.list.element"],
    "write_statistics": ["row", "whole", "error", "cancellation"],
}
"""How parquet files of results are written."""

EXACT = 2**53
"""Whole numbers up to here are exact in float64."""


def schema(scalars: Mapping[str, type], decomposes: bool) -> Any:
    """The columns of a job's table."""
    pa, _ = arrow()
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    columns = [("row", pa.int64()), ("key", pa.string()), ("label", pa.string())]
    if decomposes:
        columns += [(name, pa.float64()) for name in ("whole", "error", "cancellation")]
    if taken := [name for name in scalars if name in {*dict(columns), "tensors", "common", "own"}]:
        raise ValueError(f"the table has columns of its own called {', '.join(taken)}: give the job's scalars other names")
    columns += [(name, kinds[kind]) for name, kind in scalars.items()]
    if decomposes:
        columns += [("tensors", pa.list_(_tensor_type(pa))), ("common", pa.string()), ("own", pa.string())]
    return pa.schema(columns)


def batch_table(columns: Any, answered: Sequence[tuple[Row, RowResult | Exception]]) -> Any:
    """The table of a batch, its errors in the metadata.

    Args:
        columns: its `schema`.
        answered: every row with its result, or with the exception that says why there is none. A result that cannot be
            written becomes an error.
    """
    pa, _ = arrow()
    records, errors = [], []
    kinds = {field.name: field.type for field in columns}
    for row, result in answered:
        try:
            if isinstance(result, Exception):
                raise result
            if unknown := [name for name in result.scalars if name not in columns.names]:
                raise TypeError(f"the job gave {', '.join(unknown)}, which are none of its scalars")
            for name, value in result.scalars.items():
                try:
                    pa.scalar(value, kinds[name])
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    raise TypeError(f"column {name!r} takes {kinds[name]}, the job gave {value!r:.80}") from None
            records.append(_record(row, result))
        except Exception as problem:
            errors.append({"row": row.index, "key": row.key, "reason": _reason(problem)})
    arrays: dict[str, Any] = {}
    if "tensors" in columns.names:
        heads = [_flat(record.pop("header")) for record in records]
        shared = {k: v for k, v in heads[0].items() if all(k in h and h[k] == v for h in heads)} if heads else {}
        arrays["common"] = pa.array([json.dumps(shared)] * len(heads), pa.string())
        arrays["own"] = pa.array([json.dumps({k: v for k, v in h.items() if k not in shared}) for h in heads], pa.string())
        arrays["tensors"] = _tensor_lists([record.pop("tensors") for record in records])
    for field in columns:
        if field.name not in arrays:
            arrays[field.name] = pa.array([record.get(field.name) for record in records], field.type)
    table = pa.table([arrays[name] for name in columns.names], schema=columns)
    return table.replace_schema_metadata({"errors": json.dumps(errors)})


def errors_of(columns: Any) -> list[dict[str, Any]]:
    """The errors in the metadata of a batch's schema: row, key, reason."""
    found: list[dict[str, Any]] = json.loads((columns.metadata or {}).get(b"errors", b"[]"))
    return found


def as_bytes(table: Any) -> bytes:
    """A parquet file of a table."""
    pa, pq = arrow()
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, **WRITING)
    return bytes(buffer.getvalue())


def error_table(errors: Sequence[Mapping[str, Any]]) -> Any:
    """The table of rows that failed."""
    pa, _ = arrow()
    columns = pa.schema([("row", pa.int64()), ("key", pa.string()), ("reason", pa.string())])
    return pa.Table.from_pylist([dict(e) for e in errors], schema=columns)


def restored(table: Any, place: int, source: str) -> Decomposition:
    """The decomposition of one row of a table.

    Args:
        table: with the columns `tensors`, `common` and `own`.
        place: which row.
        source: where the table comes from, for messages.
    """
    line = table.slice(place, 1).combine_chunks()
    flat = json.loads(line["common"][0].as_py()) | json.loads(line["own"][0].as_py())
    header = {k: v for k, v in flat.items() if not k.startswith("fields/")}
    header["fields"] = {k.removeprefix("fields/"): v for k, v in flat.items() if k.startswith("fields/")}
    tensors = {}
    for name, dtype, shape, data in _entries(line["tensors"][0]):
        value = torch.from_numpy(data.copy())
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{source} is damaged: {name} is said to be of dtype {dtype!r}")
        if kind.is_complex:
            value = torch.view_as_complex(value.reshape(*shape, 2))
        tensors[name] = value.reshape(shape).to(kind)
    return Decomposition.unpacked(tensors, header, source)


def _tensor_type(pa: Any) -> Any:
    shape, data = pa.list_(pa.int32()), pa.list_(pa.float64())
    return pa.struct([("name", pa.string()), ("dtype", pa.string()), ("shape", shape), ("data", data)])


def _record(row: Row, result: RowResult) -> dict[str, Any]:
    """The columns of one row as Python values, tensors as they are."""
    record: dict[str, Any] = {"row": row.index, "key": row.key, "label": row.label, **result.scalars}
    if (terms := result.terms) is not None:
        tensors, header = terms.packed()
        json.dumps(header)  # raises here, where the row is known
        for name, value in tensors.items():
            whole_numbers = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
            if whole_numbers and value.numel() and int(value.abs().max()) > EXACT:
                raise ValueError(f"{name} holds whole numbers beyond 2**53, which a table of float64 cannot hold")
        whole = terms.whole.item() if terms.whole.numel() == 1 and not terms.whole.is_complex() else None
        record |= {"whole": whole, "error": terms.error(), "cancellation": terms.cancellation()}
        record |= {"tensors": tensors, "header": header}
    return record


def _flat(header: dict[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in header.items() if k != "fields"}
    return rest | {f"fields/{k}": v for k, v in header["fields"].items()}


def _tensor_lists(rows: Sequence[Mapping[str, Tensor]]) -> Any:
    """One list of structs per row."""
    pa, _ = arrow()
    every = [(name, value) for row in rows for name, value in row.items()]
    numbers = [_numbers(value) for _, value in every]
    data = pa.ListArray.from_arrays(_offsets(map(len, numbers)), pa.array(np.concatenate([*numbers, np.empty(0)])))
    columns = [
        pa.array([name for name, _ in every], pa.string()),
        pa.array([str(value.dtype).removeprefix("torch.") for _, value in every], pa.string()),
        pa.array([list(value.shape) for _, value in every], pa.list_(pa.int32())),
        data.cast(pa.list_(pa.float64())),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(_tensor_type(pa)))
    return pa.ListArray.from_arrays(_offsets(map(len, rows)), structs).cast(pa.list_(_tensor_type(pa)))


def _numbers(value: Tensor) -> np.ndarray:
    value = value.detach().cpu().resolve_conj()
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.to(torch.float64).flatten().numpy()


def _offsets(lengths: Any) -> Any:
    pa, _ = arrow()
    return pa.array(np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int32))


def _entries(scalar: Any) -> list[tuple[str, str, list[int], np.ndarray]]:
    """What a list of structs holds, without a Python number for every entry of a tensor."""
    structs = scalar.values
    names, dtypes, shapes, data = (structs.field(i) for i in range(4))
    return [(names[i].as_py(), dtypes[i].as_py(), shapes[i].as_py(), data[i].values.to_numpy()) for i in range(len(structs))]


def _reason(problem: Exception) -> str:
    """One line for the error table."""
    return f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
