"""Bodies of requests as they arrive, before anything else of the server hears of them: within their
limits of size, of time, and of what all of them may take together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Receive, Scope

from crossfuse.serve.limits import Limits

__all__ = ["STOPS", "Arrivals", "Body", "Gone", "Refused"]

STOPS = "the server is shutting down."

_SMALL = 1 << 20
"""A body up to this size is never refused because of others."""
_TOGETHER = 8
"""What bodies may take together, in multiples of the largest."""
_LAST_SECONDS = 1.0
"""For bodies that are arriving when the server is told to stop."""
_DIGITS = 15


class Refused(Exception):  # noqa: N818 -- it isn't an error of the program
    """A body that is not taken: the answer's status and what it says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Gone(Exception):  # noqa: N818 -- it isn't an error of the program
    """The client went away before its body was whole."""


class Body:
    """A body, and how much of it is counted."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0


class Arrivals:
    """Receives bodies; for one event loop.

    Args:
        limits: of one body.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._together = max(_TOGETHER * limits.max_bytes, 64 * _SMALL)
        self._held = 0
        self._ends: set[asyncio.Timeout] = set()
        self._stopping = False

    def stop(self) -> None:
        """Bodies that are arriving get a second more."""
        self._stopping = True
        soon = asyncio.get_running_loop().time() + _LAST_SECONDS
        for end in self._ends:
            end.reschedule(min(soon, end.when() or soon))

    @contextmanager
    def counted(self) -> Iterator[Body]:
        """A body to be received, which counts until its request is answered."""
        body = Body()
        try:
            yield body
        finally:
            self._held -= body.size

    async def receive(self, body: Body, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            Refused: it is too large, too slow, or not what its head says.
            Gone: its client is not there any more.
        """
        self._check_head(scope)
        try:
            async with asyncio.timeout(self._limits.body_seconds) as end:
                self._ends.add(end)
                try:
                    await self._parts(body, receive)
                finally:
                    self._ends.discard(end)
        except TimeoutError as error:
            if self._stopping:
                raise Refused(503, STOPS) from error
            seconds = self._limits.body_seconds
            raise Refused(408, f"the body did not come within {seconds:g} s.") from error
        whole = b"".join(body.parts)
        body.parts.clear()
        return whole

    def _check_head(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not (value.isdigit() and len(value) <= _DIGITS):
                    raise Refused(400, "content-length is no number of bytes.")
                if int(value) > self._limits.max_bytes:
                    raise self._too_large()

    async def _parts(self, body: Body, receive: Receive) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Gone
            part: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            body.size += len(part)
            self._held += len(part)
            if body.size > self._limits.max_bytes:
                raise self._too_large()
            if body.size > _SMALL and self._held > self._together:
                raise Refused(503, "too many large bodies are here. Try again later.")
            body.parts.append(part)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._limits.max_bytes} bytes.")
