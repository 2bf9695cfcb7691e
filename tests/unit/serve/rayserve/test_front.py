"""In front of Serve's routes, over real sockets: who is answered while the server stops, how."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from crossfuse.serve.rayserve.front import KEY, Front, middlewares, open_requests  # noqa: E402

SAID: dict[str, tuple[int, bytes, bytes]] = {
    "/ours": (404, b"application/json", b'{"error": "there is no model"}'),
    "/gone": (404, b"text/plain", b"Path '/gone' not found. Ping http://.../-/routes"),
    "/died": (500, b"text/plain", b"Traceback: RayTaskError in replica 7 at /home/me/x.py"),
    "/slow-one": (408, b"text/plain", b"Request timed out after 65s"),
    "/busy": (503, b"text/plain", b"Deployment busy: 10.0.0.7"),
    "/well": (200, b"application/octet-stream", b"\x00\x01"),
}


async def told(scope: Any, receive: Any, send: Any) -> None:
    status, kind, body = SAID[scope["path"]]
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        while (await receive()).get("more_body"):
            pass
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        await told({"path": "/well"}, receive, send)


@contextmanager
def served(app: Any) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", path, body)
    answer = connection.getresponse()
    return answer.status, answer.read(), {n.lower(): v for n, v in answer.getheaders()}


def test_what_is_taken_is_answered_and_what_is_new_is_refused() -> None:
    slow = Slow()
    with served(Front(slow, "secret")) as port:
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(port, "/", b"x"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert open_requests("127.0.0.1", port, "secret") == 3
        status, body, headers = ask(port, "/v2/models/m/infer", bytes(8 << 20))
        assert status == 503
        assert json.loads(body) == {"error": "the server is shutting down."}
        assert (headers["connection"], headers["retry-after"]) == ("close", "1")
        assert open_requests("0.0.0.0", port, "secret") == 3
        slow.go.set()
        for thread in threads:
            thread.join()
        assert [(status, body) for status, body, _ in answers] == [(200, b"\x00\x01")] * 3
        assert {headers["connection"] for *_, headers in answers} == {"close"}
        assert open_requests("127.0.0.1", port, "secret") == 0


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/ours", 404, "there is no model"),
        ("/gone", 503, "the server has no model now. Try again later."),
        ("/died", 500, "the server failed; its log says why."),
        ("/slow-one", 504, "no answer in time."),
        ("/busy", 503, "the server is busy. Try again later."),
    ],
)
def test_what_serve_says_is_worded(path: str, status: int, error: str) -> None:
    with served(Front(told, "secret")) as port:
        found, body, headers = ask(port, path)
        assert (found, json.loads(body)["error"]) == (status, error)
        assert headers["content-type"] == "application/json"
        assert open_requests("127.0.0.1", port, "wrong") is None
        assert ask(port, "/well")[:2] == (200, b"\x00\x01")


def test_without_a_key_nobody_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Front(told, "")) as port:
        assert open_requests("127.0.0.1", port, "") is None
        assert ask(port, "/well")[0] == 200
    monkeypatch.setenv(KEY, "from outside")
    (only,) = middlewares()
    assert only.kwargs["key"] == "from outside"
    assert open_requests("127.0.0.1", 1, "nobody listens") is None
