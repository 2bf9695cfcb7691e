"""``crossfuse serve``: on a Ray of its own or an existing cluster, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve

from crossfuse.errors import Advice, CheckError, InputError, Said
from crossfuse.serve.rayserve.app import application
from crossfuse.serve.rayserve.options import ServeOptions

__all__ = ["asked_to_stop", "deploy", "running", "stop"]

_POLL = 0.05


def deploy(options: ServeOptions, host: str, port: int) -> None:
    """Start the application, or replace it without a gap where it runs already.

    This returns when it is ready.

    Raises:
        InputError: the cluster has too few CPUs or GPUs for the replicas.
        CheckError: a replica did not start.
    """
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
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": port, "request_timeout_s": options.timeout_s + 5},
    )
    try:
        serve.run(application(options), name=options.name, route_prefix="/")
    except RuntimeError as error:
        raise CheckError(
            f"the application did not start: {error}",
            do="The replicas' logs are in /tmp/ray/session_latest/logs/serve",
        ) from error


@contextmanager
def running(options: ServeOptions, host: str, port: int) -> Iterator[None]:
    """The application for the time of the context.

    At its end, what was accepted is answered first.
    """
    deploy(options, host, port)
    try:
        yield
    finally:
        stop(options)


def stop(options: ServeOptions) -> None:
    """Refuse new requests, finish those that were taken, and end Serve."""
    ingress = serve.run(application(options, draining=True), name=options.name, route_prefix="/")
    end = time.monotonic() + options.drain_s
    while time.monotonic() < end and ingress.open_requests.remote().result():
        time.sleep(_POLL)
    serve.delete(options.name)
    serve.shutdown()


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
