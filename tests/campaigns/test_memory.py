"""The campaigns of `memory.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("model_signing", reason="model-signing is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

from campaigns.memory import CAMPAIGNS
from campaigns.operations import run


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_memory_that_runs_out_is_told_and_costs_nothing(campaign: Any) -> None:
    assert sum(run(campaign, 22, seed=1).values()) == 22
