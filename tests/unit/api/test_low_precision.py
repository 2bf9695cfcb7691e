"""Builds in low precision: gates, searches, calibration, ledgers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import crossfuse
from crossfuse import InputError, ModelSpec, ParityError, runtime
from crossfuse.api.build_options import BuildOptions, check_options
from crossfuse.api.calibration import calibration_data, calibration_files
from crossfuse.api.low_precision import quantized
from crossfuse.bundle.store import open_bundle
from crossfuse.core.linear_ledger import FP32, INT8
from crossfuse.core.target import require_target
from crossfuse.errors import QuantizationError
from crossfuse.parity.session_check import reference_of
from crossfuse.parity.target_check import ParityCheck

SIZE, LAYERS, CLASSES = 32, 4, 12


class Outliers(nn.Module):
    """Blocks of attention and a product; one block's channel of outliers, undone by the next
    product's weights."""

    def __init__(self, outlier: float = 1.0, *, einsum: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(LAYERS))
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.head = nn.Linear(SIZE, CLASSES)
        self.extra = nn.Parameter(torch.eye(SIZE)) if einsum else None
        scale = torch.ones(SIZE)
        scale[3] = outlier
        self.register_buffer("scale", scale)
        with torch.no_grad():
            self.layers[2].weight /= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 5, 32]`` → ``[B, 5, 12]``."""
        for i, layer in enumerate(self.layers):
            x = x * self.scale if i == 2 else x
            x = torch.tanh(layer(x)) + (0 if i == 2 else x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        if self.extra is not None:
            x = torch.einsum("bld,de->ble", x, self.extra)
        return self.head(x)


def exported(path: Path, outlier: float = 1.0, *, einsum: bool = False) -> Path:
    torch.manual_seed(1)
    module = Outliers(outlier, einsum=einsum).eval()
    spec = ModelSpec(module, {"x": torch.randn(3, 5, SIZE)}, {"x": {0: "batch"}})
    crossfuse.export(spec, path, quick=True)
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that plain int8 breaks."""
    return exported(tmp_path_factory.mktemp("low") / "broken", 3000.0)


def test_outliers_fail_plain_int8_by_name(broken: Path) -> None:
    with pytest.raises(ParityError, match=r"relative RMS.* changes most: layers\.2 .*mixed-int8"):
        crossfuse.build(broken, "ort-cpu", precision="int8")
    assert open_bundle(broken).target("ort-cpu").precision == "fp32", "nothing was written"


def test_the_search_keeps_a_short_list(broken: Path) -> None:
    said: list[str] = []
    bundle = crossfuse.build(broken, "ort-cpu", precision="mixed-int8", step=said.append)
    entry = bundle.target("ort-cpu")
    assert [row.site for row in entry.linears if row.became == FP32] == ["layers.2"]
    (kept,) = (row for row in entry.linears if row.became == FP32)
    assert kept.error is not None
    assert kept.error > 0.1
    assert kept.seconds is not None
    assert entry.linears.counts()[INT8] == len(entry.linears) - 1 >= LAYERS
    assert list(entry.kept.values()) == [kept.reason]
    assert "of the reference's inputs" in entry.calibration
    assert sum("trial" in text for text in said) <= 12
    assert crossfuse.verify(bundle).passed
    with runtime.load(bundle) as session:
        point = reference_of(bundle).points[0]
        (got,) = session.run(dict(point.inputs)).values()
    (truth,) = point.outputs.values()
    assert np.linalg.norm(got - truth) < 0.05 * np.linalg.norm(truth)


METRIC = """
import numpy as np

def worst(run, data):
    found = [(run(one), one["label"]) for one in data]
    return -max(float(np.abs(outputs[min(outputs)] - label).max()) for outputs, label in found)
"""


def test_a_metric_refuses_what_the_policy_takes(bundle_copy: Path, tmp_path: Path) -> None:
    path = bundle_copy
    passed = crossfuse.build(path, "ort-cpu", precision="int8").target("ort-cpu")
    assert passed.parity is not None
    assert passed.parity["passed"]
    point = reference_of(open_bundle(path)).points[1]
    folder = tmp_path / "real"
    folder.mkdir()
    label = point.outputs[min(point.outputs)]
    for i in range(2):
        np.savez(folder / f"{i}.npz", label=label, **point.inputs)
    (tmp_path / "worst.py").write_text(METRIC)
    asked = {
        "precision": "int8",
        "metric": f"{tmp_path}/worst.py:worst",
        "calibrate": folder,
    }
    with pytest.raises(ParityError, match=r"worst\.py:worst is -0\.0.*may drop by 1e-06"):
        crossfuse.build(path, "ort-cpu", **asked, max_drop=1e-6)
    bundle = crossfuse.build(path, "ort-cpu", **asked, max_drop=0.5)
    entry = bundle.target("ort-cpu")
    assert entry.parity is not None
    assert entry.parity["metric"]["passed"]
    assert str(tmp_path) not in bundle.manifest.dumps(), "no path of the caller's"
    assert entry.calibration == "2 sets of the user's inputs"
    own = {"metric": asked["metric"], "metric_data": folder}
    held = crossfuse.verify(bundle, **own, max_drop=0.5)
    assert held.passed
    assert held.metric is not None
    assert held.metric.value == pytest.approx(entry.parity["metric"]["value"], rel=1e-3)
    assert not crossfuse.verify(bundle, **own, max_drop=1e-6).passed
    with pytest.raises(InputError, match="go together"):
        crossfuse.verify(bundle, metric=asked["metric"])
    with pytest.raises(InputError, match="needs one"):
        crossfuse.verify(bundle, metric_data=folder)


def test_what_a_manifest_says_of_a_metric_widens_nothing(tmp_path: Path) -> None:
    """The policy refuses this build, a metric takes it: who verifies it holds either."""
    (tmp_path / "any.py").write_text("def any(run, data):\n    return 1.0\n")
    path = exported(tmp_path / "bundle", 30.0)
    own = {"metric": f"{tmp_path}/any.py:any", "max_drop": 0.0}
    bundle = crossfuse.build(path, "ort-cpu", precision="int8", **own)
    assert crossfuse.verify(bundle, **own).passed
    report = crossfuse.verify(bundle)
    assert not report.passed
    assert report.metric is None
    assert "does not compute what the eager model computes" in str(report.failure)
    (note,) = [note for note in report.notes if "metric" in note]
    assert "any.py:any passed at the build, which counts for nothing here" in note


@pytest.mark.slow
def test_a_layer_that_cannot_be_quantised_fails_by_name_unless_allowed(tmp_path: Path) -> None:
    path = exported(tmp_path / "einsum", einsum=True)
    with pytest.raises(QuantizationError, match=r"1 of \d+ linear layers .*Einsum|left operand"):
        crossfuse.build(path, "ort-cpu", precision="int8")
    bundle = crossfuse.build(path, "ort-cpu", precision="int8", allow_unquantized=True)
    missed = [row for row in bundle.target("ort-cpu").linears if row.missed]
    assert len(missed) == 1
    assert missed[0].reason


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for options, message in (
        (BuildOptions("fp32", metric="m.py:f"), "metric is for low precisions"),
        (BuildOptions("fp16", calibrate=("x",)), "calibrate is for low precisions"),
        (BuildOptions("int8", metric="m.py:f"), "go together"),
        (BuildOptions("int8", max_drop=0.1), "go together"),
        (BuildOptions("int8", metric="m.py:f", max_drop=-1.0), "can't drop by that"),
        (BuildOptions("int8", calibrate=(str(tmp_path / "no"),)), "doesn't exist"),
        (BuildOptions("int8", calibrate=(str(tmp_path),)), "holds no NPZ file"),
    ):
        with pytest.raises(InputError, match=message):
            check_options("ort-cpu", options)
    with pytest.raises(InputError, match="can't be built in this precision"):
        check_options("ort-cuda", BuildOptions("int8"))


def test_calibration_data_is_checked_as_a_session_would(broken: Path, tmp_path: Path) -> None:
    from crossfuse.api.fused_graph import fused_stages

    bundle = open_bundle(broken)
    model, reference = fused_stages(bundle).model, reference_of(bundle)
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, x=np.zeros((2, 5, SIZE), np.float32), label=np.arange(2))
    np.savez(bad, x=np.zeros((2, 5, SIZE + 1), np.float32))
    found = calibration_data([str(good)], bundle.manifest, reference, model)
    assert set(found.sets[0]) == {"x", "label"}
    assert set(found.points[0]) == {"x"}
    assert calibration_files([str(tmp_path)]) == [bad, good]
    check = ParityCheck(fused_stages(bundle).stages, reference, "int8")
    cpu = require_target("ort-cpu")
    stages = quantized(model, check, cpu, BuildOptions("int8"), found, lambda _: None)
    assert stages.calibration == "1 sets of the user's inputs", "by these, rows are chosen"
    assert stages.measure()[0].layer.site == "layers.2"
    with pytest.raises(InputError, match=r"bad\.npz"):
        calibration_data([str(tmp_path)], bundle.manifest, reference, model)


@pytest.mark.slow
def test_openvino_scales_channels_of_outliers(broken: Path, tmp_path: Path) -> None:
    """What breaks dynamic int8 passes: all layers in integers, numbers as good as fp32's."""
    path = Path(shutil.copytree(broken, tmp_path / "b"))
    bundle = crossfuse.build(path, "openvino", precision="int8")
    entry = bundle.target("openvino")
    assert entry.linears.counts() == {INT8: len(entry.linears)}
    assert {row.shape for row in entry.linears} >= {(SIZE, SIZE)}
    assert entry.parity is not None
    assert (entry.parity["passed"], entry.parity["executed_on"]) == (True, "OpenVINO")
    assert "of the reference's inputs" in entry.calibration
    assert crossfuse.verify(bundle, "openvino").passed
    with runtime.load(bundle, "openvino") as session:
        point = reference_of(bundle).points[0]
        (got,) = session.run(dict(point.inputs)).values()
    (truth,) = point.outputs.values()
    assert np.linalg.norm(got - truth) < 0.05 * np.linalg.norm(truth)


class Rows(Outliers):
    """One row in five is far larger than the others: no factor of a channel helps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 5, 32]`` → ``[B, 5, 12]``."""
        size = torch.tensor([1.0, 1.0, 3000.0, 1.0, 1.0])[:, None]
        first = self.layers[0](x * size) / size
        return super().forward(first)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "ort-cpu"])
def test_rows_of_outliers_round_by_themselves_or_stay_by_the_search(
    target: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    path = tmp_path / "b"
    inputs = {"x": torch.randn(3, 5, SIZE)}
    crossfuse.export(ModelSpec(Rows().eval(), inputs, {"x": {0: "batch"}}), path, quick=True)
    real = tmp_path / "real.npz"
    np.savez(real, x=np.random.default_rng(0).standard_normal((4, 5, SIZE)).astype(np.float32))
    if target == "ort-cpu":
        bundle = crossfuse.build(path, target, precision="int8", calibrate=real)
        kept = []
    else:
        with pytest.raises(ParityError, match=r"int8 changes most: layers\.0 .*mixed-int8"):
            crossfuse.build(path, target, precision="int8", calibrate=real)
        bundle = crossfuse.build(path, target, precision="mixed-int8", calibrate=real)
        kept = ["layers.0"]
    entry = bundle.target(target)
    assert [row.site for row in entry.linears if row.became != INT8] == kept
    assert all(row.reason for row in entry.linears if row.site in kept)
    assert entry.calibration == "1 sets of the user's inputs"
    assert crossfuse.verify(bundle, target).passed


class Pictures(nn.Module):
    """Convolutions in a row, tokens of them attended to, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, 3, 16, 16]`` → ``[B, 16, 8, 8]`` and ``[B, 10]``."""
        found = torch.relu(self.stem(image))
        tokens = found.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.up(tokens.transpose(1, 2).reshape(found.shape)), self.head(tokens.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "ort-cpu"])
def test_convolutions_are_integers_where_there_is_calibration_data(
    target: str, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    path, real = tmp_path / "b", tmp_path / "real"
    real.mkdir()
    for i in range(4):
        image = np.random.default_rng(i).standard_normal((2, 3, 16, 16)).astype(np.float32)
        np.savez(real / f"{i}.npz", image=image)
    inputs = {"image": torch.randn(2, 3, 16, 16)}
    spec = ModelSpec(Pictures().eval(), inputs, {"image": {0: "batch"}})
    crossfuse.export(spec, path, quick=True)
    bundle = crossfuse.build(path, target, precision="int8", calibrate=real)
    entry = bundle.target(target)
    found = {row.site: (row.operator, row.became) for row in entry.linears}
    assert found["stem.0"] == found["stem.2"] == ("Conv", INT8)
    floats = FP32 if target == "ort-cpu" else found["up"][1]
    assert found["up"] == ("ConvTranspose", floats)
    assert floats in (FP32, "bf16"), "what is no integer is bf16 where OpenVINO computes in it"
    assert entry.linears.counts() == {INT8: len(found) - 1, floats: 1}
    assert entry.parity is not None
    assert entry.parity["passed"]


def test_points_with_several_queries_per_context_are_not_chosen_on(tmp_path: Path) -> None:
    """A quick export has few made points: one of them is for the split alone."""
    bundle = crossfuse.export(
        "cross_modal_attention", tmp_path / "b", size="tiny", quick=True, precision="int8"
    )
    points = reference_of(bundle).points
    assert any(point.sizes["contexts"] < point.sizes["batch"] for point in points)
    assert bundle.target("ort-cpu").precision == "int8"
