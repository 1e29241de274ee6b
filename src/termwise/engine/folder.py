"""The folder of a run: what it was made with, what is done, and files that are there whole or not at all.

results/manifest.json                      settings that decide the numbers; a run with others is refused
        batches/00000012.parquet           rows of batch 12, while the run is not finished
        batches/00000012.safetensors       sums of batch 12, where the job has any
        table.parquet errors.parquet       all rows, in order; the last thing written
        statistics.safetensors             sums over all batches, added in order
        run.jsonl                          times, versions, machine: what may differ between runs
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

__all__ = ["FORMAT", "Folder"]

FORMAT = 1
"""Version of the layout."""

ELSEWHERE = {"dataset.path"}
"""What a manifest says for people: a data set may move."""


class Folder:
    """A folder that one run at a time writes to.

    Args:
        path: it is made when it is not there.

    Raises:
        ValueError: when it holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{path} is a file: choose a folder for the results")
        there = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        if there - {".lock", "manifest.json.partial"} and "manifest.json" not in there:
            raise ValueError(f"{path} exists and holds something else than results: choose another folder")
        self.batches = self.path / "batches"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes here. The lock ends with the process, however that ends.

        Raises:
            ValueError: when somebody else does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                for left in (*self.path.glob("*.partial"), *self.batches.glob("*.partial")):
                    left.unlink()  # of a process that was killed while it wrote
                yield
        except Timeout:
            raise ValueError(f"another run is writing to {self.path}: wait for it, or choose another folder") from None

    def refuse_other(self, manifest: dict[str, Any]) -> None:
        """Compare with what the folder was made with, as far as `manifest` says it.

        Raises:
            ValueError: with every difference.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return
        there, here = _paths(json.loads(path.read_text("utf-8"))), _paths(json.loads(json.dumps(manifest)))  # tuples as lists
        names = [n for n in {**here, **there} if n not in ELSEWHERE and (n in here or n.partition(".")[0] in manifest)]
        different = [f"  {n}: {there.get(n)!r} there, {here.get(n)!r} now" for n in names if there.get(n) != here.get(n)]
        if different:
            raise ValueError(
                f"{self.path} was made with other settings, which would mix two kinds of numbers:\n" + "\n".join(different)
                + "\nRun with those settings, or choose another folder"
            )  # fmt: skip

    def claim(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, or compare with the one that is there."""
        self.refuse_other(manifest)
        if not (self.path / "manifest.json").exists():
            self.write(self.path / "manifest.json", json.dumps(manifest, indent=2).encode())
        if not self.finished:
            self.batches.mkdir(exist_ok=True)

    def tidy(self) -> None:
        """Remove the batches of a finished run, which are all in the table."""
        if self.finished and self.batches.exists():
            shutil.rmtree(self.batches)

    @property
    def finished(self) -> bool:
        """Whether the whole table is there."""
        return (self.path / "table.parquet").exists()

    def done(self) -> list[int]:
        """Numbers of the batches that are there, in order."""
        return sorted(int(p.stem) for p in self.batches.glob("*.parquet"))

    def batch(self, number: int, suffix: str = ".parquet") -> Path:
        """The file of a batch."""
        return self.batches / f"{number:08d}{suffix}"

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, which is there under its name only once it is whole and on the disk.

        Raises:
            OSError: when it cannot be written; nothing of it is left.
        """
        with self.replacing(path) as partial, partial.open("wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Another name to write a file under, which is then renamed."""
        partial = path.with_name(path.name + ".partial")
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_names(path.parent)
        except OSError as problem:
            raise _unwritten(path, problem) from problem
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def note(self, event: str, **facts: Any) -> None:
        """Append a line to the side file."""
        line = json.dumps({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})
        path = self.path / "run.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as problem:
            raise _unwritten(path, problem) from problem


def _unwritten(path: Path, problem: OSError) -> OSError:
    return OSError(
        f"{path} cannot be written ({problem.strerror or problem}). What is done is kept: free some space or mend the "
        "permissions, and the same command goes on"
    )


def _paths(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings by its dotted path."""
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for name, inner in value.items() for k, v in _paths(inner, f"{path}.{name}" if path else name).items()}


def _sync_names(folder: Path) -> None:
    """Make a rename last, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
