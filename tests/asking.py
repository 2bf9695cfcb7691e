"""Clients in threads of their own, who ask until a ``with`` ends."""

from __future__ import annotations

import threading
from typing import Self

__all__ = ["Asking"]


class Asking:
    """Runs `ask` in `callers` threads from the beginning of a ``with`` to its end.

    Attributes:
        callers: how many.
    """

    callers = 1

    def ask(self, number: int) -> None:
        """Ask while `goes_on`; ``number`` is the thread's."""
        raise NotImplementedError

    @property
    def goes_on(self) -> bool:
        """Whether the ``with`` has not ended."""
        return not self._stop.is_set()

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self.ask, args=(number,)) for number in range(self.callers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
