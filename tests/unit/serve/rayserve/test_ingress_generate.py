"""Generation over the ingress, whole and as events, from a replica that a test plays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from crossfuse.bundle.store import Bundle
from crossfuse.serve.generating import Asking
from crossfuse.serve.rayserve.ingress import Ingress, home_of
from crossfuse.serve.rayserve.options import ServeOptions
from unit.serve.rayserve.asgi_client import ask, request_of
from unit.serve.rayserve.test_ingress import ARRAYS, body_of

Said = list[Any]
EVENTS: Said = [
    (200, {"tokens": [5], "text_output": "It"}),
    (200, {"tokens": [6, 2], "text_output": " was", "ended": True}),
]


class Answer:
    """What a replica's generator gives: events, exceptions, or seconds to wait."""

    def __init__(self, said: Said) -> None:
        self.said, self.cancelled = list(said), False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self.said:
            raise StopAsyncIteration
        one = self.said.pop(0)
        if isinstance(one, float):
            await asyncio.sleep(one)
            return await self.__anext__()
        if isinstance(one, BaseException):
            raise one
        return one

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment's handle whose replicas say what a test wants, one after the other."""

    def __init__(self, *answers: Said) -> None:
        self.answers = [Answer(said) for said in answers]
        self.left = list(self.answers)
        self.asked: list[Asking] = []
        self.chosen: list[dict[str, Any]] = []

    def options(self, **chosen: Any) -> Handle:
        self.chosen.append(chosen)
        return self

    @property
    def generate(self) -> Handle:
        return self

    def remote(self, asking: Asking) -> Answer:
        self.asked.append(asking)
        return self.left.pop(0)


@pytest.fixture
def bundle(zoo_bundle: Callable[[str], Bundle]) -> Bundle:
    return zoo_bundle("cross_modal_attention")


def ingress_of(bundle: Bundle, handle: Handle, **options: Any) -> Ingress:
    made = ServeOptions(str(bundle.path), "m", **{"slots": 2, **options})
    return Ingress(made.to_json(), handle)  # type: ignore[arg-type]


def streamed(ingress: Ingress, body: bytes, until: int = 99) -> list[Any]:
    """Events of a stream, by a client that goes away after so many messages."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        response = await ingress(request_of("POST", "/v2/models/m/generate_stream", body))
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) >= until:
                gone.set()

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(response(scope, receive, send), 20)

    asyncio.run(run())
    body = b"".join(one.get("body", b"") for one in sent)
    lines = [line for line in body.decode().split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_sequence_whole_and_as_it_comes(bundle: Bundle) -> None:
    about = {"model_name": "m", "model_version": "1", "id": "mine"}
    body = json.loads(body_of(ARRAYS, max_new_tokens=3, context_id="cat"))
    sent = json.dumps({**body, "id": "mine", "text_input": "hello"}).encode()
    handle = Handle(EVENTS, EVENTS)
    ingress = ingress_of(bundle, handle)
    found = ask(ingress, "POST", "/v2/models/m/generate", sent)
    assert found.status == 200
    assert found.json == about | {"tokens": [5, 6, 2], "text_output": "It was", "ended": True}
    assert streamed(ingress, sent) == [about | event for _, event in EVENTS]
    assert [asking.whole for asking in handle.asked] == [True, False]
    for asking in handle.asked:
        np.testing.assert_array_equal(asking.request.inputs["a"], ARRAYS["a"])
        assert asking.request.context_id == "cat"
        assert asking.text == "hello"
        assert asking.parameters == {"max_new_tokens": 3, "context_id": "cat"}
    home = {"multiplexed_model_id": home_of("cat", None)}
    assert handle.chosen == [home, {"stream": True}] * 2
    assert all(answer.cancelled for answer in handle.answers)
    assert ingress._open == 0


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        ([(400, "a prompt is empty")], 400, "a prompt is empty"),
        ([(404, "no such context")], 404, "no such context"),
        ([(503, "the queue is full. Try again later.")], 503, "queue is full"),
        ([BackPressureError(1, 1)], 503, "queue is full"),
        ([ValueError("secret")], 500, "the server failed"),
        ([5.0], 504, "no answer within 0.1 s"),
    ],
)
@pytest.mark.parametrize("how", ["generate", "generate_stream"])
def test_what_goes_wrong_before_the_first_token_is_a_status(
    bundle: Bundle, how: str, said: Said, status: int, text: str
) -> None:
    handle = Handle(said)
    ingress = ingress_of(bundle, handle, timeout_s=0.1)
    found = ask(ingress, "POST", f"/v2/models/m/{how}", body_of(ARRAYS))
    assert (found.status, text in found.json["error"]) == (status, True)
    assert "secret" not in found.json["error"]
    assert ("retry-after" in found.headers) == (status == 503)
    assert handle.answers[0].cancelled
    assert ingress._open == 0


def test_what_goes_wrong_behind_it_is_an_event(bundle: Bundle) -> None:
    for said, text in (
        ([EVENTS[0], RayActorError()], "died"),
        ([EVENTS[0], 5.0], "no answer within"),
        ([EVENTS[0], (400, "no token may come next")], "no token may come next"),
        ([EVENTS[0], ValueError("secret")], "its log says why"),
    ):
        handle = Handle(said)
        ingress = ingress_of(bundle, handle, timeout_s=0.2)
        first, last = streamed(ingress, body_of(ARRAYS))
        assert first["tokens"] == [5]
        assert text in last["error"]
        assert handle.answers[0].cancelled
        assert ingress._open == 0


def test_a_replica_that_dies_before_the_first_token_is_replaced_once(bundle: Bundle) -> None:
    handle = Handle([RayActorError()], EVENTS)
    assert len(streamed(ingress_of(bundle, handle), body_of(ARRAYS))) == 2
    handle = Handle([RayActorError()], [RayActorError()])
    found = ask(ingress_of(bundle, handle), "POST", "/v2/models/m/generate", body_of(ARRAYS))
    assert (found.status, "died" in found.json["error"]) == (503, True)


def test_who_goes_away_is_told_to_the_replica(bundle: Bundle) -> None:
    handle = Handle([EVENTS[0], 0.001] * 1000)
    ingress = ingress_of(bundle, handle)
    assert len(streamed(ingress, body_of(ARRAYS), until=4)) < 10
    assert handle.answers[0].cancelled
    assert ingress._open == 0


def test_a_server_without_slots_generates_nothing(bundle: Bundle) -> None:
    ingress = ingress_of(bundle, Handle(), slots=0)
    for how in ("generate", "generate_stream"):
        found = ask(ingress, "POST", f"/v2/models/m/{how}", body_of(ARRAYS))
        assert (found.status, "generates no sequences" in found.json["error"]) == (404, True)
    assert ask(ingress, "GET", "/v2/models/m/generate").status == 404
