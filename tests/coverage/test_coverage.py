"""Every model of the coverage suite: attentions of the expected kinds, all fused, parity passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import crossfuse
from coverage import type_cases
from coverage.cases import CASES
from coverage.rows import TARGETS, row_of
from crossfuse.bundle.store import Bundle

QUICK = ("vilt", "t5", "perceiver", "idefics2_resampler")
"""Padded images, a decoder with position biases, latents; the last by the library's interface."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_model_is_covered(name: str, shared_bundle: Callable[..., Bundle]) -> None:
    unfused = {"allow_unfused": True} if CASES[name].unfused else {}
    row = row_of(CASES[name], lambda _: shared_bundle(f"coverage/{name}", TARGETS, **unfused))
    assert "failed" not in row, row["failed"]
    assert row["counts"] == {kind: n for kind, n in row["expected"].items() if n}
    fused = sum(row["counts"].values()) - CASES[name].unfused
    assert row["fused"] == dict.fromkeys(TARGETS, fused)
    assert row["error"] <= row["tolerance"]
    assert "batch" in row["dims"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", type_cases.SHOWN)
def test_type_is_covered(model_type: str, tmp_path: Path) -> None:
    targets = ("ort-cpu",)
    row = row_of(
        type_cases.CASES[f"type:{model_type}"],
        lambda spec: crossfuse.export(spec, tmp_path / "b", targets, quick=True),
        targets,
    )
    assert "failed" not in row, row["failed"]
    assert row["fused"] == {"ort-cpu": sum(row["counts"].values())}
    assert row["error"] <= row["tolerance"]
