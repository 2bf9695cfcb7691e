"""Ray on this machine, or an existing cluster, for the time of a context.

Ray is imported here first, never before.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from crossfuse.core.foreign import cause_of
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.core.processes import descendants, end_those
from crossfuse.errors import CheckError, InputError
from crossfuse.serve.guardian import guarded

__all__ = ["connected", "local_ray", "require_free", "starting"]

_PRIVATE = {
    # Ray takes the machine's outward address for its own where it believes in clusters; this is its
    # switch not to.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its load balancer listens on all interfaces.
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    # What it counts is told every second, in place of every ten.
    "RAY_metrics_report_interval_ms": "1000",
    # Or it warns of what it will do with GPUs in the future.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_TOKEN = "RAY_AUTH_TOKEN"
_TOKENS = ("RAY_AUTH_MODE", _TOKEN, "RAY_AUTH_TOKEN_PATH")
"""Variables with which a user says how Ray's processes know each other."""


@contextmanager
def local_ray(
    *,
    cpus: float | None = None,
    metrics_port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """A Ray on this machine alone: its processes listen on the loopback interface, answer only who
    has a token that is made for this run, and nothing is reported anywhere. None is left at the
    end.

    Args:
        cpus: that Ray may give away; all of the machine's where omitted.
        metrics_port: where Prometheus finds metrics; any free one where omitted.
        environment: more variables of its processes.

    Raises:
        CheckError: Ray did not start.
    """
    private = dict(_PRIVATE)
    if not any(name in os.environ for name in _TOKENS):
        private[_TOKEN] = secrets.token_hex(32)
    os.environ.update({name: value for name, value in private.items() if name not in os.environ})
    os.environ.update(environment or {})
    import ray

    is_told = os.environ.get("CROSSFUSE_DEBUG") == "1"
    with guarded():
        others = descendants()
        try:
            with starting("Ray"):
                ray.init(
                    address="local",
                    num_cpus=None if cpus is None else math.ceil(cpus),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.INFO if is_told else logging.ERROR,
                    _metrics_export_port=metrics_port,
                )
            yield
        finally:
            # What Ray leaves to end by itself may take a minute, and keeps its connections until
            # then.
            ours = {one: began for one, began in descendants().items() if one not in others}
            ray.shutdown()
            end_those(ours)


@contextmanager
def starting(what: str) -> Iterator[None]:
    """Processes that are started: what they fail by is the machine's, of whatever kind.

    Args:
        what: is started.

    Raises:
        CheckError: it did not start.
    """
    try:
        yield
    except Exception as error:  # the exceptions of Ray and of its processes have no common base
        raise CheckError(
            f"{what} did not start: {cause_of(error)}",
            do=help_for(error, writing=True)
            or "Try again when the machine has memory and processors free; what else it needs, "
            "Ray's logs say: /tmp/ray/session_latest/logs",
        ) from error


@contextmanager
def connected(address: str) -> Iterator[None]:
    """An existing cluster, which stays.

    Raises:
        InputError: there is none at the address, or one that doesn't know this process's token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InputError(
            "there is no Ray cluster at this address", got=address, do="Start one: ray start --head"
        ) from error
    except AuthenticationError as error:
        raise InputError(
            "the Ray cluster wants a token that this process doesn't have",
            got=address,
            do="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as the cluster "
            "has them",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def require_free(host: str, port: int) -> None:
    """Refuse an address on which nobody can listen, before a server is started for it.

    Raises:
        InputError: somebody listens there, or the machine has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        kind, form, protocol, _, address = found[0]
        with socket.socket(kind, form, protocol) as trial:
            with suppress(OSError):
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise InputError(
            f"the server can't listen there: {reason_of(error)}",
            where=f"{host}:{port}",
            do="Choose another port, or end what has it",
        ) from error
