"""The campaigns of `killed.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

from campaigns.killed import CAMPAIGNS
from campaigns.operations import run


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_no_kill_leaves_anything(campaign: Any) -> None:
    assert sum(run(campaign, 4, seed=0).values()) == 4
