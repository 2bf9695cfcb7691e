"""`Scheduler`: which sequences are in a state's slots. Those that wait join, each step computes all
that are there, and who has ended or is not wanted any more leaves."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.foreign import own
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.runtime.apart import require_apart
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.growing import Growing, choose
from crossfuse.runtime.session import Session
from crossfuse.runtime.slots import Slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QueueFullError", "Scheduler"]


class QueueFullError(InputError):
    """As many sequences wait for a slot as may."""


class Scheduler:
    """Slots, and who waits for one. One thread calls `tick`; any may call `put`.

    Sequences join in the order in which they came. Where contexts have sizes of their own, those of
    another size wait until the slots are empty: memory is then taken for theirs.

    Args:
        session: of a bundle that decodes.
        count: slots.
        queue: how many may wait.
        output: the one that scores tokens.
    """

    def __init__(self, session: Session, count: int, queue: int, output: str) -> None:
        self.session, self.count, self.queue, self.output = session, count, queue, output
        self.slots: Slots | None = None
        self._waiting: deque[Growing] = deque()
        self._live: dict[int, Growing] = {}
        self._lock = threading.Lock()
        self._apart = False

    @property
    def waiting(self) -> int:
        """How many sequences wait for a slot."""
        return len(self._waiting)

    @property
    def live(self) -> int:
        """How many are in one."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._live

    def make(self, like: Context) -> Slots:
        """Take the memory of the slots, for contexts of one size; that of others is given back
        before.

        Raises:
            InputError: sequences that can't stand side by side, or change those beside them.
        """
        self.slots = None
        if not self._apart:
            require_apart(self.session, like)
            self._apart = True
        self.slots = Slots(self.session, like, self.count)
        return self.slots

    def put(self, one: Growing) -> None:
        """Let a sequence wait for a slot.

        Raises:
            QueueFullError: as many wait as may.
        """
        with self._lock:
            if len(self._waiting) >= self.queue:
                raise QueueFullError(
                    "the queue is full",
                    got=f"{len(self._waiting)} sequences wait",
                    expected=f"at most {self.queue}",
                    do="Try again later",
                )
            self._waiting.append(one)

    def tick(self) -> None:
        """One step of all sequences: who is not wanted leaves, who waits joins, and all get their
        next token. What goes wrong is told to those whom it concerns."""
        self._drop()
        if self.slots is not None and self._live and not self._waiting:
            moved = self.slots.compact()
            self._live = {moved.get(slot, slot): one for slot, one in self._live.items()}
        ready = list(self._live)
        self._join()
        if ready:
            try:
                self._step(ready)
            except Exception as error:  # noqa: BLE001 -- an engine's failure is told to who waits
                self._lose(own(error))

    def end(self, error: CrossfuseError) -> None:
        """Tell all that there will be no more."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for one in waiting:
            one.ticket.finish(error)
        self._lose(error)

    def _drop(self) -> None:
        with self._lock:
            if any(one.ticket.cancelled for one in self._waiting):
                self._waiting = deque(one for one in self._waiting if not one.ticket.cancelled)
        self._leave([slot for slot, one in self._live.items() if one.ticket.cancelled])

    def _leave(self, slots: Sequence[int]) -> None:
        if slots and self.slots is not None:
            self.slots.leave(slots)
        for slot in slots:
            del self._live[slot]

    def _join(self) -> None:
        """Give free slots to those that came first."""
        coming = self._next()
        if coming and not self._prefill(coming):
            # Whose fault it is shows when each joins alone.
            for one in coming:
                self._prefill([one])

    def _next(self) -> list[Growing]:
        """Those that can join now."""
        with self._lock:
            if not self._waiting:
                return []
            head = self._waiting[0].context
            fits = self.slots is not None and self.slots.fits(head)
            if not fits and self._live:
                return []
        if not fits:
            try:
                self.make(head)
            except Exception as error:  # noqa: BLE001 -- it concerns this one, whatever it is
                with self._lock:
                    refused = self._waiting.popleft()
                refused.ticket.finish(own(error))
                return []
        assert self.slots is not None
        found: list[Growing] = []
        with self._lock:
            room = len(self.slots.free)
            while self._waiting and len(found) < room:
                if not self.slots.fits(self._waiting[0].context):
                    break
                found.append(self._waiting.popleft())
        return found

    def _prefill(self, coming: Sequence[Growing]) -> bool:
        """Compute prompts, and choose their first tokens; whether they went well, or were told."""
        assert self.slots is not None
        try:
            slots, made = self.slots.join(
                [one.context for one in coming], [one.tokens for one in coming]
            )
        except Exception as error:  # noqa: BLE001 -- an engine's failure, too, is told to who waits
            if len(coming) > 1:
                return False
            coming[0].ticket.finish(own(error))
            return True
        self._live.update(zip(slots, coming, strict=True))
        self._choose(slots, np.array(made[self.output][:, -1], np.float32))
        return True

    def _step(self, ready: Sequence[int]) -> None:
        """Compute on the last tokens of sequences, and choose their next ones."""
        assert self.slots is not None
        try:
            made = self.slots.step({slot: self._live[slot].last for slot in ready})
        except InputError as error:
            if len(ready) > 1:
                # Whose fault it is shows when each goes on alone.
                for slot in ready:
                    self._step([slot])
            else:
                self._live[ready[0]].ticket.finish(error)
                self._leave(ready)
            return
        self._choose(ready, np.asarray(made[self.output][list(ready), -1], np.float32))

    def _lose(self, error: CrossfuseError) -> None:
        """Tell all that are in a slot that these are lost."""
        for one in self._live.values():
            one.ticket.finish(error)
        self._live.clear()
        self.slots = None

    def _choose(self, slots: Sequence[int], scores: NDArray[Any]) -> None:
        """Choose tokens; who is done leaves."""
        gone: list[int] = []

        def failed(one: Growing, error: CrossfuseError) -> None:
            one.ticket.finish(error)
            gone.append(of[id(one)])

        of = {id(self._live[slot]): slot for slot in slots}
        choose([self._live[slot] for slot in slots], scores, failed)
        for slot in slots:
            if slot not in gone and self._live[slot].complete:
                self._live[slot].ticket.finish(self._live[slot].whole())
                gone.append(slot)
        self._leave(gone)
