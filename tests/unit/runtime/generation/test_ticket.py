"""Tickets: who waits for a sequence sees its tokens, its end, and what went wrong."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.generation.results import Finished, gathered
from crossfuse.runtime.generation.ticket import Ticket, Token

WHOLE = gathered([Finished(np.array([1, 5, 6]), 1, np.float32([-1, -2]), -3.0, True)], 0)
TOKENS = [Token(5, -1.0), Token(6, -2.0)]


def test_tokens_come_one_by_one_and_then_the_whole() -> None:
    ticket, seen = Ticket(), []
    thread = threading.Thread(target=lambda: seen.extend(ticket))
    thread.start()
    for token in TOKENS:
        ticket.add(token)
        time.sleep(0.01)
    assert not ticket.done
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0.01)
    ticket.finish(WHOLE)
    thread.join(5)
    assert seen == TOKENS
    assert ticket.done
    assert ticket.result() is WHOLE
    assert list(ticket) == [], "each token is given once"


def test_what_is_there_is_taken_without_waiting() -> None:
    ticket = Ticket()
    assert ticket.take() == []
    ticket.add(TOKENS[0])
    ticket.add(TOKENS[1])
    ticket.finish(InputError("no token may come next"))
    assert ticket.take() == TOKENS
    for ask in (ticket.take, ticket.result, lambda: list(ticket)):
        with pytest.raises(InputError, match="no token may come next"):
            ask()


def test_a_cancelled_one_ends_for_who_waits() -> None:
    ticket, seen = Ticket(), []
    thread = threading.Thread(target=lambda: seen.extend(ticket))
    thread.start()
    ticket.add(TOKENS[0])
    ticket.cancel()
    thread.join(5)
    assert (seen, ticket.done, ticket.cancelled) == (TOKENS[:1], True, True)
    ticket.finish(WHOLE)
    with pytest.raises(InputError, match="was cancelled"):
        ticket.result()
    late = Ticket()
    late.finish(WHOLE)
    late.cancel()
    assert not late.cancelled
    assert late.result() is WHOLE


def test_who_is_to_be_told_and_is_gone_cancels() -> None:
    told: list[int] = []
    ticket = Ticket(lambda: told.append(1))
    ticket.add(TOKENS[0])
    ticket.finish(WHOLE)
    assert len(told) == 2

    def gone() -> None:
        raise RuntimeError("the loop is closed")

    ticket = Ticket(gone)
    ticket.add(TOKENS[0])
    assert ticket.cancelled
    ticket.add(TOKENS[1])


def test_an_engine_may_tell_when_a_step_is_done() -> None:
    told: list[bool] = []
    later: list[Ticket] = []
    ticket = Ticket(lambda: told.append(ticket.done), later.append)
    ticket.add(TOKENS[0])
    ticket.finish(WHOLE)
    assert (told, later) == ([], [ticket, ticket])
    ticket.tell()
    assert told == [True]
    ticket.cancel()
    assert not ticket.cancelled
