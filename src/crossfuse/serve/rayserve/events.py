"""Answers that come piece by piece, as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from crossfuse.core.terminal import shown_traceback
from crossfuse.errors import CrossfuseError
from crossfuse.serve.rayserve.routes import Refusal, status_of

__all__ = ["EventStream"]

_LOG = logging.getLogger("ray.serve")

Events = AsyncGenerator[dict[str, Any], None]


class EventStream(StreamingResponse):
    """Events as they come. What goes wrong behind the first of them is an event of its own.

    Args:
        first: an event that is there.
        events: the others; closed at the end, or when the client is gone.
        about: stands in each event.
        done: is told the status that the request is counted as, once.
    """

    def __init__(
        self,
        first: Mapping[str, Any],
        events: Events,
        about: Mapping[str, Any],
        done: Callable[[int], None],
    ) -> None:
        self._events, self._about, self._done = events, about, done
        self._counted = 499
        super().__init__(
            self._lines(first),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._done(self._counted)

    async def _lines(self, first: Mapping[str, Any]) -> AsyncIterator[bytes]:
        yield self._line(first)
        try:
            async for event in self._events:
                yield self._line(event)
            self._counted = 200
        except (Refusal, CrossfuseError) as error:
            self._counted = status_of(error)
            yield self._line({"error": str(error)})
        except Exception as error:  # noqa: BLE001 -- the client must not see it, the log must
            self._counted = 500
            _LOG.error("a stream failed unexpectedly\n%s", shown_traceback(error))
            yield self._line({"error": "the server failed; its log says why."})

    def _line(self, event: Mapping[str, Any]) -> bytes:
        return b"data: " + json.dumps({**self._about, **event}).encode() + b"\n\n"
