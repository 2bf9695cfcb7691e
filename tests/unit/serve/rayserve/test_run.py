"""Deploying and stopping, over a Serve that only takes note."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.errors import CheckError, InputError
from crossfuse.serve.rayserve import run
from crossfuse.serve.rayserve.options import ServeOptions

OPTIONS = ServeOptions("bundle", "m", replicas=2, num_cpus=1.5, drain_s=5)


class Serve:
    """Notes what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, []

    def start(self, **options: Any) -> None:
        self.calls.append(("start", options["http_options"]["port"]))

    def run(self, application: Any, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("run", options["route_prefix"]))


def use(monkeypatch: pytest.MonkeyPatch, serve: Serve, **resources: float) -> None:
    monkeypatch.setattr(run.serve, "start", serve.start)
    monkeypatch.setattr(run.serve, "run", serve.run)
    monkeypatch.setattr(run.ray, "cluster_resources", lambda: resources)


def proxy(monkeypatch: pytest.MonkeyPatch, calls: list[Any], waiting: list[int | None]) -> None:
    """A server's proxy that is asked how many requests are not answered."""

    def looked(host: str, port: int, key: str) -> int | None:
        calls.append((host, port, waiting[0]))
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    monkeypatch.setattr(run, "open_requests", looked)
    monkeypatch.setattr(run, "_POLL", 0)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"CPU": 2.0}, r"more CPUs than there are: got 2 × 1.5, expected at most 2"),
        ({"CPU": 8.0, "GPU": 1.0}, r"more GPUs than there are: got 2 × 1, expected at most 1"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], message: str
) -> None:
    serve = Serve()
    use(monkeypatch, serve, **resources)
    options = ServeOptions("b", "m", replicas=2, num_cpus=1.5, num_gpus=float("GPU" in resources))
    with pytest.raises(InputError, match=message):
        run.deploy(options, "127.0.0.1", 80)
    assert serve.calls == []


def test_an_application_that_does_not_start_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, Serve(error=RuntimeError("no module")), CPU=4.0)
    with pytest.raises(CheckError, match="did not start: no module"):
        run.deploy(OPTIONS, "127.0.0.1", 80)


def test_tracebacks_of_other_processes_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError('Traceback:\n  File "x.py", line 1\nValueError: the last line\n')
    use(monkeypatch, Serve(error=error), CPU=4.0)
    with pytest.raises(CheckError, match="did not start: ValueError: the last line") as told:
        run.deploy(OPTIONS, "127.0.0.1", 80)
    assert 'File "' not in str(told.value)


def test_what_was_taken_is_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application stays until Ray ends, so that nobody is told that it isn't there."""
    serve = Serve()
    use(monkeypatch, serve, CPU=4.0)
    proxy(monkeypatch, serve.calls, [2, 1, 0])
    with pytest.raises(KeyError), run.running(OPTIONS, "127.0.0.1", 99):
        raise KeyError("whatever ends it")
    assert serve.calls == [
        ("start", 99),
        ("run", "/"),
        ("127.0.0.1", 99, 2),
        ("127.0.0.1", 99, 1),
        ("127.0.0.1", 99, 0),
    ]


@pytest.mark.parametrize("waiting", [1 << 30, None])
def test_draining_has_an_end(monkeypatch: pytest.MonkeyPatch, waiting: int | None) -> None:
    calls: list[Any] = []
    proxy(monkeypatch, calls, [waiting])
    run.stop(ServeOptions("b", "m", drain_s=0.01), "::", 80)
    assert calls[0] == ("::", 80, waiting)


def test_a_server_that_is_too_busy_to_say_is_not_taken_for_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = iter([TimeoutError(), 3, TimeoutError(), 0])
    asked: list[object] = []

    def looked(*_: object) -> int:
        asked.append(next(said))
        if isinstance(asked[-1], TimeoutError):
            raise asked[-1]
        return int(str(asked[-1]))

    monkeypatch.setattr(run, "open_requests", looked)
    run.stop(OPTIONS, "127.0.0.1", 80)
    assert asked[-1] == 0
    assert len(asked) == 4


def test_the_server_is_ready_when_its_metrics_are_told() -> None:
    """The first page doesn't have them yet."""
    pages = [b"ray_node 1\n", b"ray_crossfuse_open_requests 0\n"]
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[min(len(asked), 2) - 1])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        run.wait_for_metrics(f"http://127.0.0.1:{server.server_port}/metrics")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/metrics"] * 2


STOPPED = """
import os, signal, sys
from crossfuse.serve.rayserve import run
number = int(sys.argv[1])
before = signal.getsignal(number)
with run.asked_to_stop() as asked:
    assert not asked.is_set()
    os.kill(os.getpid(), number)
    assert asked.wait(5)
assert signal.getsignal(number) is before
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_set_an_event_and_get_their_handlers_back(number: signal.Signals) -> None:
    # In a process of its own: others in the tests' may have threads that take signals.
    command = [sys.executable, "-c", STOPPED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
