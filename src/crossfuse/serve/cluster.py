"""Ray on this machine, or an existing cluster, for the time of a context.

Ray is imported here first, never before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from crossfuse.errors import InputError

__all__ = ["connected", "local_ray"]

_PRIVATE = {
    # Ray takes the machine's outward address for its own where it believes in clusters; this is its
    # switch not to.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def local_ray(*, cpus: float | None = None, metrics_port: int | None = None) -> Iterator[None]:
    """A Ray on this machine alone: its processes listen on the loopback interface, and nothing is
    reported anywhere.

    Args:
        cpus: that Ray may give away; all of the machine's where omitted.
        metrics_port: where Prometheus finds metrics; any free one where omitted.
    """
    os.environ.update({name: value for name, value in _PRIVATE.items() if name not in os.environ})
    import ray

    ray.init(
        address="local",
        num_cpus=None if cpus is None else math.ceil(cpus),
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=metrics_port,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """An existing cluster, which stays.

    Raises:
        InputError: there is none at the address.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise InputError(
            "there is no Ray cluster at this address", got=address, do="Start one: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
