"""Every model of the coverage suite: attentions of the expected kinds, all fused, parity passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import crossfuse
from coverage import type_cases
from coverage.cases import CASES, Case
from coverage.rows import TARGETS, row_of
from crossfuse.bundle.store import Bundle

QUICK = ("bart", "t5")
"""Decoders, one of them with position biases: other tests ask for these bundles too."""

CHEAP = (
    "blip2_qformer",
    "idefics2_resampler",
    "instructblip_qformer",
    "musicgen_decoder",
    "perceiver",
    "trocr",
    "vilt",
)
"""Queries, latents, codebooks, padded images: exported quickly, for one target."""


def check(case: Case, row: dict[str, Any], targets: Sequence[str]) -> None:
    """The row is what the case says, fused for the targets, and within its tolerance."""
    assert "failed" not in row, row["failed"]
    assert row["counts"] == {kind: n for kind, n in row["expected"].items() if n}
    fused = sum(row["counts"].values()) - case.unfused
    assert row["fused"] == dict.fromkeys(targets, fused)
    assert row["error"] <= row["tolerance"]
    assert "batch" in row["dims"]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_model_is_covered(name: str, shared_bundle: Callable[..., Bundle]) -> None:
    unfused = {"allow_unfused": True} if CASES[name].unfused else {}
    row = row_of(CASES[name], lambda _: shared_bundle(f"coverage/{name}", TARGETS, **unfused))
    check(CASES[name], row, TARGETS)


def test_retrieval_is_covered(shared_bundle: Callable[..., Bundle]) -> None:
    targets, case = ("ort-cpu",), CASES["blip_retrieval"]
    check(case, row_of(case, lambda _: shared_bundle(f"coverage/{case.name}"), targets), targets)


@pytest.mark.parametrize("name", CHEAP)
def test_model_is_covered_quickly(name: str, tmp_path: Path) -> None:
    targets, case = ("ort-cpu",), CASES[name]
    row = row_of(
        case, lambda spec: crossfuse.export(spec, tmp_path / "b", targets, quick=True), targets
    )
    check(case, row, targets)


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
