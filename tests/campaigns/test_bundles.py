"""The campaign of `bundles.py`, in short."""

from __future__ import annotations

import pytest

from campaigns.bundles import bundles
from campaigns.operations import run


@pytest.mark.slow
def test_no_damage_ends_or_misleads_who_opens_it() -> None:
    assert sum(run(bundles, 300, seed=0).values()) == 300
