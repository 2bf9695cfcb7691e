"""``crossfuse serve``: on a Ray of its own or an existing cluster, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray import serve

from crossfuse.core.text import brief
from crossfuse.errors import Advice, CheckError, InputError, Said
from crossfuse.serve.cluster import starting
from crossfuse.serve.rayserve.app import application
from crossfuse.serve.rayserve.front import KEY, open_requests
from crossfuse.serve.rayserve.options import ServeOptions

__all__ = ["asked_to_stop", "deploy", "running", "stop", "wait_for_metrics"]

_POLL = 0.02
_METRICS_SECONDS = 10.0


def deploy(options: ServeOptions, host: str, port: int) -> None:
    """Start the application, or replace it without a gap where it runs already.

    This returns when it is ready.

    Raises:
        InputError: the cluster has too few CPUs or GPUs for the replicas.
        CheckError: a replica did not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    have = ray.cluster_resources()
    for resource, each in (("CPU", options.num_cpus), ("GPU", options.num_gpus)):
        if each * options.replicas > have.get(resource, 0):
            raise InputError(
                f"the replicas need more {resource}s than there are",
                got=f"{options.replicas} × {each:g}",
                expected=f"at most {have.get(resource, 0):g}",
                do=Advice(
                    "Ask for fewer {}, or less with {}",
                    Said("--replicas", "replicas"),
                    Said(f"--num-{resource.lower()}s", f"num_{resource.lower()}s"),
                ),
            )
    with starting("Ray Serve"):
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": host, "port": port, "request_timeout_s": options.timeout_s + 5},
        )
    try:
        serve.run(application(options), name=options.name, route_prefix="/")
    except Exception as error:  # Ray's and Serve's exceptions have no common base
        raise CheckError(
            f"the application did not start: {_last_line(error)}",
            do="The replicas' logs are in /tmp/ray/session_latest/logs/serve",
        ) from error


@contextmanager
def running(options: ServeOptions, host: str, port: int) -> Iterator[None]:
    """The application on a Ray of one's own, for the time of the context.

    At its end, what was accepted is answered. The server still listens then, and refuses what is
    new, until Ray ends.
    """
    deploy(options, host, port)
    try:
        yield
    finally:
        stop(options, host, port)


def stop(options: ServeOptions, host: str, port: int) -> None:
    """Refuse new requests, and finish those that were taken."""
    key = os.environ.get(KEY, "")
    end = time.monotonic() + options.drain_s
    while time.monotonic() < end:
        with suppress(TimeoutError):  # busy, and so not done
            if not open_requests(host, port, key):
                return
        time.sleep(_POLL)


def wait_for_metrics(url: str) -> None:
    """Until the page of metrics tells of the application: Ray's processes tell what they count
    every second."""
    end = time.monotonic() + _METRICS_SECONDS
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as page:
            if b"crossfuse_open_requests" in page.read():
                return
        time.sleep(_POLL)


def _last_line(error: Exception) -> str:
    """What went wrong, of a text that has tracebacks of several processes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return brief(lines[-1]) if lines else type(error).__name__


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of ending the process.

    Ray's own handlers come back afterwards.
    """
    asked = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
