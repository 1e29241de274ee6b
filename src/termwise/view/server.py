"""The local page, served to this machine's own browser until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

from .app import application

__all__ = ["HOST", "serve"]

HOST = "127.0.0.1"


def serve(path: str | Path, *, port: int = 0, browser: bool = True, told: Callable[[str], object] = print) -> None:
    """Serve the page of the results in a folder, and return after Ctrl-C.

    Args:
        path: the folder.
        port: where; 0 for any that is free.
        browser: open it there.
        told: is called with the address once it answers.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `application`.
        OSError: when the port is not free.
    """
    app = application(path)
    import uvicorn

    listening = _listening(port)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    told(address)
    if browser:
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=1
        )
    )
    with contextlib.suppress(KeyboardInterrupt), listening:
        server.run([listening])


def _listening(port: int) -> socket.socket:
    """A socket that takes connections of this machine alone; they wait until the server asks for them."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was left a moment ago
    try:
        found.bind((HOST, port))
        found.listen()
    except OSError as problem:
        found.close()
        raise OSError(
            f"port {port} cannot be had ({problem.strerror}): choose another --port, or 0 for any that is free"
        ) from None
    return found
