"""The campaign of `crowds.py`, in short."""

from __future__ import annotations

import pytest

from campaigns.crowds import requests
from campaigns.operations import run


@pytest.mark.slow
def test_nobody_gets_anothers_answer() -> None:
    assert sum(run(requests, 20_000, seed=1).values()) == 20_000
