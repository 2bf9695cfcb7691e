"""``config.pbtxt`` as Triton's own grammar has it."""

from __future__ import annotations

import re

import pytest

from crossfuse.core.tensors import TensorSpec
from crossfuse.serve.triton.config import ModelConfig, WarmUp

X = TensorSpec("x", "float32", ("batch", "n", 4))
IDS = TensorSpec('odd "name"', "int64", ("batch",))
Y = TensorSpec("y", "float16", ("batch", 2))


@pytest.mark.parametrize(("batch", "dims"), [(0, "-1, -1, 4"), (8, "-1, 4")])
def test_the_batch_is_left_out_where_triton_makes_it(batch: int, dims: str) -> None:
    text = ModelConfig("m", "python", [X], [Y], max_batch=batch, queue_ms=2.5).text()
    assert f'name: "x" data_type: TYPE_FP32 dims: [ {dims} ]' in text
    assert f"max_batch_size: {batch}" in text
    assert ("max_queue_delay_microseconds: 2500" in text) == bool(batch)


def test_a_tensor_of_the_batch_alone_is_reshaped() -> None:
    text = ModelConfig("m", "python", [IDS], [Y], max_batch=4, optional=[IDS.name]).text()
    assert r'name: "odd \"name\"" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [] }' in text
    assert "optional: true" in text


def test_platforms_and_places() -> None:
    text = ModelConfig(
        "m", "onnxruntime_onnx", [X], [Y], instances=3, gpu=True, file="model.onnx"
    ).text()
    assert 'platform: "onnxruntime_onnx"' in text
    assert "backend" not in text
    assert "{ count: 3 kind: KIND_GPU }" in text
    assert 'default_model_filename: "model.onnx"' in text


def test_a_warm_up_has_each_inputs_own_file() -> None:
    warm = WarmUp({"x": "input-0", IDS.name: "input-1"}, {"x": (1, 5, 4), IDS.name: (1,)})
    text = ModelConfig("m", "python", [X, IDS], [Y], max_batch=4, warm_up=warm).text()
    assert 'value: { data_type: TYPE_FP32 dims: [ 5, 4 ] input_data_file: "input-0" }' in text
    assert re.search(r"dims: \[  \] input_data_file: \"input-1\"", text)
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
