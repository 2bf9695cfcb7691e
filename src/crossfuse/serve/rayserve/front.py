"""In front of Serve's routes, in its HTTP proxy: who receives bodies, lets clients take turns,
counts what is not answered yet, refuses all that is new once the server is to stop, and words what
Serve itself would say.

Serve would hold a place for each request whose body is still on its way. So it hears of requests
when they are whole, and of no header that is meant for itself.

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
import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfuse.serve.limits import Limits
from crossfuse.serve.rayserve.arrivals import STOPS, Arrivals, Gone, Refused
from crossfuse.serve.rayserve.turns import Turn, Turns

if TYPE_CHECKING:
    from crossfuse.serve.rayserve.options import ServeOptions

__all__ = ["KEY", "SHARES", "Front", "Shares", "environment", "middlewares", "open_requests"]

KEY = "CROSSFUSE_STOP_KEY"
"""Environment variable: what the one who may stop the server knows."""
SHARES = "CROSSFUSE_SHARES"
"""Environment variable: `Shares`, in JSON."""
_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Environment variable: where Serve's proxy learns of this module."""
_BATCHES = 4
"""Batches of each replica that Serve has at once."""
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
_SERVES = {
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}
"""Headers with which clients would tell Serve itself what to do."""
_REQUEST_ID = b"x-request-id"
_FIT_ID = re.compile(rb"[!-~]{1,128}")
_BUSY_SECONDS = 5.0
_UNREAD_SECONDS, _UNREAD_BYTES = 2.0, 64 << 20
"""What is read of a refused request's body: a client that still writes would not read why."""


@dataclass(frozen=True)
class Shares:
    """What clients share.

    Args:
        limits: of a request, and of those that wait.
        at_once: requests that Serve has; others wait in front of it, where clients take turns.
        seconds: that a request may wait for its turn.
    """

    limits: Limits = field(default_factory=Limits)
    at_once: int = 256
    seconds: float = 60.0

    def to_text(self) -> str:
        """In JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Shares:
        """From JSON."""
        data = json.loads(text)
        return cls(**{**data, "limits": Limits(**data["limits"])})


def environment(options: ServeOptions) -> dict[str, str]:
    """Variables of Serve's processes: where this module is, a new key, and what clients share."""
    replicas = max(options.replicas, options.max_replicas)
    at_once = _BATCHES * options.batch_size * replicas
    return {
        _CALLBACK: f"{__name__}:middlewares",
        KEY: secrets.token_hex(32),
        SHARES: Shares(options.limits, at_once, options.timeout_s).to_text(),
    }


def middlewares() -> list[Middleware]:
    """What Serve's proxy puts around its application."""
    text = os.environ.get(SHARES)
    shares = Shares() if text is None else Shares.of_text(text)
    return [Middleware(Front, key=os.environ.get(KEY, ""), shares=shares)]


class Front:
    """An ASGI application around another one.

    Args:
        app: Serve's proxy.
        key: of the one that may stop the server; nobody may without.
        shares: of clients.
    """

    def __init__(self, app: ASGIApp, key: str, shares: Shares | None = None) -> None:
        self._app = app
        self._key = key.encode()
        self._open = 0
        self._stopping = False
        self._shares = shares or Shares()
        self._arrivals = Arrivals(self._shares.limits)
        self._turns = Turns(self._shares.at_once, self._shares.limits.max_queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the application do so."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == _PATH and self._may_stop(dict(scope["headers"])):
            if not self._stopping:
                self._stopping = True
                self._arrivals.stop()
            await _answer(send, 200, {"open": self._open})
        elif self._stopping:
            await _read_body(receive)
            await _answer(send, 503, {"error": STOPS}, _CLOSE)
        else:
            self._open += 1
            try:
                await self._received({**scope, "headers": _for_serve(scope)}, receive, send)
            except Gone:
                pass
            except Refused as refusal:
                await _answer(send, refusal.status, {"error": str(refusal)}, _CLOSE)
            finally:
                self._open -= 1

    async def _received(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request whose body is here."""
        if not scope["path"].startswith("/"):
            raise Refused(404, "a path begins with a slash.")
        with self._arrivals.counted() as body:
            whole = await self._arrivals.receive(body, scope, receive)
            again = _Again(whole, receive)
            try:
                if scope["method"] == "POST":
                    await self._in_turn(scope, again, send)
                else:
                    await self._app(scope, again, _Worded(send, self.is_stopping))
            finally:
                again.gone.cancel()

    async def _in_turn(self, scope: Scope, again: _Again, send: Send) -> None:
        address, _ = scope.get("client") or ("", 0)
        turn = Turn(self._turns, address)
        try:
            let_in = await turn.come(again.gone, self._shares.seconds)
            if let_in:
                await self._app(scope, again, _Worded(send, self.is_stopping, turn.end))
            elif let_in is not None:
                most = self._shares.limits.max_queue
                raise Refused(503, f"the queue is full: {most} requests wait. Try again later.")
            elif not again.gone.done():
                raise Refused(504, f"no answer within {self._shares.seconds:g} s.")
        finally:
            turn.end()

    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    def _may_stop(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(_HEADER.encode(), b"")
        return bool(self._key) and hmac.compare_digest(given, self._key)


class _Again:
    """A body that is here, to be received once more; then what comes after it.

    Attributes:
        gone: is done when the client is not there any more.
    """

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self.gone: asyncio.Future[Message] = asyncio.ensure_future(receive())

    async def __call__(self) -> Message:
        message, self._body = self._body, None
        return await asyncio.shield(self.gone) if message is None else message


def _nothing() -> None:
    """There is nothing to be done."""


class _Worded:
    """Sends an answer on; one that Serve itself gives becomes ours.

    Args:
        send: to the client.
        is_stopping: whether the connection ends with the answer.
        begun: is called when the answer begins.
    """

    def __init__(
        self, send: Send, is_stopping: Callable[[], bool], begun: Callable[[], None] = _nothing
    ) -> None:
        self._send = send
        self._is_stopping = is_stopping
        self._begun = begun
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun()
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


def _for_serve(scope: Scope) -> list[tuple[bytes, bytes]]:
    """A request's headers without those that tell Serve what to do, and with an identity that can
    be written into a log."""
    kept = []
    for name, value in scope["headers"]:
        if name.replace(b"_", b"-") in _SERVES:
            continue
        if name == _REQUEST_ID and not _FIT_ID.fullmatch(value):
            value = uuid.uuid4().hex.encode()
        kept.append((name, value))
    return kept


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

    Raises:
        TimeoutError: somebody is there, and is too busy to answer.
    """
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    connection = http.client.HTTPConnection(everywhere.get(host, host), port, timeout=_BUSY_SECONDS)
    try:
        connection.request("POST", _PATH, headers={_HEADER: key})
        answer = connection.getresponse()
        return int(json.loads(answer.read())["open"]) if answer.status == 200 else None
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
