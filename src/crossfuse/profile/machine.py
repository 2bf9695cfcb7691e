"""What this machine attains with the engine that runs the bundle: its rate of products, and its bandwidth of memory."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.ort import OrtStage

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Limits", "measure_limits"]

_PRODUCTS = ((256, 768, 3072), (1024, 1024, 1024), (2048, 1024, 4096))
_ELEMENTS = 1 << 24
_SECONDS = 0.3


@dataclass(frozen=True)
class Limits:
    """Attainable rates: the best of all calls, so that a roof is one.

    Attributes:
        flops: floating-point operations per second of a product with constant weights; the best of several shapes.
        bandwidth: bytes per second of an addition of arrays that fit in no cache.
        product: the shape ``[m, k] × [k, n]`` that was the best.
    """

    flops: float
    bandwidth: float
    product: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"flops": self.flops, "bandwidth": self.bandwidth, "product": list(self.product)}

    def seconds(self, flops: int, moved: int) -> float:
        """The least time that so much work takes."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure_limits(provider: str, options: SessionOptions, dtype: str = "float32") -> Limits | None:
    """Measure; None where `onnx_ir`, which makes the graphs, is not installed."""
    if find_spec("onnx_ir") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="crossfuse-limits-") as name:
        best, product = 0.0, _PRODUCTS[0]
        for m, k, n in _PRODUCTS:
            rate = 2 * m * k * n / _shortest(_product(k, n, dtype), (m, k), Path(name), provider, options, dtype)
            if rate > best:
                best, product = rate, (m, k, n)
        moved = 3 * _ELEMENTS * np.dtype(dtype).itemsize
        seconds = _shortest(_addition(dtype), (1, _ELEMENTS), Path(name), provider, options, dtype)
    return Limits(best, moved / seconds, product)


def _shortest(
    model: ir.Model, shape: tuple[int, int], folder: Path, provider: str, options: SessionOptions, dtype: str
) -> float:
    import onnx_ir as ir

    path = folder / "limit.onnx"
    ir.save(model, path)
    engine = OrtStage(path, provider, options)
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)
    feeds = dict.fromkeys(engine.boundary[0], array)
    run = engine.run_on_device if engine.on_device else engine.run
    shortest = float("inf")
    end = time.perf_counter() + _SECONDS
    while True:
        before = time.perf_counter()
        run(feeds)
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
    node = ir.node("MatMul", [x, weight])
    return _model([x], node, [weight])


def _addition(dtype: str) -> ir.Model:
    """``x + y``."""
    import onnx_ir as ir

    x, y = (ir.val(name, dtype=ir.DataType.from_numpy(np.dtype(dtype)), shape=["m", "n"]) for name in "xy")
    return _model([x, y], ir.node("Add", [x, y]), [])


def _model(inputs: list[ir.Value], node: ir.Node, weights: list[ir.Value]) -> ir.Model:
    import onnx_ir as ir

    out = node.outputs[0]
    out.name, out.type, out.shape = "out", inputs[0].type, ir.Shape(["m", "n"])
    return ir.Model(
        ir.Graph(inputs, [out], nodes=[node], initializers=weights, opset_imports={"": 20}, name="limit"), ir_version=10
    )
