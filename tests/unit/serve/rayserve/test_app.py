"""What Serve is asked to deploy."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.serve.limits import Limits
from crossfuse.serve.rayserve.app import application, build, config
from crossfuse.serve.rayserve.options import ServeOptions

OPTIONS = ServeOptions(
    "bundle", "m", limits=Limits(max_queue=5), num_cpus=0.5, num_gpus=1, batch_size=4, drain_s=7
)


def deployments(options: ServeOptions) -> tuple[Any, Any]:
    """The ingress's deployment, and the replica's that is bound into it."""
    ingress = application(options)._bound_deployment
    return ingress, ingress.init_args[1]._bound_deployment


def test_resources_and_limits_are_the_options() -> None:
    ingress, replica = deployments(OPTIONS)
    assert (ingress.name, replica.name) == ("ingress", "replica")
    assert replica.ray_actor_options["num_cpus"] == 0.5
    assert replica.ray_actor_options["num_gpus"] == 1
    assert replica.max_queued_requests == 5
    assert replica.max_ongoing_requests == 8, "one batch is computed while the next gathers"
    assert ingress.max_ongoing_requests > 5, "the ingress itself refuses what is too many"
    assert ingress.init_args[0] == replica.init_args[0] == OPTIONS.to_json()


@pytest.mark.parametrize(("most", "scales"), [(0, False), (2, False), (5, True)])
def test_replicas_scale_between_two_numbers(most: int, scales: bool) -> None:
    _, replica = deployments(ServeOptions("b", "m", replicas=2, max_replicas=most, batch_size=3))
    automatic = replica._deployment_config.autoscaling_config
    assert (automatic is not None) == scales
    if automatic is None:
        assert replica.num_replicas == 2
    else:
        assert (automatic.min_replicas, automatic.max_replicas) == (2, 5)
        assert automatic.target_ongoing_requests == 3


def test_the_config_file_names_the_function_that_builds_it() -> None:
    found = config(OPTIONS, host="0.0.0.0", port=81)
    assert found["http_options"] == {"host": "0.0.0.0", "port": 81, "request_timeout_s": 65.0}
    (one,) = found["applications"]
    module, _, function = one["import_path"].partition(":")
    assert (module, function) == (build.__module__, build.__name__)
    assert build(one["args"])._bound_deployment.init_args[0] == OPTIONS.to_json()
