"""ONNX graphs written by hand, for tests: a few lines per graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]

FLOAT, HALF, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT64, INT32, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


class Graph:
    """Nodes one after the other; each `op` gives the name of its first output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.weights: list[Any] = []
        self.scope = ""

    def input(self, name: str, shape: Shape, kind: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, shape: Shape, kind: int = FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def weight(self, value: Any, dtype: Any = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype=dtype, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.weight(values, np.int64)

    def op(
        self,
        kind: str,
        *inputs: str,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        made = list(outputs) or [f"v{len(self.nodes)}"]
        name = f"{self.scope}{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), made, name=name, domain=domain, **attributes)
        )
        return made[0]

    def microsoft(
        self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        return self.op(kind, *inputs, outputs=outputs, domain="com.microsoft", **attributes)

    def save(self, path: Path, opset: int = 20, ir_version: int = 9) -> str:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), str(path))
        return str(path)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded standard normal float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    scores = scores - scores.max(-1, keepdims=True)
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    heads: int,
    bias: Any = 0.0,
    *,
    scale: float | None = None,
    kv_heads: int | None = None,
) -> np.ndarray:
    """Attention of ``[B, L, H·D]`` in float64; ``bias`` is added to the ``[B, H, L, S]`` scores."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))

    def split(t: np.ndarray, count: int) -> np.ndarray:
        return t.reshape(*t.shape[:2], count, -1).transpose(0, 2, 1, 3)

    kv = kv_heads or heads
    a, b, c = (
        split(q, heads),
        split(k, kv).repeat(heads // kv, 1),
        split(v, kv).repeat(heads // kv, 1),
    )
    scores = a @ b.swapaxes(-1, -2) * (
        a.shape[-1] ** -0.5 if scale is None else scale
    ) + np.asarray(bias, np.float64)
    out = (softmax(scores) @ c).transpose(0, 2, 1, 3)
    return out.reshape(*out.shape[:2], -1)


def run(path: str | Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """By ONNX Runtime's CPU provider, without optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    found: list[np.ndarray] = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    ).run(None, dict(feeds))
    return found
