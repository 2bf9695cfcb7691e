"""`crossfuse.export`: a source becomes a bundle, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec
from crossfuse.api.export import export
from crossfuse.parity.session_check import reference_of
from crossfuse.parity.shape_points import EXAMPLE, MADE


class Scores(nn.Module):
    """One head of attention, and its largest score."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        y = self.project(y)
        out = nn.functional.scaled_dot_product_attention(x[:, None], y[:, None], y[:, None])
        return {"out": out[:, 0], "top": (x @ y.transpose(1, 2)).amax(-1)}


def spec() -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(Scores(), {"x": torch.randn(2, 3, 8), "y": torch.randn(2, 4, 8)})


def test_the_package_is_the_function(tmp_path: Path) -> None:
    told: list[str] = []
    bundle = crossfuse.export(spec(), tmp_path / "b", step=told.append)
    assert (bundle.targets, bundle.path) == (("ort-cpu",), tmp_path / "b")
    assert bundle.manifest.source == {"kind": "spec", "name": "model"}
    assert [told[0], told[-1]] == ["loading the model", "finishing"]


def test_a_quick_export_says_so(tmp_path: Path) -> None:
    axes = {"x": {0: "batch"}, "y": {0: "batch", 1: "keys"}}
    bundle = export(spec(), tmp_path / "b", dynamic=axes, quick=True)
    assert bundle.manifest.quick
    reference = reference_of(bundle)
    assert [point.kind for point in reference.points] == [EXAMPLE, MADE]
    assert reference.points[1].sizes != reference.points[0].sizes
    assert not any(point.half for point in reference.points), "no target is in half precision"
    report = crossfuse.verify(bundle.path)
    assert report.passed
    assert [note for note in report.notes if note.startswith("quick: 1 of")]
    with pytest.raises(InputError, match="exported quickly"):
        crossfuse.build(bundle.path, "ort-cpu", precision="fp16")


def test_a_quick_export_in_half_precision_measures_it(tmp_path: Path) -> None:
    bundle = export(spec(), tmp_path / "b", ["ort-cuda"], precision="fp16", quick=True)
    assert all(set(point.half) == {"fp16", "bf16"} for point in reference_of(bundle).points)


def test_arguments_stand_in_the_models_place(tmp_path: Path) -> None:
    axes = {"x": {0: "batch:1:4"}, "y": {0: "batch", 1: crossfuse.Dim("keys", 1, 9)}}
    bundle = export(
        spec(), tmp_path / "b", ["onnx"], context=["y"], dynamic=axes, drop_outputs=["top"]
    )
    manifest = bundle.manifest
    assert manifest.context == ("y",)
    assert str(manifest.dims["keys"]) == "keys=1..9"
    assert [t.name for t in manifest.stages["query"].outputs] == ["out"]
    assert manifest.source["dynamic"] == {
        "x": {"0": "batch:1:4"},
        "y": {"0": "batch", "1": "keys:1:9"},
    }
    assert crossfuse.verify(bundle, source=spec(), seed=6).passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ["tpu"]}, "unknown target"),
        ({"precision": "fp61"}, "can't be built in this precision"),
        ({"dynamic": {"z": {0: "n"}}}, "dynamic names an input"),
        ({"context": ["z"]}, "context names an input"),
        ({"drop_outputs": ["z"]}, "an output to drop doesn't exist"),
        ({"example": "none.npz"}, "doesn't exist"),
    ],
)
def test_nothing_is_written_of_what_cannot_be_exported(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(spec(), tmp_path / "b", **arguments)
    assert not list(tmp_path.iterdir())
