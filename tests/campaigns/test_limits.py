"""The campaigns of `limits.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

from campaigns.limits import CAMPAIGNS
from campaigns.operations import run

TIMES = {"small_files": 40, "descriptors": 36, "full_disks": 12}


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_no_limit_costs_a_bundle(campaign: Any) -> None:
    times = TIMES[campaign.__name__]
    try:
        assert sum(run(campaign, times, seed=1).values()) == times
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
