"""Work kept on disk, a layer at a time, so that an interrupted run goes on where it was.

A folder holds `asked.json`, what the work was for, and one safetensors file per finished layer. A run that asks something else is
refused there; one that asks the same reads what is finished, and ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"work={str(folder)!r} is a file: name a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "asked.json"
        if note.is_file():
            try:
                before = dict(json.loads(note.read_text("utf-8")))
            except (ValueError, TypeError, RecursionError):
                raise ValueError(f"{note} is no note of kept work: delete {folder}, or choose another folder") from None
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


def fingerprint(value: Any) -> str:
    """A hash of what makes a difference in nested values.

    Of tensors dtype, shape and bytes; of modules what they hold besides: class, settings, modules in them (eps, a scale, an
    activation, a config). Functions and classes count by name, so that code that was edited does not show.
    """
    digest = hashlib.sha256()
    for part in _parts(value, set()):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray | np.generic):
        yield from _parts(value.tolist(), seen)
    elif isinstance(value, str | bytes | int | float | complex | None | torch.dtype | torch.device):
        yield repr(value).encode()
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif id(value) in seen:  # it is in the hash already, or holds itself
        yield b"again"
    else:
        seen.add(id(value))
        yield type(value).__qualname__.encode()
        if isinstance(value, nn.Module):
            inner: Any = {**_settings(value), **value._parameters, **value._buffers, **value._modules}
        elif isinstance(value, Mapping):
            inner = value
        elif isinstance(value, list | tuple):
            inner = dict(enumerate(value))
        elif isinstance(value, set | frozenset):
            inner = dict(enumerate(sorted(map(repr, value))))
        else:
            inner = _settings(value)
        for name, own in inner.items():
            yield f"{name}=".encode()
            yield from _parts(own, seen)


def _settings(value: Any) -> dict[str, Any]:
    """Attributes that are not private; a module is run in evaluation mode, whatever mode it is in."""
    own = getattr(value, "__dict__", {})
    return {name: own[name] for name in sorted(own) if not name.startswith("_") and name != "training"}
