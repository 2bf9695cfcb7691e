"""The campaigns of `operations.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

from campaigns.operations import CAMPAIGNS, run

TIMES = {"manifests": 400, "archives": 400, "graphs": 400, "kills": 10, "changes": 24, "loads": 40}


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_no_campaign_finds_anything(campaign: Any) -> None:
    times = TIMES[campaign.__name__]
    assert sum(run(campaign, times, seed=1).values()) == times
