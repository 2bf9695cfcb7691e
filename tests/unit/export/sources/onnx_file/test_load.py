"""ONNX files as sources: plain exports get all their attentions fused and keep their numbers; bad
files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from coverage.cases import CASES
from crossfuse import FusionError, ModelSpec, runtime
from crossfuse.export.capture.trace import quiet_exporter
from crossfuse.export.sources.onnx_file.load import OnnxModule, onnx_spec
from end_to_end.test_torch_modules import perturbed, randn
from unit.export.passes.test_fuse_unfused_attention import FORMS, LOOKALIKES, Written, spec_of

TARGETS = ["onnx", "ort-cpu", "ort-cuda"]


def decoder() -> ModelSpec:
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = perturbed(nn.TransformerDecoder(layer, 2))

        def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.layers(
                tokens,
                memory,
                tgt_mask=causal,
                memory_key_padding_mask=mask == 0,
                tgt_is_causal=True,
            )

    return ModelSpec(
        Decoder().eval(),
        {
            "tokens": randn(2, 3, 16),
            "memory": randn(2, 5, 16),
            "mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "tokens": {0: "batch:1:8", 1: "length:1:64"},
            "memory": {0: "batch", 1: "keys:1:64"},
            "mask": {0: "batch", 1: "keys"},
        },
    )


def written(name: str) -> Callable[[], ModelSpec]:
    def make() -> ModelSpec:
        torch.manual_seed(0)
        return spec_of(Written(FORMS[name]))

    return make


SOURCES: dict[str, tuple[Callable[[], ModelSpec], dict[str, int]]] = {
    "decoder": (decoder, {"self": 2, "cross": 2}),
    "bart": (CASES["bart"].make, {"self": 4, "cross": 2}),
    "clip": (CASES["clip"].make, {"self": 4}),
    "t5": (CASES["t5"].make, {"self": 4, "cross": 2}),
    "lxmert": (CASES["lxmert"].make, {"self": 7, "cross": 4}),
    "detr": (CASES["detr"].make, {"self": 4, "cross": 2}),
    **{
        name: (written(name), {"cross": 1})
        for name in ("einsum", "where_mask", "merged_baddbmm", "repeated_heads")
    },
}

QUICK = ("einsum", "where_mask", "repeated_heads")


def plain_export(spec: ModelSpec, path: Path, opset: int) -> None:
    """What a user gets from ``torch.onnx.export`` without us, behind the library's own patches
    where it has some."""
    dims = {
        name: torch.export.Dim(name, min=dim.min, max=dim.max or 4096)
        for name, dim in spec.dims.items()
    }
    shapes = {
        name: {axis: dims[dim] for axis, dim in spec.axes.get(name, {}).items()}
        for name in spec.inputs
    }
    with spec.tracing(spec.module) as tracing, quiet_exporter(), torch.no_grad():
        if hasattr(spec.module, "config"):
            from transformers.integrations.sdpa_attention import sdpa_attention_forward
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

            ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa_attention_forward
        torch.onnx.export(
            spec.module,
            (),
            str(path),
            kwargs=dict(spec.inputs),
            input_names=list(spec.inputs),
            dynamic_shapes=shapes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=dict(tracing.translations),
        )


@pytest.mark.parametrize("opset", [pytest.param(18, marks=pytest.mark.slow), 20])
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SOURCES]
)
def test_plain_exports_are_fused(tmp_path: Path, name: str, opset: int) -> None:
    make, counts = SOURCES[name]
    spec = make()
    plain_export(spec, tmp_path / "plain.onnx", opset)
    ops = {
        node.op_type
        for node in onnx.load(tmp_path / "plain.onnx", load_external_data=False).graph.node
    }
    assert "Softmax" in ops
    assert not ops & {"Attention", "FusedAttention"}
    quick = name in QUICK
    bundle = crossfuse.export(str(tmp_path / "plain.onnx"), tmp_path / "b", TARGETS, quick=quick)
    assert bundle.ledger.counts() == counts
    for target in TARGETS:
        assert bundle.ledger.counts(target) == counts
    parity = bundle.manifest.targets["ort-cpu"].parity
    assert parity["passed"]
    assert parity["reference_dtype"] == "float64"
    graph = onnx.load(bundle.path / "model.ort-cpu.onnx", load_external_data=False)
    assert "Softmax" not in {node.op_type for node in graph.graph.node}
    module = OnnxModule(tmp_path / "plain.onnx")
    with runtime.load(bundle.path) as session:
        inputs = onnx_spec(str(tmp_path / "plain.onnx")).inputs
        got = session.run(**{n: t.numpy() for n, t in inputs.items()})
    for output, expected in module(**inputs).items():
        np.testing.assert_allclose(got[output], expected.numpy(), atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder", "clip", "bart", "t5"])
def test_attention_nodes_of_opset_23(tmp_path: Path, name: str) -> None:
    """What PyTorch's exporter makes of scaled dot-product attention at opset 23."""
    make, counts = SOURCES[name]
    plain_export(make(), tmp_path / "plain.onnx", 23)
    ops = [
        node.op_type
        for node in onnx.load(tmp_path / "plain.onnx", load_external_data=False).graph.node
    ]
    assert "Attention" in ops
    assert "Softmax" not in ops
    quick = name == "decoder"
    bundle = crossfuse.export(str(tmp_path / "plain.onnx"), tmp_path / "b", TARGETS, quick=quick)
    assert bundle.ledger.counts() == counts
    assert all(bundle.ledger.counts(target) == counts for target in TARGETS)


def test_what_is_no_attention_stays(tmp_path: Path) -> None:
    """A file whose softmax is over the queries: unfused, with its reason, and exported where that
    is allowed."""
    torch.manual_seed(0)
    plain_export(
        spec_of(Written(LOOKALIKES["softmax_over_the_queries"][0])), tmp_path / "plain.onnx", 20
    )
    with pytest.raises(FusionError, match="attention: its softmax is over another axis"):
        crossfuse.export(str(tmp_path / "plain.onnx"), tmp_path / "b")
    bundle = crossfuse.export(str(tmp_path / "plain.onnx"), tmp_path / "b", allow_unfused=True)
    assert bundle.manifest.targets["ort-cpu"].parity["passed"]
