"""Results that were damaged, or written by somebody else: refused with the file's name, and nothing in them is run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.subjects import Lengths, texts
from termwise.engine import Dataset, Results, run


@pytest.fixture
def folder(tmp_path):
    run(Lengths(), Dataset.open(texts(tmp_path / "a.txt", ["one", "bad", "three"])), tmp_path / "out", workers=1)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": "9"}, "does not say format"),
        ({"format": 9}, "has format 9, this version reads up to 1: update termwise"),
        ({"columns": ["length"]}, "does not say columns"),
        ({"columns": None}, "does not say columns"),
        ({"dataset": {"rows": "3", "path": "a"}}, "does not say dataset.rows"),
        ({"columns": {"weight": "int"}}, "table.parquet has no column weight"),
        ({"columns": {"text": "float"}}, "column 'text' of .*table.parquet holds string, the manifest beside it says float"),
        ({"columns": {"length": "str"}}, "column 'length' of .*table.parquet holds int64, the manifest beside it says str"),
    ],
)
def test_a_manifest_that_says_something_else(folder, changed, says):
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    with pytest.raises(ValueError, match=says):
        Results(folder)


@pytest.mark.parametrize("content", [b"[]", b"3", b"{", b"\xff\xfe", b""])
def test_a_manifest_that_is_none(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json (cannot be read|is no manifest)"):
        Results(folder)


@pytest.mark.parametrize("name", ["table.parquet", "errors.parquet"])
def test_every_cut_of_a_table_is_told(folder, name):
    whole = (folder / name).read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{name} is no parquet file, or a damaged one"):
            _ = Results(folder).errors


def test_bytes_that_were_changed_are_told_or_change_nothing(folder):
    """Never another kind of error, wherever it is."""
    whole = (folder / "table.parquet").read_bytes()
    for place in range(4, len(whole), max(1, len(whole) // 400)):
        (folder / "table.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            results = Results(folder)
            results.scalars()
            list(results)
        except ValueError as problem:
            assert str(folder) in str(problem)


@pytest.mark.parametrize("dtype", ["load", "__name__", "nothing", "Tensor"])
def test_a_dtype_is_a_dtype(folder, dtype):
    table = pq.read_table(folder / "table.parquet")
    tensors = [[entry | {"dtype": dtype} for entry in row] for row in table["tensors"].to_pylist()]
    at = table.column_names.index("tensors")
    pq.write_table(table.set_column(at, "tensors", pa.array(tensors, table.schema.field(at).type)), folder / "table.parquet")
    with pytest.raises(ValueError, match=f"is damaged: .* of dtype '{dtype}'"):
        Results(folder)[0]
