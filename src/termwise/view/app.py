"""What the local page answers: addresses, and what a browser may do with them.

Nothing is written. An address names a row by its number, a script by its hash, and nothing by a path; who asks under another
name than this machine's own (a site that has its name point here) is refused, and no other site may read or frame an answer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from termwise.report.page import scripts

from . import pages
from .browsed import Browsed, Unreadable
from .pages import script_name
from .query import BadQuery, Query

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "application"]

T = TypeVar("T")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""With every answer."""


def application(path: str | Path) -> Starlette:
    """The local page of the results in a folder, for any ASGI server that listens to this machine alone.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError, ValueError: as `termwise.engine.Results`.
        ImportError: without Starlette or pyarrow, with the line that installs them.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise ImportError('the local page needs Starlette and uvicorn: pip install "termwise[view]"') from None

    browsed = Browsed(path)

    def there(content: T | None) -> T:
        if content is None:
            raise HTTPException(404)
        return content

    def rows(request: Request) -> Response:
        try:
            query = Query.parse(request.query_params.multi_items())
            return HTMLResponse(browsed.answer(lambda b: pages.rows(b, query)))
        except BadQuery as problem:
            said = str(problem)
            return HTMLResponse(browsed.answer(lambda b: pages.rows(b, Query(), said, request.query_params)), 400)

    def failed(request: Request) -> Response:
        query = Query.parse(request.query_params.multi_items())
        return HTMLResponse(browsed.answer(lambda b: pages.failed(b, query)))

    def mean(request: Request) -> Response:
        query = Query.parse(request.query_params.multi_items())
        return HTMLResponse(there(browsed.answer(lambda b: pages.mean_of(b, query))))

    def row(request: Request) -> Response:
        query, index = Query.parse(request.query_params.multi_items()), request.path_params["index"]
        return HTMLResponse(there(browsed.answer(lambda b: pages.row(b, query, index))))

    def row_alone(request: Request) -> Response:
        index = request.path_params["index"]
        content = there(browsed.answer(lambda b: pages.row_alone(b, index)))
        return HTMLResponse(content, headers=_as_file(f"row-{index}.html"))

    def row_file(request: Request) -> Response:
        index = request.path_params["index"]
        content = there(browsed.answer(lambda b: _saved(b, index)))
        return Response(content, media_type="application/octet-stream", headers=_as_file(f"row-{index}.safetensors"))

    def script(request: Request) -> Response:
        code = there(known.get(request.path_params["name"]))
        return Response(code, media_type="text/javascript", headers={"Cache-Control": "max-age=31536000, immutable"})

    def bad(request: Request, problem: Exception) -> Response:
        return HTMLResponse(pages.complaint("This cannot be asked", str(problem)), 400)

    def gone(request: Request, problem: Exception) -> Response:
        text = f"{problem}. They were there when this page was started."
        return HTMLResponse(pages.complaint("The results are gone", text), 503)

    def unreadable(request: Request, problem: Exception) -> Response:
        return HTMLResponse(pages.complaint("This row cannot be opened", f"{problem}."), 500)

    def nothing(request: Request, problem: Exception) -> Response:
        text = "No page, and no row that has a decomposition to look at, has this address."
        return HTMLResponse(pages.complaint("There is nothing here", text), 404)

    known = {script_name(script): str(script["code"]) for script in scripts()}
    routes: list[tuple[str, Callable[[Request], Response]]] = [
        ("/", rows), ("/failed", failed), ("/mean", mean), ("/row/{index:int}", row), ("/row/{index:int}/page.html", row_alone),
        ("/row/{index:int}/row.safetensors", row_file), ("/script/{name}", script),
    ]  # fmt: skip
    return Starlette(
        routes=[Route(address, answer, methods=["GET"]) for address, answer in routes],
        middleware=[Middleware(_Headed), Middleware(TrustedHostMiddleware, ["127.0.0.1", "localhost"], www_redirect=False)],
        exception_handlers={404: nothing, BadQuery: bad, Unreadable: unreadable, FileNotFoundError: gone},
    )


class _Headed:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                names = {name for name, _ in message["headers"]}
                fresh = [] if b"cache-control" in names else [(b"cache-control", b"no-store")]
                message = {**message, "headers": [*message["headers"], *own, *fresh]}
            await send(message)

        await self.app(scope, receive, headed)


def _saved(browsed: Browsed, index: int) -> bytes | None:
    """The file of one decomposition, by way of a folder that is gone at once."""
    place = browsed.place(index)
    if place is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return browsed.opened(place).save(Path(folder) / "row.safetensors").read_bytes()


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
