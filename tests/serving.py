"""What any server of a bundle must do, asked with Triton's client over the loopback interface."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from asking import Asking
from crossfuse.runtime.session import Session
from crossfuse.serve.merging import agree
from crossfuse.serve.open_inference import DATATYPES

Arrays = dict[str, np.ndarray]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def infer(
    client: Any,
    model: str,
    arrays: Arrays,
    *,
    binary: bool = True,
    parameters: dict[str, Any] | None = None,
) -> Arrays:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    result = client.infer(model, inputs, parameters=parameters)
    return {
        output["name"]: result.as_numpy(output["name"])
        for output in result.get_response()["outputs"]
    }


def client_of(port: int, concurrency: int = 1) -> Any:
    return triton.InferenceServerClient(
        f"127.0.0.1:{port}", concurrency=concurrency, network_timeout=120
    )


def wait_until_ready(port: int, model: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if client_of(port).is_model_ready(model):
                return
        except (OSError, InferenceServerException):
            pass
        time.sleep(0.2)
    raise AssertionError("the server did not become ready")


def check_metadata(port: int, model: str, session: Session) -> None:
    client = client_of(port)
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_model_metadata(model)
    for kind, specs in (("inputs", session.inputs), ("outputs", session.outputs)):
        shapes = {s.name: [d if isinstance(d, int) else -1 for d in s.shape] for s in specs}
        assert {t["name"]: t["shape"] for t in metadata[kind]} == shapes
        assert {t["name"]: t["datatype"] for t in metadata[kind]} == {
            s.name: DATATYPES[s.dtype] for s in specs
        }


def check_answers(
    port: int, model: str, session: Session, requests: list[Arrays], callers: int = 4
) -> None:
    """Requests of several shapes from several clients at once get what the session says."""
    expected = [session.run(**arrays) for arrays in requests]

    def ask(start: int) -> list[str]:
        client, wrong = client_of(port), []
        for i in range(len(requests)):
            n = (start + i) % len(requests)
            got = infer(client, model, requests[n], binary=(i + start) % 3 > 0)
            if not agree(got, expected[n]):
                wrong.append(f"request {n}")
        return wrong

    with ThreadPoolExecutor(callers) as pool:
        assert not [w for result in pool.map(ask, range(callers)) for w in result]


def check_context_ids(
    port: int, model: str, session: Session, request: Arrays, context: tuple[str, ...]
) -> None:
    client = client_of(port)
    text = {name: array for name, array in request.items() if name not in context}
    expected = session.run(**request)
    refusal = refused(lambda: infer(client, model, text, parameters={"context_id": "never sent"}))
    assert "context" in refusal
    assert agree(infer(client, model, request, parameters={"context_id": "cat"}), expected)
    assert agree(infer(client, model, text, parameters={"context_id": "cat"}), expected)


def refused(call: Callable[[], object]) -> str:
    """What the server said, in one paragraph without a traceback."""
    try:
        call()
    except InferenceServerException as error:
        text = str(error)
        assert "Traceback" not in text
        assert 'File "' not in text
        return text
    raise AssertionError("the server took it")


def check_refusals(
    port: int, model: str, session: Session, request: Arrays, floating: str, integer: str
) -> None:
    """Bad requests are told what is wrong, and the next good one is answered."""
    client = client_of(port)
    bad = [
        request | {integer: request[integer].astype(np.int32)},
        request | {integer: request[integer].reshape(-1)},
        {name: array for name, array in request.items() if name != integer},
        request | {floating: np.full_like(request[floating], np.nan)},
        request | {"more": request[integer]},
        request | {"self": request[integer]},
        request | {integer: np.concatenate([request[integer]] * 2)},
        {name: array[:0] for name, array in request.items()},
    ]
    said = [refused(lambda arrays=arrays: infer(client, model, arrays)) for arrays in bad]
    for text, name in zip(
        said, [integer, integer, integer, "NaN", "more", "self", "", ""], strict=True
    ):
        assert name in text, said
    assert "nothing" in refused(lambda: infer(client, "nothing", request))
    large(port, model)
    for body in (b"{", b'{"inputs": 3}', b"\x00\xff" * 50):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", f"/v2/models/{model}/infer", body)
        response = connection.getresponse()
        # Triton calls some of these 500.
        assert 400 <= response.status <= 500
        assert json.loads(response.read())["error"]
    assert agree(infer(client, model, request), session.run(**request))


def large(port: int, model: str, size: int = 100 << 20) -> None:
    """A body of 100 MB is refused, or cut off while it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest("POST", f"/v2/models/{model}/infer")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        chunk = bytes(1 << 20)
        for _ in range(size >> 20):
            connection.send(chunk)
        status = connection.getresponse().status
        assert status >= 400, status
    except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
        pass
    finally:
        connection.close()


class Load(Asking):
    """Closed-loop callers in the background; counts answers, wrong answers and failures."""

    def __init__(
        self,
        port: int,
        model: str,
        requests: list[Arrays],
        expected: list[Arrays],
        callers: int = 4,
    ) -> None:
        self.answers = 0
        self.wrong = 0
        self.failures: list[str] = []
        self.callers = callers
        self._lock = threading.Lock()
        self._arguments = (port, model, requests, expected)

    def ask(self, number: int) -> None:
        port, model, requests, expected = self._arguments
        client = client_of(port)
        turn = number
        while self.goes_on:
            turn += 1
            n = turn % len(requests)
            try:
                good = agree(infer(client, model, requests[n]), expected[n])
            except (InferenceServerException, OSError) as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                client = client_of(port)
                continue
            with self._lock:
                self.answers += 1
                self.wrong += not good
