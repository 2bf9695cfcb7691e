"""`News`: what an engine's thread tells a coroutine of a stream, and `pause`: how long tokens are
gathered to one event."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from crossfuse.serve.generating import Stream

__all__ = ["News", "pause"]

_SHORTEST, _LONGEST = 0.05, 0.5
_EVENTS = 50.0
"""Events in a second for each core. One takes three processes about 3 ms of a core together, so a
seventh of the cores is theirs at most, and what is left computes tokens."""


def pause(streams: int, cores: float) -> float:
    """Seconds between two events of a stream, beside so many others.

    The more streams a replica computes, the more tokens are one event. A token that comes later
    than this behind the one before it is an event of its own, at once.
    """
    return min(_LONGEST, max(_SHORTEST, streams / (_EVENTS * max(1.0, cores))))


class News:
    """Whether a stream has something to take; for one coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._there, self._last = asyncio.Event(), asyncio.Event()
        self._stream: Stream | None = None

    def notify(self) -> None:
        """There may be something; from any thread."""
        self._loop.call_soon_threadsafe(self._tell)

    def of(self, stream: Stream) -> None:
        """It is this stream that is told of."""
        self._stream = stream
        self._tell()

    async def come(self) -> None:
        """Wait until there may be something that was not there at the last call, or nothing more
        comes."""
        if not self._last.is_set():
            await self._there.wait()
            self._there.clear()

    async def last(self) -> None:
        """Wait until nothing more comes."""
        await self._last.wait()

    async def gather(self, seconds: float) -> None:
        """Wait so long, or until nothing more comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.last()

    def _tell(self) -> None:
        self._there.set()
        if self._stream is not None and self._stream.done:
            self._last.set()
