"""Files that appear whole or not at all, and complaints about a place one cannot write to before the long work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["check_writable", "write"]


def check_writable(path: str | Path) -> Path:
    """Return the path when a file can be written there; its folder is made when missing.

    Raises:
        ValueError: saying what stands in the way, when it cannot.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file in it, as {path / 'why.html'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        os.close(handle)
        os.unlink(probe)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise ValueError(f"cannot write {path}: {reason} ({path.parent}); choose another place with --out") from None
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: the file is read-only; choose another place with --out")
    return path


def write(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    Raises:
        ValueError: as `check_writable`.
    """
    path = check_writable(path)
    data = content.encode() if isinstance(content, str) else content
    handle, partial = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's 0600 would surprise who puts the page on a server
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path
