"""The plain export: at the sizes of the inputs, our operator as PyTorch's own attention."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.plain_export import export_plainly


@pytest.mark.slow
def test_shapes_are_static_and_no_operator_is_ours(tmp_path: Path) -> None:
    spec = zoo_spec("cross_modal_attention", "tiny")
    inputs = {name: tensor.numpy() for name, tensor in spec.inputs.items()}
    names = export_plainly(spec, inputs, tmp_path / "plain.onnx")
    model = onnx.load(tmp_path / "plain.onnx")
    assert [output.name for output in model.graph.output] == names == ["fused", "context"]
    assert {node.domain for node in model.graph.node} == {""}
    assert "Softmax" in {node.op_type for node in model.graph.node}
    for value in model.graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert tuple(sizes) == inputs[value.name].shape
