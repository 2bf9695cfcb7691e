"""Generation through ``crossfuse serve``: streams beside each other, each as alone; a client that
goes away frees its slot."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner import IMAGES, export_captioner
from crossfuse import runtime

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("serving", reason="tritonclient is not installed")

from end_to_end.test_serve_ray import server
from unit.serve.rayserve.test_ingress import body_of

pytestmark = pytest.mark.slow
LONGEST = 3000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences of up to 3000 tokens, which take some seconds."""
    return export_captioner(tmp_path_factory.mktemp("captioner") / "bundle", LONGEST)


def asked(port: int, how: str, body: bytes) -> tuple[http.client.HTTPConnection, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", f"/v2/models/m/{how}", body)
    return connection, connection.getresponse()


def stream(port: int, body: bytes) -> list[int]:
    """The tokens of a stream that ends well."""
    _, response = asked(port, "generate_stream", body)
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.read().decode().split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [("ended" in event) for event in events] == [False] * (len(events) - 1) + [True]
    return [token for event in events for token in event["tokens"]]


def request_of(image: int, prompt: list[int], **settings: Any) -> bytes:
    return body_of({"image": IMAGES[[image]], "ids": np.array([prompt])}, **settings)


def test_streams_are_as_alone_and_who_leaves_frees_a_slot(bundle: Path) -> None:
    rng = np.random.default_rng(3)
    requests: list[tuple[int, list[int], dict[str, Any]]] = []
    for i in range(12):
        sampled = {"do_sample": True, "seed": i} if i % 2 else {}
        prompt = rng.integers(0, 50, rng.integers(1, 9)).tolist()
        requests.append((i % 4, prompt, {**sampled, "max_new_tokens": 3 + 9 * i}))
    with runtime.load(bundle, "ort-cpu") as session:
        contexts = [session.encode(image=image[None]) for image in IMAGES]
        expected = [
            runtime.generate(session, contexts[image], [prompt], **settings).new_tokens[0].tolist()
            for image, prompt, settings in requests
        ]
    bodies = [request_of(image, prompt, **settings) for image, prompt, settings in requests]
    with server(bundle, "--slots", "2") as (port, _):
        with ThreadPoolExecutor(len(bodies)) as pool:
            assert list(pool.map(lambda body: stream(port, body), bodies)) == expected
        _, response = asked(port, "generate", bodies[3])
        assert json.loads(response.read())["tokens"] == expected[3]
        for wrong in (
            request_of(0, [1], num_beams=4),
            request_of(0, [1], temperature=-1),
            request_of(0, [50]),
            body_of({"ids": np.array([[1]])}),
            b"{",
        ):
            for how in ("generate", "generate_stream"):
                _, response = asked(port, how, wrong)
                assert response.status == 400
                assert "Traceback" not in json.loads(response.read())["error"]
        endless = request_of(0, [4], max_new_tokens=LONGEST - 1)
        begin = time.monotonic()
        assert len(stream(port, endless)) == LONGEST - 1
        whole = time.monotonic() - begin
        # Eight clients take the slots one behind the other, and leave with their first tokens.
        begin = time.monotonic()
        for _ in range(8):
            connection, response = asked(port, "generate_stream", endless)
            assert response.readline().startswith(b"data: ")
            response.close()
            connection.close()
        assert stream(port, bodies[0]) == expected[0]
        took = time.monotonic() - begin
        print(f"one sequence took {whole:.2f} s; nine behind eight that left {took:.2f} s")
        assert took < 3 * whole, "eight of them would have taken four times as long in two slots"
