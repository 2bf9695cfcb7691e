"""In front of Serve's routes, in its HTTP proxy: who counts what is not answered yet, refuses all
that is new once the server is to stop, and words what Serve itself would say.

Serve takes an application's route away before it takes the listening socket away, and answers 404
in between. So the one that stops the server tells its proxy first, over HTTP and with a key that
both find in their environment.
"""

from __future__ import annotations

import asyncio
import hmac
import http.client
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CALLBACK", "KEY", "Front", "middlewares", "open_requests"]

KEY = "CROSSFUSE_STOP_KEY"
"""Environment variable: what the one who may stop the server knows."""
CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares"}
"""Where Serve's proxy learns of this module."""
_PATH = "/-/crossfuse/stop"
_HEADER = "x-crossfuse-key"
_JSON = b"application/json"
_WORDS = {
    404: (503, "the server has no model now. Try again later."),
    408: (504, "no answer in time."),
    500: (500, "the server failed; its log says why."),
    503: (503, "the server is busy. Try again later."),
}
"""Statuses of Serve's own answers, and what clients get in their place."""
_CLOSE = [(b"connection", b"close"), (b"retry-after", b"1")]
_UNREAD_SECONDS, _UNREAD_BYTES = 2.0, 64 << 20
"""What is read of a refused request's body: a client that still writes would not read why."""


def middlewares() -> list[Middleware]:
    """What Serve's proxy puts around its application."""
    return [Middleware(Front, key=os.environ.get(KEY, ""))]


class Front:
    """An ASGI application around another one.

    Args:
        app: Serve's proxy.
        key: of the one that may stop the server; nobody may without.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()
        self._open = 0
        self._stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the application do so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == _PATH and self._may_stop(dict(scope["headers"])):
            self._stopping = True
            await _answer(send, 200, {"open": self._open})
        elif self._stopping:
            await _read_body(receive)
            await _answer(send, 503, {"error": "the server is shutting down."}, _CLOSE)
        else:
            self._open += 1
            try:
                await self._app(scope, receive, _Worded(send, self.is_stopping))
            finally:
                self._open -= 1

    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    def _may_stop(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(_HEADER.encode(), b"")
        return bool(self._key) and hmac.compare_digest(given, self._key)


class _Worded:
    """Sends an answer on; one that Serve itself gives becomes ours."""

    def __init__(self, send: Send, is_stopping: Callable[[], bool]) -> None:
        self._send = send
        self._is_stopping = is_stopping
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
            if message["status"] in _WORDS and not kind.startswith(_JSON):
                self._replaced = True
                status, text = _WORDS[message["status"]]
                more = _CLOSE if status == 503 else []
                await _answer(self._send, status, {"error": text}, more)
                return
            if self._is_stopping():
                message = {**message, "headers": [*headers, _CLOSE[0]]}
        if not self._replaced:
            await self._send(message)


async def _read_body(receive: Receive) -> None:
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_UNREAD_SECONDS):
            while size < _UNREAD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


async def _answer(
    send: Send,
    status: int,
    data: Mapping[str, object],
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:
    body = json.dumps(data).encode()
    headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + (more or [])})
    await send({"type": "http.response.body", "body": body})


def open_requests(host: str, port: int, key: str) -> int | None:
    """Let the proxy at an address refuse what is new.

    Returns:
        how many requests are not answered yet; None where nobody is there who knows the key.
    """
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    connection = http.client.HTTPConnection(everywhere.get(host, host), port, timeout=5)
    try:
        connection.request("POST", _PATH, headers={_HEADER: key})
        answer = connection.getresponse()
        return int(json.loads(answer.read())["open"]) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
