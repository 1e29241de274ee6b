"""One safetensors file: tensors as tensors, everything else as JSON in its header, and no code to run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from .arguments import file_path

__all__ = ["read", "refuse_newer", "write"]

T = TypeVar("T")


def write(path: str | Path, tensors: Mapping[str, Tensor], key: str, header: Any) -> Path:
    """Write a file; one that is there is replaced only once the new one is whole.

    Args:
        path: where to; `.safetensors` is appended when there is no suffix.
        tensors: by name; they may be views of one another.
        key: of the header, by which `read` knows the file.
        header: JSON.

    Raises:
        TypeError: for a header that is no JSON.
        OSError: when the path cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = file_path(path, ".safetensors")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    text = json.dumps(header)
    partial = path.with_name(path.name + ".partial")
    try:
        # clone: safetensors refuses tensors that share memory
        save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, partial, {key: text})
        partial.replace(path)
    except SafetensorError as problem:
        raise OSError(f"{path} cannot be written ({problem}): choose a folder that exists and is yours to write") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def read(path: str | Path, key: str, make: Callable[[Any, dict[str, Tensor], Path], T], *, holds: str, saver: str) -> T:
    """Read what `write` wrote.

    Args:
        path: as it was given to `write`.
        key: of the header.
        make: from header, tensors and path.
        holds: what the file should hold, for messages.
        saver: what writes such files, for messages.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is none of these, or `make` cannot use its header.
    """
    from safetensors import SafetensorError, safe_open

    named = file_path(path, ".safetensors")
    path = Path(path) if Path(path).is_file() else named
    if not path.is_file():
        about = "is a folder: name a file in it" if path.is_dir() else f"does not exist: {saver} writes such files"
        raise FileNotFoundError(f"{path} {about}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
            if text is None:
                raise ValueError(f"{path} is a safetensors file without {holds} in it")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as problem:
        raise ValueError(f"{path} is not a safetensors file ({problem}): save with {saver}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as problem:  # no JSON, numbers of thousands of digits, lists in lists in lists
        raise ValueError(f"{path} has a header that is no JSON ({type(problem).__name__}: {problem})") from None
    try:
        return make(header, tensors, path)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as problem:
        said = " ".join(str(problem).split())[:300]  # torch names every tensor that does not fit
        raise ValueError(f"{path} has a header that cannot be read ({type(problem).__name__}: {said})") from None


def refuse_newer(path: str | Path, found: int, known: int) -> None:
    """Refuse a file of a format that this version does not know yet.

    Raises:
        ValueError: when `found` is above `known`.
    """
    if found > known:
        raise ValueError(f"{path} has format {found}, this version reads up to {known}: update termwise")
