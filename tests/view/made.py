"""Results of any size in a moment: one batch is answered, and written again and again under other numbers by the engine's writer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from termwise.core.decomposition import Decomposition
from termwise.engine.folder import FORMAT, Folder
from termwise.engine.job import Row, RowResult
from termwise.engine.merging import finish
from termwise.engine.table import as_bytes, batch_table, schema

SCALARS = {"score": float, "class": str, "text": str, "count": int, "good": bool}
WORDS = (
    "a",
    "quiet",
    "film",
    "about",
    "two",
    "brothers",
    "who",
    "never",
    "say",
    "what",
    "they",
    "mean",
    "and",
    "the",
    "snow",
    "falls",
)


def one(i: int) -> Decomposition:
    """A small decomposition that does not quite add up."""
    parts = {"left": torch.tensor([i / 7 - 20.0]), "right": torch.tensor([[0.5 * i, -2.0, 1.0]])}
    whole = sum(p.reshape(1, -1).sum(1) for p in parts.values()) * (1 + 10.0 ** -(2 + i % 9))
    return Decomposition(whole, parts)


def made(
    path,
    rows,
    *,
    batch=500,
    decomposes=True,
    finished=True,
    bad=(),
    keys=None,
    labels=None,
    count="count",
    reason="ValueError: it is bad",
    **manifest,
):
    """Write the results of `rows` rows into a folder.

    `bad` are the numbers of rows that failed; `keys` and `labels` what rows are called, `count` what the column of whole numbers is; with `finished` False every second batch is there.
    """
    scalars = {count if name == "count" else name: kind for name, kind in SCALARS.items()}
    folder, columns = Folder(path), schema(scalars, decomposes)
    g = np.random.default_rng(0)
    kinds = {name: kind.__name__ for name, kind in scalars.items()}
    dataset = {"path": "/data/films.jsonl", "kind": "text", "column": "text", "rows": rows, "digest": "0"}
    said = {
        "format": FORMAT,
        "verb": "explain",
        "settings": {"model": "bag", "seed": 3},
        "dataset": dataset,
        "decomposes": decomposes,
        "columns": kinds,
        "versions": {"termwise": "0"},
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.claim(said | manifest)
    answered = [(Row(i, ""), RowResult({}, one(i) if decomposes else None)) for i in range(min(batch, rows))]
    empty = batch_table(columns, answered)
    for number, start in enumerate(range(0, rows, batch)):
        if not finished and number % 2:
            continue
        wanted = np.array([i for i in range(start, min(start + batch, rows)) if i not in bad])
        new = {
            "row": wanted,
            "key": [f"line {i + 1}" if keys is None else keys(i) for i in wanted],
            "label": [("yes", "no", None)[i % 3] if labels is None else labels(i) for i in wanted],
            "score": g.standard_normal(len(wanted)),
            "class": [("spam", "ham")[i % 2] for i in wanted],
            "text": [" ".join(g.choice(WORDS, 12)) for _ in wanted]
            if rows <= 5000
            else [" ".join(WORDS[i % 9 :]) for i in wanted],
            count: g.integers(0, 1000, len(wanted)),
            "good": g.random(len(wanted)) < 0.5,
        }
        table = empty.take(wanted - start)
        arrays = [pa.array(new[n], table.schema.field(n).type) if n in new else table[n].combine_chunks() for n in columns.names]
        failed = [{"row": int(i), "key": f"line {i + 1}", "reason": reason} for i in bad if start <= i < start + batch]
        done = pa.table(arrays, schema=columns).replace_schema_metadata({"errors": json.dumps(failed)})
        folder.write(folder.batch(number), as_bytes(done))
    if finished:
        finish(folder, -(-rows // batch), columns)
        folder.tidy()
    return Path(path)
