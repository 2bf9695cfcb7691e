"""Every model of the coverage suite: attentions of the expected kinds, all fused, parity passed."""

from __future__ import annotations

import pytest

from coverage.cases import CASES
from coverage.table import TARGETS, run_case

QUICK = ("clip", "vilt", "t5", "trocr", "perceiver", "idefics2_resampler")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_model_is_covered(name: str) -> None:
    row = run_case(name)
    assert "failed" not in row, row["failed"]
    assert row["counts"] == {kind: n for kind, n in row["expected"].items() if n}
    fused = sum(row["counts"].values()) - CASES[name].unfused
    assert row["fused"] == dict.fromkeys(TARGETS, fused)
    assert row["error"] <= row["tolerance"]
    assert "batch" in row["dims"]
