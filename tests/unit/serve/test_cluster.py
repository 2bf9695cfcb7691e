"""Ray for the time of a context: on this machine alone, or an existing cluster that stays."""

from __future__ import annotations

import os
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.errors import InputError  # noqa: E402
from crossfuse.serve.cluster import connected, local_ray  # noqa: E402


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(ray, "init", lambda **options: made.append(("init", options)))
    monkeypatch.setattr(ray, "shutdown", lambda: made.append(("shutdown", {})))
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    return made


def test_a_local_ray_reports_nothing_and_ends(calls: list[tuple[str, dict[str, Any]]]) -> None:
    def fails() -> None:
        with local_ray(cpus=1.2, metrics_port=7):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
            raise KeyError("whatever happens inside")

    with pytest.raises(KeyError):
        fails()
    (_, options), (ended, _) = calls
    assert (options["address"], options["num_cpus"]) == ("local", 2)
    assert (options["_metrics_export_port"], options["include_dashboard"]) == (7, False)
    assert ended == "shutdown"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1", "a user's own choice stands"


def test_an_address_without_a_cluster(
    calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected("10.0.0.1:1"):
        assert calls[0][1]["address"] == "10.0.0.1:1"

    def absent(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", absent)
    with pytest.raises(InputError, match="no Ray cluster at this address: got 10.0.0.1:1"):
        connected("10.0.0.1:1").__enter__()
