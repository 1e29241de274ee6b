"""Work kept on disk, a layer at a time, so that an interrupted run goes on where it was.

A folder holds `asked.json`, what the work was for, and one safetensors file per finished layer. A run that asks something else is
refused there; one that asks the same reads what is finished, and ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .ladder import Fitted

__all__ = ["KeptWork", "fingerprint"]


class KeptWork:
    """Finished layers in a folder.

    Args:
        folder: made where it is not there.
        asked: what the work is for: anything that JSON can hold.

    Raises:
        ValueError: when the folder holds work for something else; the message has the difference.
    """

    def __init__(self, folder: str | Path, asked: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "asked.json"
        if note.is_file():
            before = json.loads(note.read_text("utf-8"))
            changed = [f"{key} {before.get(key)!r} is now {asked[key]!r}" for key in asked if before.get(key) != asked[key]]
            if changed:
                raise ValueError(
                    f"{folder} holds work for something else ({'; '.join(changed)}): delete it, or choose another folder"
                )
        else:
            partial = note.with_suffix(".partial")
            partial.write_text(json.dumps(asked), encoding="utf-8")
            partial.replace(note)

    def __contains__(self, layer: str) -> bool:
        return self._path(layer).is_file()

    def put(self, layer: str, fitted: Fitted) -> Fitted:
        """Keep what was worked out, and give it back as it will be read: from the file, a tensor at a time."""
        path = self._path(layer)
        partial = path.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in fitted.items()}, partial)
        partial.replace(path)
        return self.get(layer)

    def get(self, layer: str) -> Fitted:
        """What was worked out, read when it is looked at."""
        return _OnDisk(self._path(layer))

    def _path(self, layer: str) -> Path:
        return self.folder / f"{hashlib.sha256(layer.encode()).hexdigest()[:32]}.safetensors"


class _OnDisk(Mapping[str, Tensor]):
    """Tensors of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def __iter__(self) -> Any:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def fingerprint(values: Iterable[Any]) -> str:
    """A hash of every tensor in some values, shapes and bytes."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(list(values)):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
