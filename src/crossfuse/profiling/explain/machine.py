"""What this machine attains with the engine that runs the bundle: its rate of products, and its
bandwidth of memory.

And fixed work, the same in every report, that tells how fast the machine was meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.scratch import scratch_folder
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.options import SessionOptions

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Limits", "fixed_work", "measure_limits"]

_PRODUCTS = ((256, 768, 3072), (1024, 1024, 1024), (2048, 1024, 4096))
_ELEMENTS = 1 << 24
_SECONDS = 0.3
_TOKENS, _WIDTH, _LAYERS = 64, 512, 2


@dataclass(frozen=True)
class Limits(JsonData):
    """Attainable rates: the best of all calls, so that a roof is one.

    Attributes:
        flops: floating-point operations per second of a product with constant weights; the best of
            several shapes.
        bandwidth: bytes per second of an addition of arrays that fit in no cache.
        product: the shape ``[m, k] × [k, n]`` that was the best.
    """

    flops: float
    bandwidth: float
    product: tuple[int, int, int]

    def seconds(self, flops: int, moved: int) -> float:
        """The least time that so much work takes."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure_limits(provider: str, options: SessionOptions, dtype: str = "float32") -> Limits | None:
    """Measure; None where `onnx_ir`, which makes the graphs, is not installed."""
    if find_spec("onnx_ir") is None:
        return None
    with scratch_folder() as name:
        best, product = 0.0, _PRODUCTS[0]
        for m, k, n in _PRODUCTS:
            rate = (
                2
                * m
                * k
                * n
                / _shortest(_product(k, n, dtype), (m, k), name, provider, options, dtype)
            )
            if rate > best:
                best, product = rate, (m, k, n)
        moved = 3 * _ELEMENTS * np.dtype(dtype).itemsize
        seconds = _shortest(_addition(dtype), (1, _ELEMENTS), name, provider, options, dtype)
    return Limits(best, moved / seconds, product)


def fixed_work(provider: str, options: SessionOptions) -> Callable[[], object] | None:
    """Two layers of a transformer, 64 tokens of width 512, by the engine.

    There is none where `onnx_ir` is not installed.

    Like a model it computes, moves 25 MB of weights, and hands activations from core to core. What
    is slowed by a busy neighbour, by cores that share no cache, or by a lower clock slows this too.
    """
    if find_spec("onnx_ir") is None:
        return None
    with scratch_folder() as name:
        return _runner(_transformer(), (_TOKENS, _WIDTH), name, provider, options, "float32")


def _runner(
    model: ir.Model,
    shape: tuple[int, int],
    folder: Path,
    provider: str,
    options: SessionOptions,
    dtype: str,
) -> Callable[[], object]:
    """Runs a graph on random inputs of one shape."""
    import onnx_ir as ir

    path = folder / "graph.onnx"
    ir.save(model, path)
    engine = OrtStage(path, provider, options)
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)
    feeds = dict.fromkeys(engine.boundary[0], array)
    run: Callable[[Mapping[str, NDArray[Any]]], object] = (
        engine.run_on_device if engine.on_device else engine.run
    )
    return lambda: run(feeds)


def _shortest(
    model: ir.Model,
    shape: tuple[int, int],
    folder: Path,
    provider: str,
    options: SessionOptions,
    dtype: str,
) -> float:
    run = _runner(model, shape, folder, provider, options, dtype)
    shortest = float("inf")
    end = time.perf_counter() + _SECONDS
    while True:
        before = time.perf_counter()
        run()
        now = time.perf_counter()
        shortest = min(shortest, now - before)
        if now > end:
            return shortest


def _product(k: int, n: int, dtype: str) -> ir.Model:
    """``x @ weight``, the weight constant as in a model, so that the engine packs it."""
    import onnx_ir as ir

    values = np.random.default_rng(1).standard_normal((k, n), dtype=np.float32).astype(dtype)
    weight = ir.Value(name="weight", const_value=ir.tensor(values, name="weight"))
    x = ir.val("x", dtype=ir.DataType.from_numpy(values.dtype), shape=["m", k])
    return _model([x], [ir.node("MatMul", [x, weight])], [weight])


def _addition(dtype: str) -> ir.Model:
    """``x + y``."""
    import onnx_ir as ir

    x, y = (
        ir.val(name, dtype=ir.DataType.from_numpy(np.dtype(dtype)), shape=["m", "n"])
        for name in "xy"
    )
    return _model([x, y], [ir.node("Add", [x, y])], [])


def _transformer() -> ir.Model:
    """Attention of one head and a feed-forward block in each layer, with random weights."""
    import onnx_ir as ir

    rng = np.random.default_rng(1)
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []

    def op(kind: str, *inputs: ir.Value, **attributes: list[int]) -> ir.Value:
        nodes.append(ir.node(kind, list(inputs), attributes))
        return nodes[-1].outputs[0]

    def weight(*shape: int) -> ir.Value:
        name = f"weight_{len(weights)}"
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.float32(shape[0]))
        weights.append(ir.Value(name=name, const_value=ir.tensor(values, name=name)))
        return weights[-1]

    def norm(of: ir.Value, added: ir.Value) -> ir.Value:
        return op("LayerNormalization", op("Add", of, added), weight(_WIDTH))

    x = hidden = ir.val("x", dtype=ir.DataType.FLOAT, shape=["m", _WIDTH])
    for _ in range(_LAYERS):
        query, key, value = (op("MatMul", hidden, weight(_WIDTH, _WIDTH)) for _ in range(3))
        probabilities = op("Softmax", op("MatMul", query, op("Transpose", key, perm=[1, 0])))
        hidden = norm(
            hidden, op("MatMul", op("MatMul", probabilities, value), weight(_WIDTH, _WIDTH))
        )
        inner = op("Gelu", op("MatMul", hidden, weight(_WIDTH, 4 * _WIDTH)))
        hidden = norm(hidden, op("MatMul", inner, weight(4 * _WIDTH, _WIDTH)))
    return _model([x], nodes, weights)


def _model(inputs: list[ir.Value], nodes: list[ir.Node], weights: list[ir.Value]) -> ir.Model:
    import onnx_ir as ir

    out = nodes[-1].outputs[0]
    out.name, out.type, out.shape = "out", inputs[0].type, ir.Shape(["m", "n"])
    return ir.Model(
        ir.Graph(
            inputs, [out], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="work"
        ),
        ir_version=10,
    )
