"""The campaign of `memory.py`, in short."""

from __future__ import annotations

import pytest

from campaigns.memory import short_memory
from campaigns.operations import run


@pytest.mark.slow
def test_who_runs_out_of_memory_says_so() -> None:
    assert sum(run(short_memory, 20, seed=0).values()) == 20
