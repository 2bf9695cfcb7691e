"""Models of diffusers and modules of other libraries: attentions of the expected kinds, fused,
parity passed."""

from __future__ import annotations

from pathlib import Path

import pytest

import crossfuse
from coverage import diffusers_cases, library_cases
from coverage.cases import Case

pytestmark = pytest.mark.slow

TARGETS = ("onnx", "ort-cpu", "ort-cuda")
CASES: dict[str, Case] = {**diffusers_cases.CASES, **library_cases.CASES}


def test_lists_are_of_ten_and_more() -> None:
    assert not diffusers_cases.CASES.keys() & library_cases.CASES.keys()
    assert min(len(diffusers_cases.CASES), len(library_cases.CASES)) >= 10


@pytest.mark.parametrize("name", CASES)
def test_model_is_covered(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    bundle = crossfuse.export(
        case.make(), tmp_path / "b", TARGETS, allow_unfused=bool(case.unfused)
    )
    expected = {
        "self": case.self_attentions,
        "cross": case.cross_attentions,
        "unknown": case.unfused,
    }
    counts = bundle.ledger.counts()
    assert counts == {kind: n for kind, n in expected.items() if n}
    for target in TARGETS:
        assert sum(bundle.ledger.counts(target).values()) == sum(counts.values()) - case.unfused
    for output in bundle.manifest.targets["ort-cpu"].parity["outputs"].values():
        assert output["max_abs"] <= output["tolerance"]
    assert "batch" in bundle.manifest.dims
