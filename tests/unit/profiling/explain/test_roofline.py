"""Least times under a machine's limits."""

from __future__ import annotations

import pytest

from crossfuse.profiling.explain.attribution import NodeTime
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.explain.roofline import attained

LIMITS = Limits(flops=1e9, bandwidth=1e8, product=(1, 1, 1))


def node(seconds: float, flops: int, moved: int) -> NodeTime:
    return NodeTime("n", "op", "GEMM", "", None, seconds, flops, moved)


def test_each_node_is_bound_by_what_takes_longer() -> None:
    found = attained([node(0.4, 100_000_000, 1000), node(0.6, 1000, 20_000_000)], LIMITS)
    assert found.least == pytest.approx(0.1 + 0.2)
    assert found.fraction == pytest.approx(0.3)
    assert found.rate == pytest.approx(100_001_000)
    assert found.intensity == pytest.approx(100_001_000 / 20_001_000)


def test_nothing_attains_nothing() -> None:
    found = attained([], LIMITS)
    assert (found.fraction, found.rate, found.intensity) == (0.0, 0.0, 0.0)
