"""The campaigns of `killed.py` and `killed_maps.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

from campaigns.killed import CAMPAIGNS
from campaigns.operations import run


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_no_kill_leaves_anything(campaign: Any) -> None:
    assert sum(run(campaign, 4, seed=0).values()) == 4


@pytest.mark.slow
def test_a_killed_job_goes_on() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    from campaigns.killed_maps import killed_maps, killed_ray_maps

    assert sum(run(killed_maps, 12, seed=1).values()) == 12
    assert sum(run(killed_ray_maps, 2, seed=1).values()) == 2
