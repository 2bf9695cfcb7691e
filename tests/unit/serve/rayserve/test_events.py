"""Server-sent events: what is sent, what becomes of errors, and of clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

from crossfuse.errors import InputError
from crossfuse.serve.rayserve.events import EventStream
from crossfuse.serve.rayserve.routes import Refusal


class Sent:
    """An ASGI client; goes away after so many messages."""

    def __init__(self, until: int = 99) -> None:
        self.messages: list[dict[str, Any]] = []
        self.until = until
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if len(self.messages) >= self.until:
            self.gone.set()

    @property
    def events(self) -> list[Any]:
        body = b"".join(one.get("body", b"") for one in self.messages).decode()
        lines = [line for line in body.split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]


def streamed(
    events: AsyncGenerator[dict[str, Any], None], until: int = 99
) -> tuple[Sent, list[int]]:
    counted: list[int] = []

    async def run() -> Sent:
        sent = Sent(until)
        response = EventStream({"tokens": [1]}, events, {"model_name": "m"}, counted.append)
        assert response.headers["content-type"].startswith("text/event-stream")
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(response(scope, sent.receive, sent.send), 20)
        return sent

    return asyncio.run(run()), counted


async def good() -> AsyncGenerator[dict[str, Any], None]:
    yield {"tokens": [2]}
    yield {"tokens": [], "ended": True}


def test_events_come_one_by_one() -> None:
    sent, counted = streamed(good())
    assert sent.events == [
        {"model_name": "m", "tokens": [1]},
        {"model_name": "m", "tokens": [2]},
        {"model_name": "m", "tokens": [], "ended": True},
    ]
    assert counted == [200]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Refusal(503, "died."), 503, "died."),
        (InputError("no token may come next"), 400, "no token may come next"),
        (KeyError("secret"), 500, "the server failed; its log says why."),
    ],
)
def test_what_goes_wrong_is_an_event(error: Exception, status: int, said: str) -> None:
    async def bad() -> AsyncGenerator[dict[str, Any], None]:
        yield {"tokens": [2]}
        raise error

    sent, counted = streamed(bad())
    assert len(sent.events) == 3
    assert said in sent.events[-1]["error"]
    assert "secret" not in str(sent.events)
    assert counted == [status]


def test_who_goes_away_ends_the_generator() -> None:
    ended: list[bool] = []

    async def endless() -> AsyncGenerator[dict[str, Any], None]:
        try:
            while True:
                yield {"tokens": [2]}
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    _, counted = streamed(endless(), until=4)
    assert ended == [True]
    assert counted == [499]
