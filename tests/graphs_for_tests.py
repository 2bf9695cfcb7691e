"""Single-attention graphs for the lowering grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from crossfuse.graph.metadata import SITE
from crossfuse.ops.contract import DOMAIN, INPUTS, NAME


@dataclass(frozen=True)
class Case:
    """An attention's sizes and options; ``mask_batch``: 1, ``k`` (context) or ``q`` (query)."""

    contexts: int = 2
    fan_out: int = 1
    heads: int = 2
    kv_heads: int = 2
    size: int = 4
    value_size: int = 4
    length: int = 5
    keys: int = 7
    causal: str = "none"
    mask: bool = False
    bias: bool = False
    lengths: bool = False
    mask_batch: str = "1"
    mask_heads: bool = False
    mask_rows: bool = True
    known_shapes: bool = True

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": 0.37,
            "causal": self.causal,
        }

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Normal values; fully masked rows, lengths that include 0, a row of −inf in the bias."""
        rng = np.random.default_rng(seed)
        bq, bk = self.contexts * self.fan_out, self.contexts
        made: dict[str, np.ndarray] = {
            "query": rng.standard_normal((bq, self.length, self.heads * self.size)),
            "key": rng.standard_normal((bk, self.keys, self.kv_heads * self.size)),
            "value": rng.standard_normal((bk, self.keys, self.kv_heads * self.value_size)),
        }
        made = {k: v.astype(np.float32) for k, v in made.items()}
        shape = (
            {"1": 1, "k": bk, "q": bq}[self.mask_batch],
            self.heads if self.mask_heads else 1,
            self.length if self.mask_rows else 1,
            self.keys,
        )
        if self.mask:
            made["mask"] = rng.random(shape) > 0.4
            made["mask"][0, 0, 0] = False
        if self.bias:
            made["bias"] = rng.standard_normal(shape).astype(np.float32)
            made["bias"][-1, -1, -1] = -np.inf
            # Under an upper-left causal mask the first row has this key alone: bias and causality
            # together leave it none.
            made["bias"][0, 0, 0, 0] = -np.inf
        if self.lengths:
            made["key_lengths"] = rng.integers(0, self.keys + 1, bk)
            made["key_lengths"][0] = 0
        return made

    def model(self) -> ir.Model:
        """One FusedAttention node; without ``known_shapes`` only widths are known."""
        inputs = self.inputs()
        same = self.fan_out == 1 and self.known_shapes
        bq, bk = ("B", "B") if same else ("Bq", "Bk")
        mask_batch = {"1": 1, "k": bk, "q": bq}[self.mask_batch]
        shapes: dict[str, list[Any]] = {
            "query": [bq, "L", self.heads * self.size],
            "key": [bk, "S", self.kv_heads * self.size],
            "value": [bk, "S", self.kv_heads * self.value_size],
            "mask": [
                mask_batch,
                self.heads if self.mask_heads else 1,
                "L" if self.mask_rows else 1,
                "S",
            ],
            "key_lengths": [bk],
        }
        shapes["bias"] = shapes["mask"]
        if not self.known_shapes:
            shapes = {
                k: [None, None, v[2]] if len(v) == 3 else [None] * len(v) for k, v in shapes.items()
            }
        values = {
            name: ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                shape=ir.Shape(shapes[name]),
            )
            for name, array in inputs.items()
        }
        node = ir.Node(
            DOMAIN,
            NAME,
            [values.get(name) for name in INPUTS],
            attributes=[
                ir.AttrInt64("num_heads", self.heads),
                ir.AttrInt64("kv_num_heads", self.kv_heads),
                ir.AttrFloat32("scale", 0.37),
                ir.AttrString("causal", self.causal),
            ],
            name="site",
        )
        node.metadata_props[SITE] = "site"
        node.outputs[0].name = "output"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            list(values.values()),
            node.outputs,
            nodes=[node],
            opset_imports={"": 20, DOMAIN: 1},
            name="g",
        )
        return ir.Model(graph, ir_version=10)


def run_model(
    model: ir.Model, inputs: dict[str, np.ndarray], *, gpu: bool = False
) -> list[np.ndarray]:
    """Execute on ONNX Runtime's CPU provider, or on its CUDA provider without TF32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu:
        ort.preload_dlls()
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    session = ort.InferenceSession(data, options, providers=providers)
    if gpu:
        assert session.get_providers()[0] == "CUDAExecutionProvider"
    return session.run(None, inputs)
