"""A bundle that crossfuse 0.1.0 wrote: `tests/data/bundle-0.1.0`, made by

crossfuse export cross_modal_attention --size tiny --drop-output context -o bundle-0.1.0
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import crossfuse
from crossfuse import runtime
from crossfuse.cli import app
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.measure.sampling import Plan

OLD = Path(__file__).parents[1] / "data" / "bundle-0.1.0"
NAME = "cross_modal_attention"


def test_it_is_the_old_one_and_small() -> None:
    assert json.loads((OLD / "manifest.json").read_text())["created_by"] == "crossfuse 0.1.0"
    assert sum(file.stat().st_size for file in OLD.iterdir()) < 150_000


def test_it_runs_as_the_eager_model_does() -> None:
    spec = zoo_spec(NAME, "tiny")
    module = spec.module.double()
    with runtime.load(OLD) as session:
        for seed, sizes in enumerate(({}, {"batch": 4, "length": 1}, {"context_length": 30})):
            given = spec.sample(spec.example_sizes | sizes, seed)
            wide = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
            with torch.no_grad():
                expected = module(**wide)["fused"].numpy()
            arrays = {name: tensor.numpy() for name, tensor in given.items()}
            outputs = session.run(arrays)
            assert list(outputs) == ["fused"]
            np.testing.assert_allclose(outputs["fused"], expected, atol=1e-5)
            context = session.encode({name: arrays[name] for name in ("b", "b_mask")})
            again = session.query(context, a=arrays["a"])["fused"]
            np.testing.assert_allclose(again, expected, atol=1e-5)


def test_it_verifies() -> None:
    assert crossfuse.verify(OLD).passed
    for source in (NAME, zoo_spec(NAME, "tiny")):
        report = crossfuse.verify(OLD, source=source, seed=3)
        assert report.passed
        assert set(report.outputs) == {"fused"}
    assert not crossfuse.verify(OLD, source=zoo_spec(NAME, "tiny", seed=9)).passed
    assert crossfuse.verify(OLD, bisect=True).fault is None


def test_it_is_shown() -> None:
    done = CliRunner().invoke(app, ["inspect", str(OLD)])
    assert done.exit_code == 0, done.output
    for text in ("seed 0", "written by crossfuse 0.1.0", "dropped outputs context", "query"):
        assert text in done.stdout


def test_it_is_profiled_against_its_model() -> None:
    report = crossfuse.profile(
        OLD, against=["eager"], plan=Plan(rounds=3, seconds=0.001), cold_starts=0, trace=False
    )
    (eager,) = [row for row in report.rows if row.name == "eager"]
    assert eager.failure is None
    assert eager.error is not None
    assert eager.error < 1e-5


def test_a_target_is_added(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(OLD, tmp_path / "bundle"))
    bundle = crossfuse.build(copy, "onnx")
    assert bundle.targets == ("ort-cpu", "onnx")
    assert bundle.manifest.source["drop_outputs"] == ["context"]
    with pytest.raises(crossfuse.BundleError, match="no such target"):
        runtime.load(OLD, "onnx")
