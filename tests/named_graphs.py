"""A tiny ONNX file whose inputs and output have names that Python functions use themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTEXT = "context"
QUERIES = ("self", "inputs", "state", "file")
OUTPUT = "row"
WIDTH = 4

_WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def write_graph(path: Path) -> Path:
    """``row = (tanh(context · W) · self + inputs) · state + file``, each ``[batch, 4]``."""
    every = (CONTEXT, *QUERIES)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in every
    ]
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH])]
    nodes = [
        helper.make_node("MatMul", [CONTEXT, "weight"], ["product"]),
        helper.make_node("Tanh", ["product"], ["key"]),
        helper.make_node("Mul", ["key", "self"], ["a"]),
        helper.make_node("Add", ["a", "inputs"], ["b"]),
        helper.make_node("Mul", ["b", "state"], ["c"]),
        helper.make_node("Add", ["c", "file"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes, "named", inputs, outputs, [numpy_helper.from_array(_WEIGHT, "weight")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def make_inputs(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((rows, WIDTH)).astype(np.float32) for name in (CONTEXT, *QUERIES)
    }


def truth(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """In float64."""
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    return (np.tanh(wide["context"] @ _WEIGHT) * wide["self"] + wide["inputs"]) * wide[
        "state"
    ] + wide["file"]
