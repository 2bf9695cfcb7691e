"""The campaigns of `short.py`, in short."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("model_signing", reason="model-signing is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

from campaigns.operations import run
from campaigns.short import CAMPAIGNS


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda one: one.__name__)
def test_a_command_that_lacks_something_says_so(campaign: Any) -> None:
    try:
        assert sum(run(campaign, 22, seed=1).values()) == 22
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
