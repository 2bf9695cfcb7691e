"""What one would use otherwise: made for the sizes asked, computing what the model computes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.baselines import BASELINES, Baselines

SPEC = zoo_spec("cross_modal_attention", "tiny")
INPUTS = {name: tensor.numpy() for name, tensor in SPEC.inputs.items()}


def test_eager_is_the_module_itself() -> None:
    with Baselines(SPEC) as made:
        outputs = made.make("eager", INPUTS)()
    with torch.no_grad():
        expected = SPEC.module(**SPEC.inputs)
    assert list(outputs) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(outputs[name], tensor.numpy())


@pytest.mark.parametrize("name", ["compile-max", "eager-fp16", "tensorrt"])
def test_some_need_a_gpu(name: str) -> None:
    with Baselines(SPEC) as made, pytest.raises(InputError, match=f"{name} is a baseline on GPUs"):
        made.make(name, INPUTS)


def test_others_are_not_known() -> None:
    with (
        Baselines(SPEC) as made,
        pytest.raises(InputError, match="no such baseline.*eager, compile"),
    ):
        made.make("tpu", INPUTS)
    assert all(name in BASELINES for name in ("eager", "compile", "onnx", "hf", "openvino"))
    assert all(name in BASELINES for name in ("openvino-f32", "eager-bf16", "ort-int8"))


def test_eager_in_bf16_computes_in_it_and_gives_what_numpy_has() -> None:
    with Baselines(SPEC) as made:
        outputs, truth = made.make("eager-bf16", INPUTS)(), made.truth(INPUTS)
    for name, array in truth.items():
        assert array.dtype == np.float64
        assert outputs[name].dtype == np.float32
        error = np.abs(outputs[name] - array).max() / np.abs(array).max()
        assert 1e-4 < error < 4e-2


@pytest.mark.parametrize("name", ["openvino", "openvino-f32", "openvino-int8", "ort-int8"])
def test_some_need_a_cpu(name: str) -> None:
    with Baselines(SPEC) as made:
        made._device = "cuda"
        with pytest.raises(InputError, match=r"got cuda"):
            made.make(name, INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("openvino", 0.0, 4e-2),
        ("openvino-f32", 0.0, 1e-5),
        ("openvino-int8", 1e-4, 0.2),
        ("ort-int8", 1e-4, 0.1),
    ],
)
def test_each_computes_the_model_as_well_as_it_can(name: str, least: float, most: float) -> None:
    with Baselines(SPEC, threads=1) as made:
        outputs, truth = made.make(name, INPUTS)(), made.truth(INPUTS)
    for key, array in truth.items():
        error = np.abs(outputs[key] - array).max() / np.abs(array).max()
        assert least <= error < most, (name, key, error)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with Baselines(SPEC, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_plain_export_is_made_once_per_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossfuse.profiling import baselines

    made: list[object] = []
    monkeypatch.setattr(baselines, "export_plainly", lambda *a: made.append(a[1]) or ["fused"])
    longer = INPUTS | {"a": np.concatenate([INPUTS["a"]] * 2, axis=1)}
    with Baselines(SPEC) as others:
        paths = [others._plain_export(inputs)[0] for inputs in (INPUTS, dict(INPUTS), longer)]
    assert len(made) == 2
    assert paths[0] == paths[1] != paths[2]
    assert not paths[0].parent.exists(), "exports are deleted in the end"


def test_exports_that_are_kept_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossfuse.profiling import baselines

    made: list[object] = []
    monkeypatch.setattr(baselines, "export_plainly", lambda *a: made.append(a[1]) or ["fused"])
    found = []
    for _ in range(2):
        with Baselines(SPEC, kept=tmp_path) as others:
            found.append(others._plain_export(INPUTS))
    assert len(made) == 1
    assert found[0] == found[1]
    assert found[0][0].is_relative_to(tmp_path)
    assert found[0][0].parent.is_dir()


def test_what_a_killed_profile_left_is_removed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = os.fork()
    if not process:
        held = Baselines(zoo_spec("cross_modal_attention", size="tiny"))
        os._exit(0 if held else 1)  # its end is like a kill's: nothing is cleaned
    os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_folder() as own:
        assert list(tmp_path.iterdir()) == [own]
