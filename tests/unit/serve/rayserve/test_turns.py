"""Clients take turns; where all places are taken, the longest line loses its last."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

from crossfuse.serve.rayserve.turns import Turn, Turns


def in_loop(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 20))


def test_a_flood_waits_for_itself() -> None:
    """Of 20 requests of one address and 2 of another that come last, those are let in second and
    fourth."""

    async def work() -> list[str]:
        turns, order = Turns(1, 100), []
        busy = Turn(turns, "busy")

        async def ask(address: str) -> None:
            turn = Turn(turns, address)
            assert await turn.come(asyncio.get_running_loop().create_future(), 10)
            order.append(address)
            await asyncio.sleep(0)
            turn.end()
            turn.end()

        asks = [asyncio.ensure_future(ask("flood")) for _ in range(20)]
        await asyncio.sleep(0)
        asks += [asyncio.ensure_future(ask("honest")) for _ in range(2)]
        await asyncio.sleep(0)
        busy.end()
        await asyncio.gather(*asks)
        assert turns.free == 1
        return order

    order = in_loop(work)
    assert len(order) == 22
    assert [at for at, one in enumerate(order) if one == "honest"] == [1, 3]


def test_the_longest_line_loses_its_last() -> None:
    async def work() -> None:
        turns = Turns(1, 5)
        flood = [Turn(turns, "flood") for _ in range(6)]
        never = asyncio.get_running_loop().create_future()
        assert await flood[0].come(never, 5) is True
        assert await flood[5].come(never, 5) is False
        honest = Turn(turns, "honest")
        assert await flood[4].come(never, 5) is False
        assert await flood[1].come(never, 0) is None
        other = Turn(turns, "other")
        assert await flood[3].come(never, 5) is False
        third = Turn(turns, "third")
        assert await flood[2].come(never, 5) is False
        assert await Turn(turns, "fourth").come(never, 5) is False, "no line is longer than by one"
        for turn in (flood[0], flood[1], honest, other, third):
            assert await turn.come(never, 5) is True
            turn.end()
        assert turns.free == 1

    in_loop(work)


def test_who_gives_up_takes_no_place() -> None:
    async def work() -> None:
        turns = Turns(1, 3)
        first, second, third = (Turn(turns, "x") for _ in range(3))
        gone = asyncio.get_running_loop().create_future()
        never = asyncio.get_running_loop().create_future()
        gone.set_result({"type": "http.disconnect"})
        assert await second.come(gone, 5) is None
        second.end()
        assert await Turn(turns, "x").come(never, 0) is None
        third.end()
        first.end()
        assert turns.free == 0, "the one that waits was let in"

    in_loop(work)


def test_no_places_beside_those_let_in() -> None:
    async def work() -> None:
        turns = Turns(256, 2)
        never = asyncio.get_running_loop().create_future()
        found = [await Turn(turns, "x").come(never, 1) for _ in range(3)]
        assert found == [True, True, False]

    in_loop(work)
