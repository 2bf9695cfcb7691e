"""When a stream's tokens are an event: at once, a while behind the last ones, or at the end."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse import InputError
from crossfuse.runtime.generation.results import Finished, Generated, gathered
from crossfuse.runtime.generation.ticket import Ticket, Token
from crossfuse.serve.generating import Stream
from crossfuse.serve.rayserve.news import News, pause

WHOLE = gathered([Finished(np.array([1, 5, 6]), 1, np.float32([-1, -2]), -3.0, True)], 0)


def test_the_more_streams_the_more_tokens_are_one_event() -> None:
    assert pause(1, 2) == pause(5, 2) == pause(0, 0.5) == 0.05
    assert pause(8, 2) == pytest.approx(0.08)
    assert pause(32, 2) == pytest.approx(0.32)
    assert pause(32, 16) == pytest.approx(0.05)
    assert pause(8, 0.25) == pause(8, 1) == pytest.approx(0.16)
    assert pause(1000, 2) == 0.5
    for streams in (1, 5, 20, 49):
        assert streams / pause(streams, 2) <= 100 + 1e-9, "events in a second"


@pytest.mark.parametrize("end", [WHOLE, InputError("no token may come next")])
@pytest.mark.parametrize("late", [True, False])
def test_a_wait_is_over_at_the_end(end: Generated | InputError, late: bool) -> None:
    """Also where the end came before it was known whose it is."""

    async def asked() -> None:
        news = News()
        ticket = Ticket(news.notify)
        stream = Stream(ticket, None)
        if not late:
            news.of(stream)

        def work() -> None:
            ticket.add(Token(5, -1.0))
            ticket.add(Token(6, -2.0))
            time.sleep(0.02)
            ticket.finish(end)

        thread = threading.Thread(target=work)
        begin = time.monotonic()
        thread.start()
        if late:
            await asyncio.to_thread(thread.join)
            news.of(stream)
        else:
            await news.come()
            assert not stream.done
        await news.gather(30)
        await news.last()
        assert stream.done
        assert not stream.ended
        await news.come()
        event = stream.take()
        assert event is not None
        assert event["tokens"] == [5, 6]
        # What went wrong comes behind the tokens: nobody waits for more.
        await news.come()
        assert time.monotonic() < begin + 20
        assert stream.ended == isinstance(end, Generated)
        if not stream.ended:
            with pytest.raises(InputError, match="no token may come next"):
                stream.take()

    asyncio.run(asked())


def test_without_an_end_a_wait_takes_its_time() -> None:
    async def asked() -> None:
        news = News()
        ticket = Ticket(news.notify)
        news.of(Stream(ticket, None))
        begin = time.monotonic()
        ticket.add(Token(5, -1.0))
        await news.gather(0.05)
        assert time.monotonic() - begin >= 0.04
        await news.come()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(news.come(), 0.02)

    asyncio.run(asked())
