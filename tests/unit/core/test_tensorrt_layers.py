"""Kernels are read off an engine's own layers."""

from __future__ import annotations

import json

from crossfuse.core.tensorrt_layers import (
    Layer,
    attention_kernels,
    read_inspection,
    read_layers,
)

NODE = "[ONNX Layer: layers.0.attn]"
MESSAGE = f"""Layers:
Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: [ a ], Metadata: {NODE}[ONNX Layer: other]
Name: __myl_Move_myl0_4, LayerType: kgen, Inputs: [ _gemm_mha_v2 ], Metadata: {NODE}
Name: matmul, LayerType: gemm, Metadata: [ONNX Layer: m]
no layer
"""


def test_layers_of_a_builder() -> None:
    layers = read_layers(["other message", MESSAGE])
    assert [layer.kernel for layer in layers] == ["_gemm_mha_v2", "__myl_Move", "matmul"]
    assert layers[0].nodes == ("layers.0.attn", "other")
    assert [layer.fused for layer in layers] == [True, False, False], "its own name counts"
    kernels = attention_kernels(layers, ["layers.0.attn", "layers.1.attn"])
    assert kernels == {"layers.0.attn": "_gemm_mha_v2"}


def test_layers_of_an_inspector() -> None:
    about = {"Name": "fmha_myl1_2", "LayerType": "kgen", "Metadata": "[ONNX Layer: a]"}
    found = read_inspection(json.dumps({"Layers": [about, "named alone"]}))
    assert found == {
        "fmha_myl1_2": Layer("fmha", "kgen", ("a",)),
        "named alone": Layer("named alone", "", ()),
    }
    assert read_inspection("{}") == {}
