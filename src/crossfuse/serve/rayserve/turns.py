"""Whose request is next: clients take turns, so a flood of one waits for itself.

There is a line for each address, and who is let in next comes from each line in turn. Where all
places are taken, the longest line loses its last, not the one who comes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Any

__all__ = ["Turn", "Turns"]


class Turns:
    """Places for requests; for one event loop.

    Args:
        at_once: requests that are let in and not answered yet.
        most: requests that are let in or wait.
    """

    def __init__(self, at_once: int, most: int) -> None:
        self.free = min(at_once, most)
        self._places = most - self.free
        self._lines: OrderedDict[str, deque[asyncio.Future[bool]]] = OrderedDict()
        self._waiting = 0

    def line_up(self, address: str) -> asyncio.Future[bool]:
        """Whether a request of this address is let in, once that is known."""
        mine: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.free:
            self.free -= 1
            mine.set_result(True)
        elif self._waiting < self._places or self._shortened(address):
            self._lines.setdefault(address, deque()).append(mine)
            self._waiting += 1
        else:
            mine.set_result(False)
        return mine

    def leave(self) -> None:
        """Give the place of a request that was let in to the next."""
        if not self._lines:
            self.free += 1
            return
        address, line = next(iter(self._lines.items()))
        mine = line.popleft()
        self._waiting -= 1
        if line:
            self._lines.move_to_end(address)
        else:
            del self._lines[address]
        mine.set_result(True)

    def forget(self, address: str, mine: asyncio.Future[bool]) -> None:
        """Take a request that nobody waits for any more out of its line."""
        line = self._lines.get(address, deque())
        with suppress(ValueError):
            line.remove(mine)
            self._waiting -= 1
            if not line:
                del self._lines[address]

    def _shortened(self, address: str) -> bool:
        """Whether the longest line lost its last for one of this address, whose own is shorter."""
        if not self._lines:
            return False
        longest = max(self._lines.values(), key=len)
        if len(longest) <= len(self._lines.get(address, ())) + 1:
            return False
        longest.pop().set_result(False)
        self._waiting -= 1
        return True


class Turn:
    """One request's."""

    def __init__(self, turns: Turns, address: str) -> None:
        self._turns = turns
        self._address = address
        self._mine = turns.line_up(address)
        self._ended = False

    async def come(self, gone: asyncio.Future[Any], seconds: float) -> bool | None:
        """Whether the request is let in; None where its client went away, or it took too long.

        Args:
            gone: is done when the client is not there any more.
            seconds: to wait.
        """
        either: set[asyncio.Future[Any]] = {self._mine, gone}
        await asyncio.wait(either, timeout=seconds, return_when="FIRST_COMPLETED")
        return self._mine.result() if self._mine.done() else None

    def end(self) -> None:
        """The request is answered, or given up; a second time nothing happens."""
        if self._ended:
            return
        self._ended = True
        if not self._mine.done():
            self._turns.forget(self._address, self._mine)
        elif self._mine.result():
            self._turns.leave()
