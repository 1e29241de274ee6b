"""Rows of every format: the same ones in batches of any size, in any order; and what is said of those that cannot be read."""

import csv
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from termwise.engine import Dataset

SENTENCES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\x85"), min_size=1).map(
    lambda t: "x" + t
)
RECORDS = st.lists(st.tuples(SENTENCES, st.sampled_from(["a", "b"])), min_size=1, max_size=12)


def written(folder, kind, records):
    """The same records in one of the formats."""
    path = folder / f"data{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": la}) + "\n\n" for t, la in records), "utf-8")
    elif kind == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("label", "text"), *((la, t) for t, la in records)])
    elif kind == ".parquet":
        table = pa.table({"text": [t for t, _ in records], "label": [la for _, la in records]})
        pq.write_table(table, path, row_group_size=3)
    else:
        path.write_text("".join(t + "\n" for t, _ in records), "utf-8")
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet", ".txt"])
@given(records=RECORDS, size=st.integers(1, 5), order=st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_batches_of_any_size_in_any_order_are_the_records(tmp_path_factory, kind, records, size, order):
    data = Dataset.open(written(tmp_path_factory.mktemp("d"), kind, records))
    data = pickle.loads(pickle.dumps(data))  # as it comes to a worker
    starts = list(range(0, len(data), size))
    order.shuffle(starts)
    rows = sorted((row for start in starts for row in data.rows(start, start + size)), key=lambda row: row.index)
    assert [row.index for row in rows] == list(range(len(records))) == list(range(len(data)))
    assert [row.value for row in rows] == [t for t, _ in records]
    assert [row.label for row in rows] == [None if kind == ".txt" else la for _, la in records]
    assert data.kind == "text"


def test_a_quoted_line_break_is_no_end_of_a_record(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",x\n\n"three, ""four""",y\n')
    assert [(r.key, r.value, r.label) for r in Dataset.open(path).rows(0, 9)] == [
        ("line 2", "one\ntwo", "x"), ("line 5", 'three, "four"', "y"),
    ]  # fmt: skip


def test_a_row_that_cannot_be_read_says_why_and_costs_no_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n{"other": 1}\n{"text": 3}\n\xff\xfe\n{"text": "two"}\n')
    rows = Dataset.open(path).rows(0, 6)
    assert [row.problem is None for row in rows] == [True, False, False, False, False, True]
    assert "cannot be read" in rows[1].problem
    assert "has no column 'text'" in rows[2].problem
    assert "is no text: 3" in rows[3].problem
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,x\ntwo\n")
    assert "1 fields where the header has 2" in Dataset.open(path).rows(1, 2)[0].problem


def test_pictures_come_by_name_with_their_folder_as_label(tmp_path):
    for name in ("b/2.png", "a/1.png", "0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    data = Dataset.open(tmp_path)
    assert [(r.key, r.label, r.value.name) for r in data.rows(0, 5)] == [
        ("0.jpg", None, "0.jpg"), ("a/1.png", "a", "1.png"), ("b/2.png", "b", "2.png"),
    ]  # fmt: skip
    assert data.kind == "image"


def test_pictures_in_parquet_are_bytes_or_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    content = (tmp_path / "p.png").read_bytes()
    for number, cells in enumerate(([{"bytes": content, "path": None}] * 2, [content] * 2, ["p.png"] * 2)):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": cells, "label": [0, 1]}), path)
        data = Dataset.open(path)
        assert data.kind == "image"
        assert [r.value for r in data.rows(0, 2)] == ([tmp_path / "p.png"] * 2 if number == 2 else [content] * 2)
        assert [r.label for r in data.rows(0, 2)] == ["0", "1"]


def test_a_folder_of_parquet_is_one_data_set_in_the_order_of_names(tmp_path):
    for name, values in {"b": ["3"], "a": ["1", "2"], "c": []}.items():
        pq.write_table(pa.table({"text": pa.array(values, pa.string())}), tmp_path / f"{name}.parquet")
    assert [r.value for r in Dataset.open(tmp_path).rows(0, 9)] == ["1", "2", "3"]


@pytest.mark.parametrize("first", [b'{"text": null, "label": 1}', b'{"text": 3}', b"no json", b"\xff\xfe", b'{"label": 1}'])
def test_a_bad_first_record_decides_nothing(tmp_path, first):
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b'\n{"text": "one", "label": 2}\n')
    for column in (None, "text"):
        data = Dataset.open(path, column)
        bad, good = data.rows(0, 2)
        assert bad.problem is not None
        assert (data.column, data.kind, good.value, good.label) == ("text", "text", "one", "2")
    pq.write_table(pa.table({"text": [None, "one"]}), tmp_path / "a.parquet")
    bad, good = Dataset.open(tmp_path / "a.parquet").rows(0, 2)
    assert (bad.problem, good.value) == ("is no text: None", "one")


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("text", ["look at cat.jpg"], "text"),  # the name says so
        ("x", ["look at cat.jpg", "a dog"], "text"),  # not all of them are
        ("x", ["cat.jpg", "dog.PNG"], "image"),
        ("file_name", ["no ending", "dog.tif"], "image"),
        ("path", ["a story"], "text"),
    ],
)
def test_a_string_is_a_picture_s_path_where_all_say_so(tmp_path, column, values, kind):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    assert Dataset.open(tmp_path / "a.jsonl", column).kind == kind


@pytest.mark.parametrize("sign", [";", "\t"])
def test_other_signs_between_fields(tmp_path, sign):
    (tmp_path / "a.CSV").write_text(f'text{sign}label\n"one{sign} two, three"{sign}x\nfour, five{sign}y\n')
    data = pickle.loads(pickle.dumps(Dataset.open(tmp_path / "a.CSV")))
    assert [(r.value, r.label) for r in data.rows(0, 9)] == [(f"one{sign} two, three", "x"), ("four, five", "y")]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_what_is_left_out_of_a_folder_is_told(tmp_path, caplog):
    for name in ("a/1.png", "a/2.tif", "3.gif", "a/._1.png", ".thumbs/4.png"):
        picture(tmp_path / "data" / name)
    picture(tmp_path / "elsewhere" / "5.png")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "notes.txt").touch()
    old = tmp_path / "data" / "results"
    old.mkdir()
    for name in ("manifest.json", "run.jsonl"):
        (old / name).touch()
    pq.write_table(pa.table({"text": ["one"]}), old / "table.parquet")
    assert [row.key for row in Dataset.open(tmp_path / "data").rows(0, 9)] == ["3.gif", "a/1.png", "a/2.tif"]
    assert "left out are 1 folders that are links, 1 .txt files, 1 folders of results" in caplog.text


def test_tables_beside_pictures_are_not_taken_for_them(tmp_path, caplog):
    picture(tmp_path / "1.png")
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=r"1 .parquet files and 1 pictures: give --column, of the tables, or a folder"):
        Dataset.open(tmp_path)
    assert [row.value for row in Dataset.open(tmp_path, "text").rows(0, 9)] == ["one"]
    assert "left out are 1 pictures" in caplog.text


def test_the_digest_sees_names_sizes_and_content(tmp_path):
    seen = set()
    for content in (["one", "two"], ["one", "twO"], ["one", "two", "three"]):
        (tmp_path / "a.txt").write_text("\n".join(content))
        seen.add(Dataset.open(tmp_path / "a.txt").describe()["digest"])
    assert len(seen) == 3
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")  # a file of its own may be called anything
    assert Dataset.open(tmp_path / "b.txt").describe()["digest"] in seen


@pytest.mark.parametrize(
    ("name", "content", "column", "says"),
    [
        ("a.txt", "", None, "has no rows"),
        ("a.csv", "text\n", None, "has no rows"),
        ("a.txt", "one", "text", "no columns, every line is a text: leave --column out"),
        ("a.xlsx", "one", None, "no data set: give a .parquet, .jsonl"),
        ("a.jsonl", '{"a": "x", "b": "y"}', None, "which column .* --column, one of a, b"),
        ("a.jsonl", '{"a": "x", "b": "y"}', "c", "no column 'c'; it has a, b"),
        ("a.jsonl", '{"a": 1, "b": "y"}', "a", "neither texts nor pictures"),
        ("a.jsonl", "no json", None, "line 1 .* cannot be read"),
        ("a.jsonl", '{"text": null}\n{"text": null}', "text", r"holds neither texts nor pictures \(nothing\)"),
        ("a.parquet", "no parquet", None, "no parquet file, or a damaged one"),
    ],
)
def test_bad_data_sets(tmp_path, name, content, column, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        Dataset.open(tmp_path / name, column)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no data set"):
        Dataset.open(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="neither pictures"):
        Dataset.open(tmp_path)
