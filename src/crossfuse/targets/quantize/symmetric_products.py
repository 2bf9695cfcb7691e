"""Products of symmetric codes, in the form that TensorRT joins to one kernel.

1. What a layer is given is rounded by a ``QuantizeLinear`` in fp32, once for all layers that are
   given it, and dequantised for each.
2. Its weights are dequantised with one step for all channels; each channel's ratio multiplies the
   result behind the product, and the bias is added there. A step per channel would leave it to the
   engine in what the sums are held before, and raw sums of codes are beyond fp16.
3. Nodes are named after the layer's own: the product has its name, the others end in `PARTS`. So
   an engine's layers tell what became of it.
4. Where channels are scaled, they are divided first, and the weights have the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.builder import GraphBuilder
from crossfuse.targets.quantize.grids import Grid
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer
from crossfuse.targets.quantize.rounding import OneStep
from crossfuse.targets.quantize.static_products import Product

__all__ = ["CODES", "PARTS", "SymmetricProducts", "dequantized_weights", "parts_of"]

CODES = ":codes"
"""How the name of a node ends that rounds what layers are given."""

PARTS = (":given", ":widened", ":ratio", ":bias")
"""How the names of nodes end that a layer's product is written with: what it is given and its
weights dequantised, the ratios of its channels, its bias."""

_GIVEN, _WEIGHTS, _RATIO, _BIAS = PARTS
_MATRIX = 2


def parts_of(key: str) -> tuple[str, ...]:
    """Names of the nodes that a layer of this name is written with, its product first."""
    return (key, *(key + part for part in PARTS))


def dequantized_weights(key: str) -> str:
    """Name of the node that dequantises the weights of a layer of this name."""
    return key + _WEIGHTS


class SymmetricProducts:
    """Emits products beside the layers of one graph, in the graph's order.

    Args:
        initializer: registers constants.
        rounded: weights for what is rounded to a grid, with the factors of its channels.
    """

    def __init__(
        self,
        initializer: Callable[[str, NDArray[Any]], ir.Value],
        rounded: Callable[[LinearLayer, Grid], OneStep],
    ) -> None:
        self._initializer = initializer
        self._rounded = rounded
        self._codes: dict[tuple[ir.Value, Grid], ir.Value] = {}
        self._constants: dict[tuple[object, ...], ir.Value] = {}

    def of(self, build: GraphBuilder, layer: LinearLayer, grid: Grid) -> Product:
        """A layer between numbers that are quantised and dequantised."""
        source, key = layer.node.inputs[0], layer.key
        assert source is not None
        rounded = self._rounded(layer, grid)
        weights = self._weights(layer, grid, "weights", rounded.weights)
        codes = self._given(build, source, grid, key)
        given = _named(build.op("DequantizeLinear", codes, *self._grid(grid)), key + _GIVEN)
        step = self._shared("step", np.array(rounded.step, np.float32))
        wide = _named(build.op("DequantizeLinear", weights, step, self._zero(grid)), key + _WEIGHTS)
        emit = _convolution if layer.node.op_type in CONVOLUTIONS else _product
        ratios = rounded.ratios
        if layer.node.op_type in CONVOLUTIONS:
            ratios = ratios[:, 0]
        elif ratios.ndim == _MATRIX:
            ratios = ratios[0]
        ratio = self._weights(layer, grid, "ratios", np.ascontiguousarray(ratios))
        return Product(emit(build, layer, (given, wide), ratio), weights.name or "")

    def _given(self, build: GraphBuilder, source: ir.Value, grid: Grid, key: str) -> ir.Value:
        """Codes of a value, made once."""
        if (source, grid) not in self._codes:
            value = source
            if grid.scaling:
                factors = (1 / np.asarray(grid.scaling, np.float64)).astype(np.float32)
                value = build.op("Mul", source, self._shared("factors", factors), like=source)
            codes = build.op("QuantizeLinear", value, *self._grid(grid))
            codes.type = ir.TensorType(ir.DataType.from_numpy(grid.codes.dtype))
            self._codes[source, grid] = _named(codes, key + CODES)
        return self._codes[source, grid]

    def _grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        return self._shared("step", np.array(grid.step, np.float32)), self._zero(grid)

    def _zero(self, grid: Grid) -> ir.Value:
        return self._shared("zero", np.zeros((), grid.codes.dtype))

    def _shared(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant, made once for its content."""
        key = (name, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._initializer(f"quantized:{name}", array)
        return self._constants[key]

    def _weights(self, layer: LinearLayer, grid: Grid, name: str, array: NDArray[Any]) -> ir.Value:
        """A layer's constant, shared by the layers of the same weights and factors."""
        key = (*layer.weights_key, layer.node.op_type, grid.scaling, grid.codes, name)
        if key not in self._constants:
            self._constants[key] = self._initializer(f"{layer.site}:{name}", array)
        return self._constants[key]


def _product(
    build: GraphBuilder, layer: LinearLayer, operands: tuple[ir.Value, ir.Value], ratio: ir.Value
) -> ir.Value:
    node, key = layer.node, layer.key
    product = _named(build.op("MatMul", *operands), key)
    result = _named(build.op("Mul", product, ratio), key + _RATIO)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is None:
        return result
    beta = node.attributes.get_float("beta", 1.0)
    if beta != 1.0:
        bias = build.op("Mul", bias, build.constant(beta, np.float32), like=bias)
    return _named(build.op("Add", result, bias), key + _BIAS)


def _convolution(
    build: GraphBuilder, layer: LinearLayer, operands: tuple[ir.Value, ir.Value], ratio: ir.Value
) -> ir.Value:
    node, key = layer.node, layer.key
    product = _named(build.tape.op("Conv", list(operands), attributes=node.attributes), key)
    result = _named(build.op("Mul", product, ratio), key + _RATIO)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return result
    shape = build.ints(-1, *(1,) * (len(layer.shape) - 2))
    column = build.op("Reshape", bias, shape, like=bias)
    return _named(build.op("Add", result, column), key + _BIAS)


def _named(value: ir.Value, name: str) -> ir.Value:
    node = value.producer()
    assert node is not None
    node.name = name
    value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return value
