"""Homes of contexts: the same everywhere, even, and stable when a replica leaves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.serve.rayserve.router import HomeRouter, order

REPLICAS: list[Any] = [
    SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("a", "b", "c")
]


def asked(key: str) -> Any:
    return SimpleNamespace(
        routing_context=SimpleNamespace(should_backoff=False),
        metadata=SimpleNamespace(multiplexed_model_id=key),
    )


def chosen(request: Any) -> list[list[str]]:
    router: Any = HomeRouter.__new__(HomeRouter)
    ranked = asyncio.run(router.choose_replicas(REPLICAS, request))
    return [[replica.replica_id.unique_id for replica in rank] for rank in ranked]


@pytest.mark.parametrize("key", ["cat", "dog", "é"])
def test_a_context_goes_home_first_and_next_where_that_is_full(key: str) -> None:
    request = asked(key)
    assert chosen(request) == [[name] for name in order(key, ["c", "a", "b"])]
    assert request.routing_context.should_backoff, "a full home is waited for"


@pytest.mark.parametrize("request_", [None, asked("")])
def test_without_a_context_two_are_as_good(request_: Any) -> None:
    (both,) = chosen(request_)
    assert len(set(both)) == 2


def test_only_the_contexts_of_a_replica_that_left_move() -> None:
    for i in range(200):
        before, after = order(str(i), ["a", "b", "c"]), order(str(i), ["a", "b"])
        assert after == [name for name in before if name != "c"]
