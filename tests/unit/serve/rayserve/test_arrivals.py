"""Bodies arrive within limits of their own, and of all together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

from crossfuse.serve.limits import Limits
from crossfuse.serve.rayserve.arrivals import Arrivals, Gone, Refused

MB = 1 << 20


def receiving(*messages: Any, wait: float = 0.0) -> Any:
    left = [*messages]

    async def receive() -> Any:
        if wait or not left:
            await asyncio.sleep(wait or 60)
        message = left.pop(0)
        return message

    return receive


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def headed(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


async def arrive(arrivals: Arrivals, receive: Any, *headers: tuple[bytes, bytes]) -> bytes:
    with arrivals.counted() as body:
        return await arrivals.receive(body, headed(*headers), receive)


def refusal(work: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as found:
        asyncio.run(work())
    return found.value.status, str(found.value)


def test_a_body_in_parts_is_whole() -> None:
    async def work() -> bytes:
        arrivals = Arrivals(Limits())
        return await arrive(arrivals, receiving(part(b"ab"), part(b""), part(b"c", False)))

    assert asyncio.run(work()) == b"abc"


@pytest.mark.parametrize(
    ("headers", "parts", "status"),
    [
        ([(b"content-length", b"11")], [], 413),
        ([], [part(b"x" * 6), part(b"x" * 6)], 413),
        ([(b"content-length", b"\xb2")], [], 400),
        ([(b"content-length", b"-1")], [], 400),
        ([(b"content-length", b"9" * 5000)], [], 400),
        ([], [part(b"x")], 408),
    ],
)
def test_what_is_not_taken(headers: Any, parts: Any, status: int) -> None:
    limits = Limits(max_bytes=10, body_seconds=0.05)
    found, text = refusal(lambda: arrive(Arrivals(limits), receiving(*parts), *headers))
    assert found == status
    assert text


def test_a_client_that_goes_away() -> None:
    with pytest.raises(Gone):
        asyncio.run(arrive(Arrivals(Limits()), receiving(part(b"x"), {"type": "http.disconnect"})))


def test_large_bodies_share_room_and_small_ones_have_it() -> None:
    """What is held counts until its request is answered."""
    limits = Limits(max_bytes=16 * MB)

    async def work() -> None:
        arrivals = Arrivals(limits)
        large = [part(bytes(16 * MB), False)]
        kept = [arrivals.counted() for _ in range(8)]
        for one in kept:
            await arrivals.receive(one.__enter__(), headed(), receiving(*large))
        assert await arrive(arrivals, receiving(part(bytes(MB), False))) == bytes(MB)
        with pytest.raises(Refused, match="too many large bodies") as found:
            await arrive(arrivals, receiving(part(bytes(2 * MB), False)))
        assert found.value.status == 503
        kept[0].__exit__(None, None, None)
        await arrive(arrivals, receiving(part(bytes(2 * MB), False)))
        for one in kept[1:]:
            one.__exit__(None, None, None)
        assert arrivals._held == 0

    asyncio.run(work())


def test_a_stop_gives_what_arrives_a_second() -> None:
    async def work() -> float:
        arrivals = Arrivals(Limits(body_seconds=60))
        start = asyncio.get_running_loop().time()
        arriving = asyncio.ensure_future(arrive(arrivals, receiving(part(b"x"))))
        await asyncio.sleep(0.01)
        arrivals.stop()
        with pytest.raises(Refused, match="shutting down"):
            await arriving
        return asyncio.get_running_loop().time() - start

    assert 0.9 < asyncio.run(work()) < 5
