"""In front of Serve's routes, over real sockets: who is answered while the server stops, how."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from crossfuse.serve.limits import Limits  # noqa: E402
from crossfuse.serve.rayserve import front  # noqa: E402
from crossfuse.serve.rayserve.front import (  # noqa: E402
    KEY,
    SHARES,
    Front,
    Shares,
    environment,
    middlewares,
    open_requests,
)
from crossfuse.serve.rayserve.options import ServeOptions  # noqa: E402

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


def ask(
    port: int, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", path, body, headers or {})
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


def test_a_server_too_busy_to_answer_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_BUSY_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(TimeoutError):
        open_requests("127.0.0.1", busy.getsockname()[1], "secret")


def test_without_a_key_nobody_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Front(told, "")) as port:
        assert open_requests("127.0.0.1", port, "") is None
        assert ask(port, "/well")[0] == 200
    monkeypatch.setenv(KEY, "from outside")
    (only,) = middlewares()
    assert only.kwargs["key"] == "from outside"
    assert open_requests("127.0.0.1", 1, "nobody listens") is None


def begun(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A head whose body doesn't come."""
    connection = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
    connection.sendall(b"POST /well HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    return connection


def test_bodies_that_do_not_come_take_no_place_at_all() -> None:
    """Twenty heads without bodies before a server of two places: others are answered, and those are
    told."""
    limits = Limits(max_queue=2, body_seconds=1)
    with served(Front(told, "secret", Shares(limits, 1, 5))) as port:
        idle = [begun(port) for _ in range(20)]
        try:
            for _ in range(5):
                assert ask(port, "/well", b"x")[0] == 200
            answers = [connection.recv(4000) for connection in idle]
        finally:
            for connection in idle:
                connection.close()
    assert all(b" 408 " in answer and b"did not come within 1 s" in answer for answer in answers)


def test_what_arrives_when_the_server_stops_is_told_so() -> None:
    with served(Front(told, "secret")) as port:
        connection = begun(port)
        while open_requests("127.0.0.1", port, "secret"):
            time.sleep(0.05)
        assert b"shutting down" in connection.recv(4000)
        connection.close()


def test_a_flood_waits_for_itself() -> None:
    """Thirty requests of one address, then one of another: it is third at the latest."""
    slow = Slow()
    order: list[str] = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["client"][0])
        await slow(scope, receive, send)

    with served(Front(noted, "secret", Shares(Limits(), 1, 20))) as port:
        flood = [begun(port, "127.0.0.2") for _ in range(30)]
        for connection in flood:
            connection.sendall(bytes(9))
        time.sleep(0.5)
        honest = threading.Thread(target=lambda: order.append(f"{ask(port, '/well', b'x')[0]}"))
        honest.start()
        time.sleep(0.3)
        slow.go.set()
        honest.join()
        for connection in flood:
            assert b" 200 " in connection.recv(4000)
            connection.close()
    assert order.index("127.0.0.1") <= 2
    assert len(order) == 32


def test_a_full_queue_is_told_and_waiting_has_an_end() -> None:
    slow = Slow()
    with served(Front(slow, "secret", Shares(Limits(max_queue=2), 1, 0.5))) as port:
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(port, "/", b"x"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        while len(answers) < 2:
            time.sleep(0.05)
        slow.go.set()
        for thread in threads:
            thread.join()
    assert sorted(status for status, *_ in answers) == [200, 503, 504]
    assert any(b"the queue is full: 2 requests wait" in body for _, body, _ in answers)


def test_headers_that_are_meant_for_serve_do_not_reach_it() -> None:
    seen: list[dict[bytes, bytes]] = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await told(scope, receive, send)

    given = {
        "serve_multiplexed_model_id": "\xff",
        "X-Session_ID": "\xff",
        "X-Request-Timeout-Seconds": "0",
        "X-Request-Disconnect-Disabled": "?1",
        "X-Request-ID": "\xff",
        "X-Mine": "1",
    }
    with served(Front(noted, "")) as port:
        assert ask(port, "/well", b"x", given)[0] == 200
        assert ask(port, "/well", b"x", {"X-Request-ID": "a-1"})[0] == 200
    first, second = seen
    assert first[b"x-mine"] == b"1"
    assert not [name for name in first if b"session" in name or b"multiplexed" in name]
    assert b"x-request-timeout-seconds" not in first
    assert b"x-request-disconnect-disabled" not in first
    assert first[b"x-request-id"].isalnum()
    assert second[b"x-request-id"] == b"a-1"


def test_nobody_talks_by_websocket() -> None:
    pytest.importorskip("websockets", reason="websockets is not installed")
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    head = b"GET /well HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with served(Front(told, "")) as port, socket.create_connection(("127.0.0.1", port), 20) as one:
        one.sendall(head + key)
        assert b" 403 " in one.recv(4000)


def test_shares_are_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(max_bytes=5, max_queue=9, allow_nan=True)
    made = environment(ServeOptions("b", "m", limits=limits, replicas=3, batch_size=2, timeout_s=7))
    assert made[KEY] != environment(ServeOptions("b", "m"))[KEY]
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    (only,) = middlewares()
    assert only.kwargs["shares"] == Shares(limits, 24, 7)
    monkeypatch.delenv(SHARES)
    assert middlewares()[0].kwargs["shares"] == Shares()


def test_a_path_without_a_slash_is_unknown() -> None:
    with served(Front(told, "secret")) as port:
        status, body, _ = ask(port, "*", b"x")
    assert (status, json.loads(body)) == (404, {"error": "a path begins with a slash."})
