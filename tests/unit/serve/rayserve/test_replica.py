"""A replica in this process: what it answers, and with which status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from crossfuse.models.registry import zoo_spec
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
