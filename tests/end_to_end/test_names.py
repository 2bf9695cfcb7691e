"""An output may be called as an operator inside is, and equal constants may be used twice."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec


class Named(nn.Module):
    """Outputs with the names that a translator gives to values inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, limited = x.mean(-1, keepdim=True), x.clamp(-1, 1)
        twice = x.clamp(-1, 1) * 2 + limited
        return {
            "mean": x - mean,
            "clamp": limited.sum(-1) + mean[:, 0],
            "weight": x * self.weight,
            "add": twice,
            "x_min": mean,
        }


def test_outputs_may_be_named_as_values_inside(tmp_path: Path) -> None:
    bundle = crossfuse.export(
        ModelSpec(Named(), {"x": torch.randn(2, 5)}), tmp_path / "b", ["onnx", "ort-cpu"]
    )
    assert [spec.name for spec in bundle.manifest.stages["model"].outputs] == [
        "mean",
        "clamp",
        "weight",
        "add",
        "x_min",
    ]
    assert all(entry.parity["passed"] for entry in bundle.manifest.targets.values())
