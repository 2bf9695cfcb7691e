"""The campaign of `stops.py`, in short."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from campaigns.operations import run
from campaigns.stops import stops


@pytest.mark.slow
def test_nobody_waits_for_a_server_that_stops() -> None:
    assert sum(run(stops, 1, seed=0).values()) == 1
