"""The page on this machine: served to whoever knows its address, which holds a random token, and to nobody else.

It listens on 127.0.0.1 only. A request is answered only if

- its `Host` is this server, so that no name that an attacker's DNS leads here gets through (DNS rebinding);
- its `Origin`, where there is one, is this server too, and so is what `Sec-Fetch-Site` says: no other page can ask, but
  a link that leads here may be followed;
- its path begins with the token, which no cookie carries: a page that is reloaded still has it, others never had.

What runs is the command of a point of the frontier; a request names the point and where to write, never words of a
command.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pcns_onnx.api.explore.job import Job
from pcns_onnx.errors import InputError
from pcns_onnx.report.explore.page import command_of, exploration_page
from pcns_onnx.report.explore.record import Exploration
from pcns_onnx.report.html.page import require_modules

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_MOST = 1 << 16
"""Bytes of a request's body."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


def check_servable() -> None:
    """Raise `UnsupportedError` where a library is missing: before a run, not behind it."""
    require_modules(("starlette", "uvicorn", "jinja2"), "serving a page", "explore")


@dataclass
class PageServer:
    """One exploration on one port. `runs`: whether its commands can be run as they are."""

    exploration: Exploration
    runs: bool = True
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    job: Job = field(default_factory=Job)

    def __post_init__(self) -> None:
        self.socket = _listening(self.port)
        self.port = self.socket.getsockname()[1]
        self._page = exploration_page(self.exploration, served=True, runs=self.runs).encode("utf-8", "replace")

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Answer until SIGINT or SIGTERM; a run that goes on is cancelled then."""
        uvicorn: Any = import_module("uvicorn")
        config = uvicorn.Config(self.app(), log_level="error", access_log=False, lifespan="on", ws="none")
        uvicorn.Server(config).run(sockets=[self.socket])

    def close(self) -> None:
        """End a run, and listen no more."""
        self.job.close()
        self.socket.close()

    # -- the application -----------------------------------------------------------------------

    def app(self) -> Callable[[_Scope, _Receive, _Send], Awaitable[None]]:
        """The guard, and behind it the few paths that there are."""
        applications, routing = import_module("starlette.applications"), import_module("starlette.routing")
        routes = [
            routing.Route("/", self._show, methods=["GET"]),
            routing.Route("/status", self._status, methods=["GET"]),
            routing.Route("/run", self._start, methods=["POST"]),
            routing.Route("/cancel", self._cancel, methods=["POST"]),
        ]
        inner = applications.Starlette(routes=[routing.Mount(f"/{self.token}", routes=routes)], lifespan=self._lifespan)

        async def guarded(scope: _Scope, receive: _Receive, send: _Send) -> None:
            refusal = self._refusal(scope) if scope["type"] == "http" else None
            application = inner if refusal is None else _answer({"error": refusal}, 403)
            await application(scope, receive, send)

        return guarded

    def _refusal(self, scope: _Scope) -> str | None:
        """Why a request is not answered, None where it is."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = [f"{name}:{self.port}".encode() for name in _NAMES]
        if len(headers.get(b"host", [])) != 1 or headers[b"host"][0].lower() not in hosts:
            return "this server has another name"
        own = {b"http://" + host for host in hosts}
        if not own.issuperset(headers.get(b"origin", [])):
            return "another page may not ask"
        follows = scope["method"] == "GET" and headers.get(b"sec-fetch-mode") == [b"navigate"]
        if not follows and not {b"same-origin", b"none"}.issuperset(headers.get(b"sec-fetch-site", [])):
            return "another page may not ask"
        first = scope["path"].removeprefix("/").partition("/")[0]
        if not secrets.compare_digest(first.encode("utf-8", "replace"), self.token.encode()):
            return "the address is not complete: open the one that was printed"
        return None

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        yield
        self.job.close()

    async def _show(self, _: Request) -> Response:
        responses = import_module("starlette.responses")
        response: Response = responses.Response(self._page, media_type="text/html; charset=utf-8", headers=_HEADERS)
        return response

    async def _status(self, _: Request) -> Response:
        return _answer(self.job.described())

    async def _cancel(self, request: Request) -> Response:
        self.job.cancel()
        return _answer(self.job.described())

    async def _start(self, request: Request) -> Response:
        try:
            index, output = _wanted(await _body(request), len(self.exploration.points))
            if not self.runs:
                raise InputError("it was explored without samples: give --data to run anything")
            line = command_of(self.exploration.points[index], output)
            self.job.start(line, index, output)
        except InputError as error:
            return _answer({"error": str(error)}, 400)
        return _answer(self.job.described())


def _answer(record: dict[str, Any], status: int = 200) -> Response:
    responses = import_module("starlette.responses")
    response: Response = responses.JSONResponse(record, status_code=status, headers=_HEADERS)
    return response


async def _body(request: Request) -> bytes:
    """What was sent; raises `InputError` where that is too much, or no JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InputError("send JSON")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST:
            raise InputError("that is too much")
    return body


def _wanted(body: bytes, count: int) -> tuple[int, str]:
    """The point and where to write; raises `InputError`."""
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("send JSON") from None
    if not isinstance(wanted, dict):
        raise InputError("send the point and the output")
    index, output = wanted.get("point"), wanted.get("output")
    if type(index) is not int or not 0 <= index < count:
        raise InputError("there is no such point")
    if not isinstance(output, str) or not output.strip():
        raise InputError("say where to write the model")
    return index, output


def _listening(port: int) -> socket.socket:
    """A socket of this machine only; raises `InputError`."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)  # before the address is printed: whoever is quick has to wait, and is not refused
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(f"cannot listen on port {port}: {error}; leave --port out to take a free one") from None
    return listening
