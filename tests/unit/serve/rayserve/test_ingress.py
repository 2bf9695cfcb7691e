"""The ingress over a replica that a test plays: limits, routing to a context's home, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="ray is not installed")

from ray.exceptions import RayActorError

from crossfuse.bundle.store import Bundle
from crossfuse.serve.limits import Limits
from crossfuse.serve.open_inference import BINARY_HEADER, DATATYPES
from crossfuse.serve.rayserve.ingress import Ingress, home_of
from crossfuse.serve.rayserve.options import ServeOptions
from unit.serve.rayserve.asgi_client import Reply, ask, request_of

Answers = Callable[[dict[str, np.ndarray]], Any]


class Handle:
    """A deployment's handle whose replica is a function."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.homes: list[str] = []
        self.asked: list[tuple[str | None, bytes | None]] = []

    def options(self, multiplexed_model_id: str) -> Handle:
        self.homes.append(multiplexed_model_id)
        return self

    @property
    def answer(self) -> Any:
        return self

    @property
    def ready(self) -> Any:
        class Ready:
            async def remote(self) -> bool:
                return True

        return Ready()

    async def remote(self, inputs: dict[str, np.ndarray], context_id: str | None, key: Any) -> Any:
        self.asked.append((context_id, key))
        found = self.answers(inputs)
        if asyncio.iscoroutine(found):
            found = await found
        if isinstance(found, BaseException):
            raise found
        return found


def ingress_of(bundle: Bundle, answers: Answers, **options: Any) -> tuple[Ingress, Handle]:
    handle = Handle(answers)
    made = ServeOptions(str(bundle.path), "m", **options)
    return Ingress(made.to_json(), handle), handle  # type: ignore[arg-type]


def body_of(arrays: dict[str, np.ndarray], **parameters: Any) -> bytes:
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPES[array.dtype.name],
            "data": array.reshape(-1).tolist(),
        }
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def infer(ingress: Ingress, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    return ask(ingress, "POST", "/v2/models/m/infer", body, headers)


@pytest.fixture
def bundle(zoo_bundle: Callable[[str], Bundle]) -> Bundle:
    return zoo_bundle("cross_modal_attention")


def echoed(inputs: dict[str, np.ndarray]) -> Any:
    return 200, {"fused": inputs["a"] * 2}


ARRAYS = {"a": np.arange(3, dtype=np.float32)}


def test_outputs_come_back_as_asked(bundle: Bundle) -> None:
    ingress, handle = ingress_of(bundle, echoed)
    found = infer(ingress, body_of(ARRAYS))
    assert found.status == 200
    (output,) = found.json["outputs"]
    assert (output["name"], output["data"]) == ("fused", [0.0, 2.0, 4.0])
    binary = json.loads(body_of(ARRAYS))
    binary["outputs"] = [{"name": "fused", "parameters": {"binary_data": True}}]
    found = infer(ingress, json.dumps(binary).encode())
    length = int(found.headers[BINARY_HEADER.lower()])
    np.testing.assert_array_equal(np.frombuffer(found.body[length:], np.float32), [0, 2, 4])
    assert handle.homes == []


def test_metadata_and_readiness(bundle: Bundle) -> None:
    ingress, _ = ingress_of(bundle, echoed)
    found = ask(ingress, "GET", "/v2/models/m").json
    assert [t["name"] for t in found["inputs"]] == ["a", "b", "b_mask"]
    assert ask(ingress, "GET", "/v2/health/ready").status == 200


def test_what_is_not_taken(bundle: Bundle) -> None:
    ingress, handle = ingress_of(bundle, echoed, limits=Limits(max_bytes=200))
    assert infer(ingress, b"x" * 201).status == 413
    assert infer(ingress, b"", {"content-length": "1000"}).status == 413
    assert infer(ingress, body_of(ARRAYS), {"content-encoding": "gzip"}).status == 415
    assert infer(ingress, body_of(ARRAYS), {BINARY_HEADER: "many"}).status == 400
    found = infer(ingress, b"{")
    assert found.status == 400
    assert "Traceback" not in found.json["error"]
    assert handle.asked == []
    assert ingress._open == 0


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        (lambda _: (404, "no such context"), 404, "no such context"),
        (lambda _: (500, "the server failed; its log says why."), 500, "its log says why"),
        (lambda _: ValueError("secret"), 500, "the server failed"),
        (lambda _: asyncio.sleep(5), 504, "no answer within 0.05 s"),
    ],
)
def test_a_replicas_answer_is_the_servers(
    bundle: Bundle, answers: Answers, status: int, said: str
) -> None:
    ingress, handle = ingress_of(bundle, answers, timeout_s=0.05)
    found = infer(ingress, body_of(ARRAYS))
    assert found.status == status
    assert said in found.json["error"]
    assert "secret" not in found.json["error"]
    assert len(handle.asked) == 1


def test_a_dead_replica_is_asked_again_once(bundle: Bundle) -> None:
    results = [RayActorError(), (200, {"fused": ARRAYS["a"]})]
    ingress, handle = ingress_of(bundle, lambda _: results.pop(0))
    assert infer(ingress, body_of(ARRAYS)).status == 200
    ingress, handle = ingress_of(bundle, lambda _: RayActorError())
    found = infer(ingress, body_of(ARRAYS))
    assert (found.status, len(handle.asked)) == (503, 2)
    assert "died" in found.json["error"]


def test_requests_go_home(shared_bundle: Callable[..., Bundle]) -> None:
    """By the id that a client gave, else by the content of the context inputs."""
    bundle = shared_bundle("cross_modal_attention", size="tiny")
    ingress, handle = ingress_of(bundle, echoed)
    context = {"b": np.ones((1, 2, 24), np.float32), "b_mask": np.ones((1, 2), np.int64)}
    for parameters in ({}, {}, {"context_id": "cat"}):
        infer(ingress, body_of(ARRAYS | context, **parameters))
    infer(ingress, body_of(ARRAYS, context_id="cat"))
    first, second, third, fourth = handle.homes
    assert first == second == home_of(None, handle.asked[0][1])
    assert third == fourth == home_of("cat", None)
    assert first != third


@pytest.mark.parametrize("number", ["²", "1" * 5000, "-1", "1e3", " 1", "0x10", "٣"])
@pytest.mark.parametrize("header", [BINARY_HEADER, "content-length"])
def test_malformed_numbers_are_the_clients_fault(bundle: Bundle, header: str, number: str) -> None:
    ingress, handle = ingress_of(bundle, echoed)
    request = request_of("POST", "/v2/models/m/infer", body_of(ARRAYS), {})
    request.scope["headers"] = [(header.lower().encode(), number.encode("utf-8"))]
    response = asyncio.run(ingress(request))
    assert response.status_code == 400
    assert handle.asked == []


@pytest.mark.parametrize("host", ["[::1", "a b", "]", "\xff"])
def test_no_header_ends_a_request_unanswered(bundle: Bundle, host: str) -> None:
    ingress, _ = ingress_of(bundle, echoed)
    assert infer(ingress, body_of(ARRAYS), {"host": host}).status == 200
    assert ask(ingress, "GET", "/nowhere", headers={"host": host}).status == 404


def test_bodies_that_do_not_come_take_nobodys_place(bundle: Bundle) -> None:
    """Heads without bodies, twice as many as the queue has places: honest clients are answered."""
    limits = Limits(max_queue=4, body_seconds=0.5)
    ingress, _ = ingress_of(bundle, echoed, limits=limits)

    async def idle() -> int:
        request = request_of("POST", "/v2/models/m/infer")

        async def never() -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

        request._receive = never
        return (await ingress(request)).status_code

    async def honest() -> int:
        await asyncio.sleep(0.05)
        response = await ingress(request_of("POST", "/v2/models/m/infer", body_of(ARRAYS)))
        return response.status_code

    async def together() -> list[int]:
        return await asyncio.gather(*(idle() for _ in range(8)), *(honest() for _ in range(4)))

    assert asyncio.run(together()) == [408] * 8 + [200] * 4
    assert ingress._open == 0


def test_names_and_json_have_limits_in_bytes(bundle: Bundle) -> None:
    limits = Limits(max_json_bytes=4000, max_name_bytes=100)
    ingress, handle = ingress_of(bundle, echoed, limits=limits)
    found = infer(ingress, body_of(ARRAYS, context_id="é" * 51))
    assert (found.status, "too long" in found.json["error"]) == (400, True)
    assert len(found.body) < 1000
    assert infer(ingress, body_of({"n" * 101: ARRAYS["a"]})).status == 400
    assert infer(ingress, body_of(ARRAYS, context_id="é" * 50)).status == 200
    assert infer(ingress, body_of({"a": np.zeros(2000, np.float32)})).status == 400
    assert len(handle.asked) == 1
