"""Data sets as files: row i is always the same row, and nothing is read before it is asked for.

What is kept in memory is where the rows are: the offset of every line (16 bytes a row), the names of pictures, or the
sizes of parquet's row groups.
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .job import Row

__all__ = ["LOOKED_AT", "PICTURES", "Dataset", "chosen_columns", "record_row"]

log = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")

TEXT = ("text", "sentence", "content", "prompt", "review", "document", "question")
IMAGE = ("image", "img", "picture", "photo", "file_name", "file", "path")
LABEL = ("label", "labels", "class", "category", "target")
"""Names of columns that say what they hold, the surest first."""

LOOKED_AT = 100
"""Records, from the first, that say what the columns hold."""

SAMPLE = 1 << 16
"""Bytes that the digest reads at a time."""

Kind = Literal["text", "image"]


class Dataset(ABC):
    """Rows in files, which are read when they are asked for.

    Attributes:
        path: the file or folder.
        kind: "text" or "image".
        column: which column holds it; None where the format has no columns.
    """

    path: Path
    kind: Kind
    column: str | None

    @staticmethod
    def open(path: str | Path, column: str | None = None) -> Dataset:
        """The data set in a file or folder.

        Args:
            path: data.parquet, a folder of parquet files, data.jsonl, data.csv, data.txt (one text a line, empty lines do
                not count), or a folder of pictures, whose folders are their labels. Of a folder, hidden files, results of
                this library and folders that are links are left out.
            column: which one holds the text, the picture, or the picture's path; by name and content when not given.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: another format, nothing in it, no such column, or no way to tell which column is meant, or whether
                the tables or the pictures of a folder are.
            ImportError: parquet without pyarrow.
        """
        from .lines import FORMATS
        from .parquet import Parquet
        from .pictures import Pictures

        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no data set {path}")
        if path.is_dir():
            tables, pictures = _inside(path)
            if tables and pictures and column is None:
                raise ValueError(
                    f"{path} holds {len(tables)} .parquet files and {len(pictures)} pictures: give --column, of the tables, or a "
                    "folder with the pictures alone"
                )
            return Parquet(path, tables, column) if tables else Pictures(path, pictures, column)
        kind = path.suffix.lower()
        if kind == ".parquet":
            return Parquet(path, [path], column)
        if kind not in FORMATS:
            known = ", ".join((".parquet", *FORMATS))
            raise ValueError(f"{path} is no data set: give a {known} file, or a folder of pictures or of parquet files")
        return FORMATS[kind](path, column)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows start, ..., stop - 1. A row that cannot be read says so in its `problem`, and raises nothing."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Every file that rows come from, in order."""

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it, as JSON.

        The digest covers the name and size of every file and samples of their content: of each file (of 1,000 evenly spaced
        ones where there are more) 64 KiB at the beginning, the middle and the end. An edit between these that keeps a
        file's size is not seen.
        """
        return {
            "path": str(self.path.resolve()), "kind": self.kind, "column": self.column, "rows": len(self),
            "digest": _digest(self.path, self.files()),
        }  # fmt: skip


def _inside(root: Path) -> tuple[list[Path], list[Path]]:
    """Tables and pictures of a folder and its folders, each in the order of their names. What else is there is told."""
    tables, pictures, others = [], [], Counter[str]()
    for at, folders, names in os.walk(root):
        folder = Path(at)
        if folder != root and {"manifest.json", "run.jsonl"} <= {*names}:
            others["folders of results"] += 1
            folders.clear()
            continue
        others["folders that are links"] += sum((folder / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (folder / name for name in names if not name.startswith(".")):
            kind = file.suffix.lower()
            if kind == ".parquet":
                tables.append(file)
            elif kind in PICTURES:
                pictures.append(file)
            else:
                others[f"{kind} files" if kind else "files without an ending"] += 1
    if tables and pictures:
        others["pictures"] += len(pictures)
    if told := ", ".join(f"{count:,} {what}" for what, count in others.items() if count):
        log.warning("%s: left out are %s", root, told)
    return sorted(tables), sorted(pictures, key=lambda file: file.relative_to(root).as_posix())


def _digest(root: Path, files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    looked_into = set(range(0, len(files), max(1, len(files) // 1000)))
    for i, path in enumerate(files):
        size = path.stat().st_size
        name = path.relative_to(root).as_posix() if path != root else path.suffix
        found.update(f"{name}\0{size}\0".encode())
        if i in looked_into:
            with path.open("rb") as file:
                for place in (0, size // 2, max(0, size - SAMPLE)):
                    file.seek(place)
                    found.update(file.read(SAMPLE))
    return found.hexdigest()


def chosen_columns(path: Path, examples: Sequence[Mapping[str, Any]], column: str | None) -> tuple[str, Kind, str | None]:
    """Which column is meant, what it holds, and which one is the label.

    Args:
        path: of the file, for messages.
        examples: some records.
        column: the user's word.

    Raises:
        ValueError: no such column, one that holds neither text nor picture, or several that may be meant.
    """
    names = dict.fromkeys(name for example in examples for name in example)
    held = {name: [v for example in examples if (v := example.get(name)) is not None] for name in names}
    kinds = {name: kind for name, values in held.items() if (kind := _kind(name, values)) is not None}
    if column is None:
        labels = [name for name in LABEL if name in names]
        known = [name for name in (*TEXT, *IMAGE) if name in kinds] or [name for name in kinds if name not in labels]
        if len(known) != 1 and not (known and known[0] in TEXT):
            raise ValueError(f"which column of {path} is meant? Give --column, one of {', '.join(kinds or names)}")
        column = known[0]
    if column not in names:
        raise ValueError(f"{path} has no column {column!r}; it has {', '.join(names)}")
    if column not in kinds:
        what = f"a {type(held[column][0]).__name__}" if held[column] else "nothing"
        raise ValueError(f"column {column!r} of {path} holds neither texts nor pictures ({what}): give another --column")
    label = next((name for name in LABEL if name in names and name != column), None)
    return column, kinds[column], label


def _kind(name: str, values: Sequence[Any]) -> Kind | None:
    """What a column holds. Strings are pictures' paths where they look so: all of them, or one where the name says so too."""
    texts = [value for value in values if isinstance(value, str)]
    if any(isinstance(v, bytes) or (isinstance(v, Mapping) and {"bytes", "path"} & set(v)) for v in values):
        return "image"
    if not texts:
        return None
    enough = any if name in IMAGE else all
    return "image" if name not in TEXT and enough(text.lower().endswith(PICTURES) for text in texts) else "text"


def record_row(data: Dataset, index: int, key: str, record: Any, label: str | None) -> Row:
    """The row of one record, a text or a mapping from columns."""
    if isinstance(record, Mapping):
        if data.column not in record:
            return Row(index, key, problem=f"has no column {data.column!r}")
        value, said = record[data.column], record.get(label) if label is not None else None
    else:
        value, said = record, None
    if isinstance(value, Mapping):  # a picture as data sets of transformers keep it
        value = value.get("bytes") or value.get("path")
    named = None if said is None else str(said)
    if data.kind == "text":
        return Row(index, key, value, named) if isinstance(value, str) else Row(index, key, problem=f"is no text: {value!r:.80}")
    if isinstance(value, str):
        folder = data.path if data.path.is_dir() else data.path.parent
        return Row(index, key, folder / value, named)
    return Row(index, key, value, named) if isinstance(value, bytes) else Row(index, key, problem=f"is no picture: {value!r:.80}")
