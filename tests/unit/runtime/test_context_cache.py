"""Contexts kept by content and bounded in bytes, over a session that counts what it encodes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.context_cache import ContextCache, content_key


class Encoder:
    """A session whose contexts are their inputs, so a context has its inputs' bytes."""

    def __init__(self) -> None:
        self.encoded: list[float] = []
        self.wait: threading.Event | None = None
        self.error: Exception | None = None

    def given(self, inputs: Mapping[str, Any] | None, named: dict[str, Any]) -> Mapping[str, Any]:
        return named if inputs is None else inputs

    def encode(self, inputs: Mapping[str, Any]) -> Context:
        self.encoded.append(float(inputs["x"].reshape(-1)[0]))
        if self.wait is not None:
            assert self.wait.wait(10)
        if self.error is not None:
            raise self.error
        specs = (TensorSpec("x", "float32", ("n",)),)
        return Context(dict(inputs), specs, 1, None, "o")


def row(value: float, size: int = 10) -> np.ndarray:
    return np.full(size, value, np.float32)


def cache(max_bytes: int) -> tuple[ContextCache, Encoder]:
    session = Encoder()
    return ContextCache(session, max_bytes), session  # type: ignore[arg-type]


def test_the_least_recently_used_goes_first() -> None:
    """Three contexts of 40 bytes into 100: the one that was asked for again outlives the other."""
    kept, session = cache(100)
    for value in (1, 2, 1, 3, 1, 2):
        kept.encode(x=row(value))
    assert session.encoded == [1, 2, 3, 2]
    assert (kept.hits, kept.misses) == (2, 4)
    assert (len(kept), kept.nbytes) == (2, 80)


def test_as_many_go_as_have_to() -> None:
    kept, _ = cache(100)
    for value in (1, 2):
        kept.encode(x=row(value))
    kept.encode(x=row(3, size=20))
    assert kept.find(content_key({"x": row(1)})) is None
    assert kept.find(content_key({"x": row(2)})) is None
    assert kept.nbytes == 80


def test_what_is_larger_than_the_budget_is_given_and_not_kept() -> None:
    kept, session = cache(100)
    kept.encode(x=row(1))
    big = kept.encode(x=row(2, size=26))
    assert big.nbytes == 104
    assert (len(kept), kept.nbytes) == (1, 40)
    kept.encode(x=row(2, size=26))
    assert session.encoded == [1, 2, 2]


def test_equal_content_is_one_context_whoever_holds_it() -> None:
    kept, session = cache(1000)
    first = kept.encode(x=row(1))
    assert kept.encode({"x": np.asfortranarray(row(1))}) is first
    assert kept.encode_as(content_key({"x": row(1)}), {"x": row(1)}) is first
    assert session.encoded == [1]
    kept.clear()
    assert (len(kept), kept.nbytes) == (0, 0)
    assert kept.encode(x=row(1)) is not first


def test_calls_at_the_same_time_encode_once() -> None:
    kept, session = cache(1000)
    session.wait = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(kept.encode, {"x": row(1)}) for _ in range(4)]
        session.wait.set()
        found = {id(future.result(10)) for future in asked}
    assert len(found) == 1
    assert session.encoded == [1]
    assert (kept.hits, kept.misses) == (3, 1)


def test_a_failure_is_everyones_and_is_not_kept() -> None:
    kept, session = cache(1000)
    session.wait, session.error = threading.Event(), InputError("no such context")
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(kept.encode, {"x": row(1)}) for _ in range(2)]
        session.wait.set()
        for future in asked:
            with pytest.raises(InputError, match="no such context"):
                future.result(10)
    session.error = None
    assert kept.encode(x=row(1)).nbytes == 40


@pytest.mark.parametrize("budget", [0, -1, 1.5])
def test_a_budget_is_a_positive_number_of_bytes(budget: int) -> None:
    with pytest.raises(InputError, match="positive number of bytes"):
        cache(budget)


def test_keys_tell_all_that_matters_apart() -> None:
    """Names, dtypes, shapes and content; the order of names, and strides, don't matter."""
    a, b = np.arange(6, dtype=np.float32), np.ones(2, np.int64)
    key = content_key({"a": a, "b": b})
    assert key == content_key({"b": b, "a": a})
    assert content_key({"a": a.reshape(2, 3)}) == content_key(
        {"a": np.asfortranarray(a.reshape(2, 3))}
    )
    others = [
        {"a": a},
        {"a": a, "c": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a.astype(np.float64), "b": b},
        {"a": a.view(np.int32), "b": b},
        {"a": a + np.float32(1e-6), "b": b},
        {"a": a[:0], "b": b},
        {"a": a[:0].reshape(0, 7), "b": b},
    ]
    assert len({key, *(content_key(other) for other in others)}) == len(others) + 1


def test_what_is_not_in_host_memory_has_no_key() -> None:
    class Elsewhere:
        def __dlpack__(self, **_: object) -> object:
            raise BufferError("on a GPU")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(InputError, match=r"must be in host memory.*\(x\)"):
        content_key({"x": Elsewhere()})
