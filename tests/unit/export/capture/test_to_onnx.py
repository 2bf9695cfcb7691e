"""The translated graph: opset, names of dimensions and values, one node per operator of ours."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec, fused_attention
from crossfuse.export.capture.to_onnx import (
    IR_VERSION,
    OPSET,
    OtherLengthsError,
    name_dimensions,
    program_to_onnx,
)
from crossfuse.export.capture.trace import capture


class Attend(nn.Module):
    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        mean = fused_attention(text, image, image, num_heads=2, kv_num_heads=2, scale=0.5)
        return torch.cat([mean, text], 1).clamp(min=0.1)


def translated(module: nn.Module, output: str = "mean") -> ir.Model:
    spec = ModelSpec(
        module.eval(),
        {"text": torch.randn(2, 3, 4), "image": torch.randn(2, 5, 4)},
        {"text": {0: "batch", 1: "words"}, "image": {0: "batch", 1: "patches"}},
    )
    program, spec = capture(spec)
    return program_to_onnx(program, spec, (output,))


def test_the_graph_speaks_the_specs_names() -> None:
    model = translated(Attend())
    assert (model.opset_imports[""], model.ir_version) == (OPSET, IR_VERSION)
    shapes = {v.name: str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)}
    assert shapes == {
        "text": "[batch,words,4]",
        "image": "[batch,patches,4]",
        "mean": "[batch,2*words,4]",
    }
    assert [n.op_type for n in model.graph].count("FusedAttention") == 1


def test_an_output_may_be_called_as_a_value_inside() -> None:
    model = translated(Attend(), "clamp")
    inner = [v.name for node in model.graph for v in node.outputs]
    assert inner.count("clamp") == 1
    assert model.graph.outputs[0].producer() is not None
    assert model.graph.outputs[0].name == "clamp"


def test_an_operator_without_a_translation_is_named() -> None:
    @torch.library.custom_op("crossfuse_tests::untranslated", mutates_args=())
    def untranslated(x: Tensor) -> Tensor:
        return x.clone()

    untranslated.register_fake(torch.empty_like)

    class Uses(nn.Module):
        def forward(self, text: Tensor, image: Tensor) -> Tensor:
            return untranslated(text) + image.sum()

    with pytest.raises(InputError, match="no translation of .*untranslated"):
        translated(Uses())


def test_symbols_are_named_inside_expressions_and_unknown_sizes_stay() -> None:
    value = ir.Value(name="x", shape=ir.Shape(["s1*s12", "s1 + 3", None, 4, "s2"]))
    model = ir.Model(ir.Graph([value], [value], nodes=[]), ir_version=10)
    name_dimensions(model, {"s1": "batch", "s12": "words"})
    assert value.shape is not None
    found = [size if isinstance(size, int) else size.value for size in value.shape]
    assert found == ["batch*words", "batch + 3", None, 4, "s2"]


def test_a_list_of_another_length_is_named() -> None:
    """Its parts are not confused with other outputs, and leaving it out is offered."""
    spec = ModelSpec(nn.Identity(), {"input": torch.ones(2, 3)}, {"input": {0: "batch"}})
    program, spec = capture(spec)
    with pytest.raises(OtherLengthsError, match="a list whose length depends on") as caught:
        program_to_onnx(program, spec, ("y", "rows_0", "rows_1"))
    assert caught.value.patterns == ("rows_*",)
    assert "drop_outputs=['rows_*']" in str(caught.value)
