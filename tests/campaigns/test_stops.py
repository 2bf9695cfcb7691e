"""The campaigns of `stops.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from campaigns.operations import run
from campaigns.stops import CAMPAIGNS


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_nobody_waits_for_a_server_that_stops(campaign: Any) -> None:
    assert sum(run(campaign, 1, seed=0).values()) == 1
