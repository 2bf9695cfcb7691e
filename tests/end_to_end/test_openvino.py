"""Whole bundles on OpenVINO: the zoo and others, in fp32 and bf16, each attention in one kernel; a
model of one's own in profile and tune; what is not fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from coverage.cases import CASES
from crossfuse import FusionError, ModelSpec, runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.models.registry import ZOO
from crossfuse.profiling.measure.sampling import Plan

pytestmark = pytest.mark.slow
QUICK = Plan(rounds=3, seconds=0.001, calls=1, warm_up_seconds=0.0)
OTHERS = ("bart", "t5", "detr", "lxmert", "sam", "perceiver")


@pytest.mark.parametrize("name", [*ZOO, *OTHERS])
def test_every_attention_is_one_kernel_in_its_type(name: str, tmp_path: Path) -> None:
    path = tmp_path / "b"
    if name in ZOO:
        crossfuse.export(name, path, ["openvino"], precision="bf16", size="tiny", quick=True)
    else:
        made = CASES[name].make()
        crossfuse.export(made, path, ["openvino"], precision="bf16", quick=True)
    for precision in ("bf16", "fp32"):
        bundle = open_bundle(path)
        entry = bundle.target("openvino")
        assert (entry.precision, entry.boundary) == (precision, {})
        assert entry.parity is not None
        assert (entry.parity["passed"], entry.parity["executed_on"]) == (True, "OpenVINO")
        found = {
            kernel for row in bundle.ledger for kernel in (row.fused["openvino"] or "").split(", ")
        }
        assert found == {f"Subgraph ({precision})"}
        crossfuse.build(path, "openvino", precision="fp32")
    assert {"context", "query", "step"} >= set(entry.stages) or set(entry.stages) == {"model"}


def test_a_quantizers_choice_stays_in_fp32(tmp_path: Path) -> None:
    """In bf16 a rounding error would become another code."""
    bundle = crossfuse.export("dalle", tmp_path / "b", ["openvino"], precision="bf16", size="tiny")
    entry = bundle.target("openvino")
    assert entry.parity is not None
    assert entry.parity["outputs"]["codes"]["max_abs"] == 0
    assert any("chooses by it" in why for why in entry.kept.values()), entry.kept


class Matcher(nn.Module):
    """Two sets of features that attend to each other, one of them with holes; GELU and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.there = nn.MultiheadAttention(24, 3, batch_first=True)
        self.back = nn.MultiheadAttention(24, 3, batch_first=True)
        self.norm = nn.LayerNorm(24)

    def forward(self, left: Tensor, right: Tensor, missing: Tensor) -> Tensor:
        seen, _ = self.there(left, right, right, key_padding_mask=missing, need_weights=False)
        left = self.norm(left + nn.functional.gelu(seen))
        back, _ = self.back(right, left, left, need_weights=False)
        return torch.einsum("bld,brd->blr", left, back)


def test_a_model_of_ones_own_in_profile_and_tune(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {
        "left": torch.randn(2, 5, 24),
        "right": torch.randn(2, 7, 24),
        "missing": torch.arange(7) >= torch.tensor([[4], [7]]),
    }
    axes = {
        "left": {0: "batch", 1: "l"},
        "right": {0: "batch", 1: "r"},
        "missing": {0: "batch", 1: "r"},
    }
    spec = ModelSpec(Matcher().eval(), inputs, dynamic=axes)
    crossfuse.export(spec, tmp_path / "b", ["ort-cpu", "openvino"])
    report = crossfuse.profile(
        tmp_path / "b",
        "openvino",
        against=["openvino", "openvino-f32", "eager-bf16", "ort-int8"],
        source=spec,
        plan=QUICK,
        cold_starts=1,
    )
    rows = {row.name: row for row in report.rows}
    assert all(row.failure is None for row in rows.values()), rows
    errors = {name: row.reference_error for name, row in rows.items()}
    assert all(error is not None for error in errors.values())
    assert errors["crossfuse"] < 1e-5  # type: ignore[operator]
    assert errors["openvino-f32"] < 1e-5  # type: ignore[operator]
    assert errors["eager-bf16"] > 1e-4  # type: ignore[operator]
    assert errors["ort-int8"] > 1e-4  # type: ignore[operator]
    sites = {node.site for stage in report.stages for node in stage.nodes if node.site}
    assert sites == {"there", "back"}
    tuned = crossfuse.tune(tmp_path / "b", plan=QUICK)
    with runtime.load(tmp_path / "b") as session:
        assert session.target == tuned.chosen
    np.testing.assert_equal(crossfuse.verify(tmp_path / "b", "openvino").passed, True)


def test_what_openvino_leaves_in_parts_fails_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossfuse.runtime import openvino_stage

    own = openvino_stage._properties

    def without(request: object) -> tuple[str, dict[str, object]]:
        device, properties = own(request)  # type: ignore[arg-type]
        return device, {**properties, "SNIPPETS_MODE": "DISABLE"}

    monkeypatch.setattr(openvino_stage, "_properties", without)
    with pytest.raises(FusionError, match=r"attention in openvino: OpenVINO computes it in parts"):
        crossfuse.export("cross_modal_attention", tmp_path / "b", ["openvino"], size="tiny")
    bundle = crossfuse.export(
        "cross_modal_attention", tmp_path / "b", ["openvino"], size="tiny", allow_unfused=True
    )
    (row,) = bundle.ledger
    assert row.fused["openvino"] is None
