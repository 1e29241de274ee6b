"""A folder of pictures as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .dataset import PICTURES, Dataset
from .job import Row

__all__ = ["Pictures"]


class Pictures(Dataset):
    """Every picture in a folder and its folders, in the order of their names; a picture's folder is its label."""

    def __init__(self, path: Path, files: Sequence[Path], column: str | None = None) -> None:
        if column is not None:
            raise ValueError(f"{path} is a folder of pictures and has no columns: leave --column out")
        self.path, self.kind, self.column = path, "image", None
        self._names = [file.relative_to(path).as_posix() for file in files]
        if not self._names:
            raise ValueError(f"{path} has neither pictures ({', '.join(PICTURES)}) nor .parquet files")

    def __len__(self) -> int:
        return len(self._names)

    def files(self) -> Sequence[Path]:
        """The pictures."""
        return [self.path / name for name in self._names]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Their paths; they are read by who wants them.

        Raises:
            FileNotFoundError: one that was there is gone, which says more of the disk than of the row.
        """
        names = self._names[start:stop]
        if gone := [name for name in names if not (self.path / name).exists()]:
            raise FileNotFoundError(f"{self.path / gone[0]} was there and is gone: bring it back, and the same command goes on")
        return [Row(start + i, name, self.path / name, name.rpartition("/")[0] or None) for i, name in enumerate(names)]
