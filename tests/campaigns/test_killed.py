"""The campaigns of `killed.py` and `killed_maps.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

from campaigns.killed import CAMPAIGNS
from campaigns.operations import run

MAPS = ("killed_maps", "killed_ray_maps")


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_no_kill_leaves_anything(campaign: Any) -> None:
    assert sum(run(campaign, 4, seed=0).values()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_a_killed_job_goes_on(name: str) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    from campaigns import killed_maps

    times = 2 if "ray" in name else 12
    assert sum(run(getattr(killed_maps, name), times, seed=1).values()) == times
