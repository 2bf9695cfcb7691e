"""`Ticket`: one sequence that an engine generates beside others; its tokens as they come, and the
whole in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from crossfuse.errors import InputError
from crossfuse.runtime.generation.results import Generated

__all__ = ["Ticket", "Token"]


class Token(NamedTuple):
    """One token, and its log-probability in the distribution that it was chosen from."""

    token: int
    log_prob: float


class Ticket:
    """A sequence that is being generated. Any thread may read it, or cancel it.

    Args:
        notify: is called, in the engine's thread, when there is something new; it must not block.
        later: gets the ticket then, in place of the call: for an engine that calls `tell` when a
            whole step is done.
    """

    def __init__(
        self,
        notify: Callable[[], None] | None = None,
        later: Callable[[Ticket], None] | None = None,
    ) -> None:
        self._notify, self._later = notify, later
        self._changed = threading.Condition()
        self._tokens: list[Token] = []
        self._read = 0
        self._cancelled = False
        self._outcome: Generated | BaseException | None = None

    @property
    def done(self) -> bool:
        """Nothing more comes."""
        return self._outcome is not None

    @property
    def cancelled(self) -> bool:
        """Nobody wants it any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Want no more of it: its slot is free at the next step. Where it is done, nothing
        changes."""
        with self._changed:
            if self._outcome is None:
                self._cancelled = True
                self._outcome = InputError("the generation was cancelled")
            self._changed.notify_all()

    def take(self) -> list[Token]:
        """The tokens since the last call, without waiting.

        Raises:
            CrossfuseError: what went wrong, behind all tokens.
        """
        with self._changed:
            new = self._tokens[self._read :]
            self._read += len(new)
            if not new and isinstance(self._outcome, BaseException) and not self._cancelled:
                raise self._outcome
            return new

    def __iter__(self) -> Iterator[Token]:
        """The tokens as they come; those of one that is cancelled end.

        Raises:
            CrossfuseError: what went wrong, behind all tokens.
        """
        while True:
            with self._changed:
                while self._read == len(self._tokens) and self._outcome is None:
                    self._changed.wait()
            new = self.take()
            yield from new
            if not new:
                return

    def result(self, timeout: float | None = None) -> Generated:
        """The whole sequence, when it has ended.

        Raises:
            CrossfuseError: what went wrong, or that it was cancelled.
            TimeoutError: it takes longer than so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._outcome is not None, timeout):
                raise TimeoutError
            if isinstance(self._outcome, Generated):
                return self._outcome
            assert self._outcome is not None
            raise self._outcome

    def add(self, token: Token) -> None:
        """One more token; for the engine."""
        with self._changed:
            self._tokens.append(token)
            self._changed.notify_all()
        self._changes()

    def finish(self, outcome: Generated | BaseException) -> None:
        """The end, or what went wrong; for the engine."""
        with self._changed:
            if self._outcome is None:
                self._outcome = outcome
            self._changed.notify_all()
        self._changes()

    def _changes(self) -> None:
        if self._later is None:
            self.tell()
        else:
            self._later(self)

    def tell(self) -> None:
        """Tell who waits that there is something new."""
        if self._notify is None:
            return
        try:
            self._notify()
        except Exception:  # noqa: BLE001 -- who listens is gone, whatever its end looked like
            self._notify = None
            self.cancel()
