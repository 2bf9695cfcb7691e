"""`GenerationEngine`: many sequences at once over one session, by a thread that computes a step of
all of them at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from crossfuse.core.foreign import door, own
from crossfuse.core.processes import require_own_process
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.growing import Choices, growing
from crossfuse.runtime.generation.prepared import scoring_output
from crossfuse.runtime.generation.processors import Hook
from crossfuse.runtime.generation.scheduler import Scheduler
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.ticket import Ticket
from crossfuse.runtime.session import Session
from crossfuse.runtime.slot_checks import require_slots

__all__ = ["GenerationEngine"]


class GenerationEngine:
    """Generates sequences that come at any time, each over a context of its own, beside each other:
    each comes out as it would alone. Safe to use from several threads.

    Sequences wait in a queue for a slot, join with their prompts, and leave when they have ended or
    were cancelled; each step computes all that are there. Close it, or use it as a context manager.

    Args:
        session: of a bundle that decodes; it stays open.
        slots: how many sequences there can be at once.
        queue: how many more may wait.
        like: a context; the memory of the slots is taken for those of its sizes at once, and not
            with the first sequence.
        output: as of :func:`runtime.generate`.

    Raises:
        InputError: numbers that aren't positive, or a bundle whose sequences can't stand side by
            side.
    """

    @door
    def __init__(
        self,
        session: Session,
        slots: int = 8,
        *,
        queue: int = 64,
        like: Context | None = None,
        output: str | None = None,
    ) -> None:
        for name, number in (("slots", slots), ("queue", queue)):
            if not isinstance(number, int) or number < 1:
                raise InputError("a number has to be positive", where=name, got=repr(number))
        require_slots(session, like)
        self.session = session
        self._scheduler = Scheduler(session, slots, queue, scoring_output(session, output))
        if like is not None:
            self._scheduler.make(like)
        self._wake, self._closed = threading.Condition(), False
        self._turn, self._next = threading.Lock(), threading.Lock()
        self._news: dict[Ticket, None] = {}
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="crossfuse generation", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes of the slots' states and contexts; 0 before they are taken."""
        slots = self._scheduler.slots
        return 0 if slots is None else slots.nbytes

    @property
    def live(self) -> int:
        """How many sequences are in a slot."""
        return self._scheduler.live

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return self._scheduler.waiting

    @door
    def submit(
        self,
        context: Context,
        prompt: object = None,
        *,
        notify: Callable[[], None] | None = None,
        logits_hook: Hook | None = None,
        **settings: Any,
    ) -> Ticket:
        """Generate a sequence over a context; it begins when a slot is free.

        Args:
            context: one, of the same session.
            prompt: ids; where omitted, the start token that the bundle's settings name.
            notify: is called, in the engine's thread, behind a step that gave a token, or the end.
            logits_hook, settings: as of :func:`runtime.generate`, but for beams and several
                sequences per prompt.

        Raises:
            QueueFullError: as many sequences wait as may.
            InputError: a prompt that doesn't fit or is too long, settings that are unknown or
                wrong, a context of another bundle, or an engine that is closed.
        """
        require_own_process(self._process)
        require_slots(self.session, context)
        chosen = GenerationSettings.of(settings, self.session.generation)
        asked = any(settings.get(name) is not None for name in ("max_new_tokens", "max_length"))
        ticket = Ticket(notify, self._changed)
        choices = Choices.of(chosen, logits_hook)
        one = growing(self.session, context, prompt, ticket, choices, asked=asked)
        with self._wake:
            if self._closed:
                raise InputError("the engine is closed", do="Make another one")
            self._scheduler.put(one)
            self._wake.notify_all()
        return ticket

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Between two steps: for work that would take the cores from them, such as encoding a
        context. It waits for no more than one step, and the next one waits for it."""
        with self._next:
            self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """Stop: sequences that are not done end with an error. Closing twice is fine."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()

    def __enter__(self) -> GenerationEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        """Step by step, while there is something to do."""
        scheduler = self._scheduler
        while True:
            with self._wake:
                while scheduler.idle and not self._closed:
                    self._wake.wait()
                if self._closed:
                    break
            try:
                with self.aside():
                    scheduler.tick()
            except Exception as error:  # noqa: BLE001 -- nobody may wait for ever, whatever it is
                scheduler.end(own(error))
            self._tell()
        scheduler.end(InputError("the engine was closed"))
        self._tell()

    def _changed(self, ticket: Ticket) -> None:
        self._news[ticket] = None

    def _tell(self) -> None:
        """Tell all for whom a step had something, each once: who is told while others still get
        their tokens takes time from these."""
        news, self._news = self._news, {}
        for ticket in news:
            ticket.tell()
