"""The engine's thread: callers of several threads, streams, cancellation, the end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crossfuse import InputError, runtime
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.scheduler import QueueFullError
from unit.runtime.toy_decoder import IMAGES, LENGTH, VOCABULARY, toy_session


def test_callers_at_once_get_what_they_would_get_alone() -> None:
    session = toy_session({"decoder_start_token_id": 3, "eos_token_id": 0})
    contexts = [session.encode(image=image[None]) for image in IMAGES]
    rng = np.random.default_rng(2)
    asked: list[tuple[Any, Any, dict[str, Any]]] = []
    for i in range(24):
        prompt = None if i % 5 == 0 else rng.integers(0, VOCABULARY, rng.integers(1, 6)).tolist()
        sampled = {"do_sample": True, "seed": i} if i % 2 else {}
        asked.append((contexts[i % 2], prompt, {"max_new_tokens": 1 + i % 9, **sampled}))
    with GenerationEngine(session, 3, queue=30, like=contexts[0]) as engine:
        assert engine.nbytes > 0

        def ask(one: tuple[Any, Any, dict[str, Any]]) -> tuple[list[int], Any]:
            context, prompt, settings = one
            ticket = engine.submit(context, prompt, **settings)
            return [token.token for token in ticket], ticket.result(5)

        with ThreadPoolExecutor(8) as pool:
            for (context, prompt, settings), (tokens, whole) in zip(
                asked, pool.map(ask, asked), strict=True
            ):
                given = None if prompt is None else [prompt]
                alone = runtime.generate(session, context, given, **settings)
                np.testing.assert_array_equal(whole.sequences, alone.sequences)
                assert tokens == alone.new_tokens[0].tolist()
        assert (engine.live, engine.waiting) == (0, 0)


def slow(session: Any, go: threading.Event) -> None:
    """Let the session's steps wait until they may."""
    step = session.engine("step")
    compute = step.compute

    def waits(feeds: Any) -> Any:
        assert go.wait(20)
        return compute(feeds)

    step.compute = waits


def test_steps_and_work_aside_take_turns() -> None:
    session = toy_session({"decoder_start_token_id": 3})
    context = session.encode(image=IMAGES[:1])
    with GenerationEngine(session, 2, like=context) as engine:
        with engine.aside():
            ticket = engine.submit(context, max_new_tokens=4)
            time.sleep(0.05)
            assert ticket.take() == []
        assert len(ticket.result(5).new_tokens[0]) == 4
        inside, started = threading.Event(), threading.Event()
        slow(session, inside)
        waiting = engine.submit(context, max_new_tokens=9)
        until(lambda: engine.waiting == 0)
        with ThreadPoolExecutor(1) as pool:

            def work() -> int:
                started.set()
                with engine.aside():
                    return len(waiting.take())

            done = pool.submit(work)
            assert started.wait(5)
            time.sleep(0.02)
            assert not done.done()
            inside.set()
            # It waits for one step, not for all of them.
            assert done.result(5) <= 3
        assert len(waiting.result(5).new_tokens[0]) == 9


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_full_queue_cancellation_and_who_is_told() -> None:
    session, go = toy_session(), threading.Event()
    context = session.encode(image=IMAGES[:1])
    told = threading.Event()
    with GenerationEngine(session, 1, queue=2, like=context) as engine:
        slow(session, go)
        first = engine.submit(context, [1], notify=told.set)
        until(lambda: engine.waiting == 0)
        second, third = engine.submit(context, [2]), engine.submit(context, [3], max_new_tokens=2)
        with pytest.raises(QueueFullError, match="at most 2: Try again later|at most 2"):
            engine.submit(context, [4])
        second.cancel()
        first.cancel()
        go.set()
        assert told.wait(20)
        whole = third.result(20)
        np.testing.assert_array_equal(
            whole.sequences, runtime.generate(session, context, [3], max_new_tokens=2).sequences
        )
        assert first.cancelled
        assert second.take() == []


def test_each_step_is_told_once_with_all_that_it_gave() -> None:
    session, lock = toy_session(), threading.Lock()
    context = session.encode(image=IMAGES[:1])
    told: list[tuple[int, bool]] = []
    with GenerationEngine(session, 1, like=context) as engine:
        lock.acquire()

        def look() -> None:
            with lock:
                told.append((len(ticket.take()), ticket.done))

        ticket = engine.submit(context, [1], notify=look, max_new_tokens=4)
        lock.release()
        until(lambda: len(told) == 4)
    assert told == [(1, False)] * 3 + [(1, True)]


def test_what_cannot_be_generated_is_refused_at_once() -> None:
    session, other = toy_session(), toy_session()
    context = session.encode(image=IMAGES[:1])
    with GenerationEngine(session) as engine:
        for given, prompt, settings, error in (
            (other.encode(image=IMAGES[:1]), [1], {}, "another bundle or target"),
            (context, [1], {"num_beams": 3}, "greedily or by samples"),
            (context, [1], {"temprature": 1.0}, "no such setting.*temperature"),
            (context, [1] * LENGTH, {"max_new_tokens": 9}, "holds fewer tokens"),
            (session.encode(image=IMAGES), [1], {}, "one sequence over one context"),
        ):
            with pytest.raises(InputError, match=error):
                engine.submit(given, prompt, **settings)
        assert engine.submit(context, [1], max_new_tokens=1).result(20).lengths.tolist() == [2]
        with pytest.raises(InputError, match="outside its table"):
            engine.submit(context, [VOCABULARY]).result(20)
    for wrong in ({"slots": 0}, {"queue": -1}, {"slots": 1.5}):
        with pytest.raises(InputError, match="has to be positive"):
            GenerationEngine(session, **wrong)


def test_nobody_waits_for_an_engine_that_is_closed() -> None:
    session, go = toy_session(), threading.Event()
    context = session.encode(image=IMAGES[:1])
    slow(session, go)
    engine = GenerationEngine(session, 1)
    tickets = [engine.submit(context, [n]) for n in (1, 2)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    go.set()
    closing.join(20)
    for ticket in tickets:
        with pytest.raises(InputError, match="engine was closed"):
            ticket.result(20)
    with pytest.raises(InputError, match="engine is closed"):
        engine.submit(context, [1])
    engine.close()


def test_a_hook_belongs_to_its_own_sequence() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])

    def sixes(rows: Any, scores: Any) -> Any:
        scores[:, :6] = -np.inf
        return scores

    with GenerationEngine(session) as engine:
        hooked = engine.submit(context, [1], logits_hook=sixes, max_new_tokens=3)
        free = engine.submit(context, [1], max_new_tokens=3)
        assert hooked.result(20).new_tokens[0].tolist() == [6, 6, 6]
        alone = runtime.generate(session, context, [1], max_new_tokens=3)
        np.testing.assert_array_equal(free.result(20).sequences, alone.sequences)
