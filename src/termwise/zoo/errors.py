"""What goes wrong in the zoo, each time with what to do about it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

__all__ = ["AssetCorrupt", "AssetMissing", "need", "no_file", "unknown"]


class AssetMissing(FileNotFoundError):
    """A file of the zoo is neither installed nor cached, and could not or must not be downloaded."""


class AssetCorrupt(ValueError):
    """A file is not the one of the table: its sha256, its size or its format differs. Nothing of it was kept."""


def need(module: str, *, extra: str, wanted_by: str) -> ModuleType:
    """Import an optional library where it is used.

    Args:
        module: name of the module.
        extra: the extra of this package that brings it.
        wanted_by: what cannot work without it, for the message.

    Returns:
        The module.

    Raises:
        ImportError: when it is not installed, naming the install line.

    Example:
        >>> need("json", extra="text", wanted_by="this example").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        line = f'pip install "termwise[{extra}]"'
        raise ImportError(f"{wanted_by} needs {missing.name}, which is not installed: {line}") from missing


def no_file(what: str, path: Path) -> FileNotFoundError:
    """The error for a path at which there is no file, or a folder.

    Args:
        what: the kind of file, "picture".
        path: where it should be.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> str(no_file("picture", Path("none.png")))
        "no picture file 'none.png'"
    """
    if path.is_dir():
        return FileNotFoundError(f"no {what} file {str(path)!r}: it is a folder; name a file in it")
    return FileNotFoundError(f"no {what} file {str(path)!r}")


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is in no table, with the nearest one that is.

    Args:
        what: the kind of thing, "model".
        name: what was asked for.
        known: the names there are.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> str(unknown("photo", "chine", ["china", "cat"]))
        "unknown photo 'chine': did you mean 'china'? There are: china, cat"
    """
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}: {hint}There are: {', '.join(known)}")
