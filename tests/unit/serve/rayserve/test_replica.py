"""A replica in this process: what it answers, and with which status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from coverage.cases import CASES
from coverage.rows import TARGETS
from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from crossfuse.models.registry import zoo_spec
from crossfuse.serve.generating import Asking, whole_of
from crossfuse.serve.load_engine import EngineOptions
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.rayserve.replica import Replica
from crossfuse.serve.request_engine import Request, UnexpectedError

NAME = "cross_modal_attention"


def alone(monkeypatch: pytest.MonkeyPatch, options: ServeOptions) -> Replica:
    """A replica whose requests gather without Serve, which batches inside deployments alone."""
    replica = Replica(options.to_json())

    async def gathered(request: Request) -> Any:
        (answer,) = replica._engine.answer([request])
        return answer

    monkeypatch.setattr(replica, "_batch", gathered)
    return replica


def test_answers_and_statuses(
    zoo_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = zoo_bundle(NAME)
    options = ServeOptions(str(bundle.path), "m", engine=EngineOptions("ort-cpu"), batch_wait_ms=50)
    given = {name: tensor.numpy() for name, tensor in zoo_spec(NAME, "tiny").inputs.items()}
    with runtime.load(bundle.path, "ort-cpu") as session:
        expected = session.run(given)

    async def asked() -> tuple[Any, ...]:
        replica = alone(monkeypatch, options)
        assert await replica.ready()
        bad = given | {"a": given["a"].astype(np.float64)}
        several = await asyncio.gather(
            replica.answer(given, None, None),
            replica.answer(bad, None, None),
            replica.answer(given, None, None),
        )

        def fails(requests: Any) -> Any:
            return [UnexpectedError("a secret") for _ in requests]

        monkeypatch.setattr(replica._engine, "answer", fails)
        return (*several, await replica.answer(given, None, None))

    first, wrong, second, failed = asyncio.run(asked())
    for status, outputs in (first, second):
        assert status == 200
        for name, array in expected.items():
            np.testing.assert_allclose(outputs[name], array, atol=1e-5)
    assert wrong[0] == 400
    assert "wrong dtype (a)" in wrong[1]
    assert failed == (500, "the server failed; its log says why.")


def test_a_context_that_is_not_kept_is_not_found(
    shared_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shared_bundle(NAME, size="tiny")
    options = ServeOptions(str(bundle.path), "m")
    a = zoo_spec(NAME, "tiny").inputs["a"].numpy()

    async def asked() -> Any:
        return await alone(monkeypatch, options).answer({"a": a}, "cat", None)

    status, said = asyncio.run(asked())
    assert status == 404
    assert "'cat'" in said


def test_sequences_come_event_by_event_and_who_leaves_frees_a_slot(
    shared_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shared_bundle("coverage/bart", TARGETS)
    options = ServeOptions(str(bundle.path), "m", engine=EngineOptions("ort-cpu"), slots=1)
    spec = CASES["bart"].make()
    made = spec.sample({**spec.example_sizes, "batch": 1, "decoder_text": 1}, 0)
    given = {n: t.numpy() for n, t in made.items() if not n.startswith("decoder")}
    prompt = {"decoder_input_ids": np.array([[2, 5]])}
    settings = {"num_beams": 1, "eos_token_id": None, "max_new_tokens": 12}
    with runtime.load(bundle.path, "ort-cpu") as session:
        alone = runtime.generate(session, session.encode(given), [[2, 5]], **settings)

    async def asked() -> None:
        replica = Replica(options.to_json())
        generating = replica._generating
        assert generating is not None
        assert generating.engine.nbytes == 0, "memory is taken with the first sequence"
        asking = Asking(Request(given | prompt), parameters=settings)
        said = [one async for one in replica.generate(asking)]
        assert {status for status, _ in said} == {200}
        events = [event for _, event in said if isinstance(event, dict)]
        tokens = [token for event in events for token in event["tokens"]]
        assert tokens == alone.new_tokens[0].tolist()
        assert events[-1]["ended"] is False
        # However long tokens are gathered, the end is not waited for; who wants all gets one event.
        monkeypatch.setattr("crossfuse.serve.rayserve.replica.pause", lambda *_: 60.0)
        for whole, most in ((False, 2), (True, 1)):
            said = [one async for one in replica.generate(replace(asking, whole=whole))]
            assert len(said) <= most
            told = whole_of([event for _, event in said])
            assert (told["tokens"], told["ended"]) == (tokens, False)
        monkeypatch.undo()
        step: Any = generating.engine.session.engine("step")
        runs = step.run_bound

        def slowly(binding: Any) -> None:
            time.sleep(0.05)
            runs(binding)

        step.run_bound = slowly
        endless = Asking(Request(given | prompt), parameters={**settings, "max_new_tokens": 60})
        leaving = replica.generate(endless)
        assert (await anext(leaving))[0] == 200
        await leaving.aclose()
        begin = time.monotonic()
        while generating.engine.live:
            assert time.monotonic() < begin + 1, "three seconds are left of it"
            await asyncio.sleep(0.01)
        step.run_bound = runs
        said = [one async for one in replica.generate(asking)]
        assert said[-1][1]["ended"] is False
        bad = Asking(Request(given), parameters={"temperature": -1})
        ((status, text),) = [one async for one in replica.generate(bad)]
        assert (status, "temperature" in text) == (400, True)
        unknown = Asking(Request({}, "cat"))
        ((status, text),) = [one async for one in replica.generate(unknown)]
        assert (status, "'cat'" in text) == (404, True)
        generating.close()

    asyncio.run(asked())


def test_a_replica_without_slots_generates_nothing(zoo_bundle: Callable[[str], Bundle]) -> None:
    options = ServeOptions(str(zoo_bundle(NAME).path), "m", engine=EngineOptions("ort-cpu"))

    async def asked() -> list[Any]:
        replica = Replica(options.to_json())
        return [one async for one in replica.generate(Asking(Request({})))]

    ((status, text),) = asyncio.run(asked())
    assert (status, "no sequences" in text) == (400, True)
