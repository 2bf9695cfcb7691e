"""One target built into a bundle: files, ledger column, gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse import FusionError, ParityError, runtime
from crossfuse.api.build_options import BuildOptions
from crossfuse.api.build_target import TargetBuild
from crossfuse.api.fused_graph import fused_stages
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import BundleWriter, write_bundle
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.parity.session_check import reference_of

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
NAME = "cross_modal_attention"


@pytest.fixture
def parts(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> Callable[[BundleWriter], tuple[TargetBuild, Manifest]]:
    def make(writer: BundleWriter) -> tuple[TargetBuild, Manifest]:
        bundle = zoo_bundle(NAME)
        names = ["fused.onnx", "weights.bin", "reference.npz"]
        staged = writer.adopt(bundle, names, copied=["weights.bin"])
        fused, told = fused_stages(staged), []
        build = TargetBuild(writer, fused.model, fused.stages, reference_of(staged), told.append)
        return build, replace(bundle.manifest, targets={})

    return make


def test_targets_share_their_weights(
    parts: Callable[[BundleWriter], tuple[TargetBuild, Manifest]], tmp_path: Path
) -> None:
    with write_bundle(tmp_path / "b") as writer:
        build, manifest = parts(writer)
        for target in ("onnx", "ort-cpu"):
            manifest = build.add(manifest, target, BuildOptions("fp32"))
        written = writer.commit(manifest)
    assert written.targets == ("onnx", "ort-cpu")
    for name, file in (("onnx", "model.onnx"), ("ort-cpu", "model.ort-cpu.onnx")):
        entry = written.manifest.targets[name]
        assert entry.stages == {"model": file}
        assert {file, "weights.bin"} <= set(entry.files)
        assert entry.parity is not None
        assert entry.parity["passed"]
        assert all(row.fused[name] for row in written.ledger)
    reference = reference_of(written).points[0]
    with runtime.load(written, "ort-cpu") as session:
        got = session.run(dict(reference.inputs))
    for name, array in reference.outputs.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_a_target_with_other_numbers_is_not_added(
    parts: Callable[[BundleWriter], tuple[TargetBuild, Manifest]], tmp_path: Path
) -> None:
    with write_bundle(tmp_path / "b") as writer:
        build, manifest = parts(writer)
        points = tuple(
            replace(p, outputs={n: a * 1.01 for n, a in p.outputs.items()})
            for p in build.reference.points
        )
        wrong = replace(build, reference=replace(build.reference, points=points))
        with pytest.raises(ParityError, match="does not compute what the eager model computes"):
            wrong.add(manifest, "ort-cpu", BuildOptions("fp32"))
        rows = (*manifest.ledger, LedgerRow("lost", "self", None))
        unfused = replace(manifest, ledger=Ledger(rows))
        with pytest.raises(FusionError, match="lost"):
            build.add(unfused, "ort-cpu", BuildOptions("fp32"))
        allowed = build.add(unfused, "ort-cpu", BuildOptions("fp32", allow_unfused=True))
        assert [row.fused["ort-cpu"] for row in allowed.ledger][-1] is None
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("whole_too", [False, True])
def test_a_split_that_fails_is_told_from_a_graph_that_does(whole_too: bool, tmp_path: Path) -> None:
    """The query stage's weights are not the model's; the whole graph's may be wrong as well."""
    bundle = open_bundle(OLD)
    with write_bundle(tmp_path / "b") as writer:
        names = ["fused.onnx", "weights.bin", "reference.npz"]
        staged = writer.adopt(bundle, names, copied=["weights.bin"])
        fused, told = fused_stages(staged), []
        wrong = [fused.stages.graphs["query"], *([fused.model] if whole_too else [])]
        for model in wrong:
            for value in list(model.graph.initializers.values()):
                array = value.const_value.numpy()
                if array.dtype == np.float32 and array.ndim == 2:
                    value.const_value = ir.tensor(array * np.float32(1.1))
        build = TargetBuild(writer, fused.model, fused.stages, reference_of(staged), told.append)
        with pytest.raises(ParityError) as caught:
            build.add(replace(bundle.manifest, targets={}), "ort-cpu", BuildOptions("fp32"))
    passes = "Without the split into context and query the same graph passes" in str(caught.value)
    assert passes is not whole_too
    assert "parity without the split" in told
