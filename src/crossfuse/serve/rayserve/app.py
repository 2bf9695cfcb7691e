"""The application: what Serve deploys, and its config file."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from crossfuse.serve.rayserve.ingress import Ingress
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.rayserve.replica import Replica

__all__ = ["application", "build", "config"]

_ROUTER = "crossfuse.serve.rayserve.router.HomeRouter"


def build(arguments: dict[str, Any]) -> Application:
    """The application of `ServeOptions` in plain data; a Serve config file names this function."""
    return application(ServeOptions.from_json(arguments))


def application(options: ServeOptions) -> Application:
    """The application."""
    logging = LoggingConfig(encoding=options.log_format.upper(), enable_access_log=True)
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas > options.replicas:
        automatic = AutoscalingConfig(
            min_replicas=options.replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.batch_size,
        )
        scaling = {"autoscaling_config": automatic}
    replica = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # Twice a batch: one is computed while the next gathers. So with sequences.
        max_ongoing_requests=2 * (options.batch_size + options.slots),
        max_queued_requests=options.limits.max_queue,
        graceful_shutdown_timeout_s=options.drain_s,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        logging_config=logging,
        **scaling,
    )
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        ray_actor_options={"num_cpus": 0},
        # One more than the limit, so that the ingress itself can refuse.
        max_ongoing_requests=2 * options.limits.max_queue + 64,
        graceful_shutdown_timeout_s=options.drain_s,
        logging_config=logging,
        # It needs next to nothing, so the new one may stand beside the old one, which answers until
        # then.
        max_surge_percent=100,
    )
    plain = options.to_json()
    return ingress.bind(plain, replica.bind(plain))


def config(options: ServeOptions, *, host: str, port: int) -> dict[str, Any]:
    """A Serve config file's content, for ``serve deploy`` or a RayService."""
    application = {
        "name": options.name,
        "route_prefix": "/",
        "import_path": "crossfuse.serve.rayserve.app:build",
        "args": options.to_json(),
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "request_timeout_s": options.timeout_s + 5},
        "logging_config": {"encoding": options.log_format.upper()},
        "applications": [application],
    }
