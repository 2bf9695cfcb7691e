"""Deploying and stopping, over a Serve that only takes note."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.errors import CheckError, InputError
from crossfuse.serve.rayserve import run
from crossfuse.serve.rayserve.options import ServeOptions

OPTIONS = ServeOptions("bundle", "m", replicas=2, num_cpus=1.5, drain_s=5)


class Serve:
    """Notes what is asked of it; its ingress has so many open requests, one less at each look."""

    def __init__(self, open_requests: int = 0, error: Exception | None = None) -> None:
        self.open_requests, self.error, self.calls = open_requests, error, []

    def start(self, **options: Any) -> None:
        self.calls.append(("start", options["http_options"]["port"]))

    def run(self, application: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        config = application._bound_deployment.user_config
        self.calls.append(("run", config["draining"]))
        return SimpleNamespace(open_requests=SimpleNamespace(remote=self._look))

    def _look(self) -> Any:
        self.calls.append(("look", self.open_requests))
        self.open_requests -= 1
        return SimpleNamespace(result=lambda: self.open_requests + 1)

    def delete(self, name: str) -> None:
        self.calls.append(("delete", name))

    def shutdown(self) -> None:
        self.calls.append(("shutdown", None))


def use(monkeypatch: pytest.MonkeyPatch, serve: Serve, **resources: float) -> None:
    monkeypatch.setattr(run.serve, "start", serve.start)
    monkeypatch.setattr(run.serve, "run", serve.run)
    monkeypatch.setattr(run.serve, "delete", serve.delete)
    monkeypatch.setattr(run.serve, "shutdown", serve.shutdown)
    monkeypatch.setattr(run.ray, "cluster_resources", lambda: resources)


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


def test_what_was_taken_is_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(open_requests=2)
    use(monkeypatch, serve, CPU=4.0)
    monkeypatch.setattr(run, "_POLL", 0)
    with pytest.raises(KeyError), run.running(OPTIONS, "127.0.0.1", 99):
        raise KeyError("whatever ends it")
    assert serve.calls == [
        ("start", 99),
        ("run", False),
        ("run", True),
        ("look", 2),
        ("look", 1),
        ("look", 0),
        ("delete", "m"),
        ("shutdown", None),
    ]


def test_draining_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(open_requests=1 << 30)
    use(monkeypatch, serve, CPU=4.0)
    run.stop(ServeOptions("b", "m", drain_s=0.01))
    assert serve.calls[-1] == ("shutdown", None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_set_an_event_and_get_their_handlers_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with run.asked_to_stop() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), number)
        assert asked.wait(5)
    assert signal.getsignal(number) is before
