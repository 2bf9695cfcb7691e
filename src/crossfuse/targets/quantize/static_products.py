"""Integer products of numbers that are rounded to grids chosen before, convolutions included.

1. For an engine that joins them itself: ``QuantizeLinear`` and ``DequantizeLinear`` in front of the
   product, ``DequantizeLinear`` behind its int8 weights. Nothing is rounded behind it.
2. For ONNX Runtime, whose optimiser does not join these where a bias follows: its own
   ``MatMulIntegerToFloat``, the addition of a bias included; and ``QLinearConv``, which rounds its
   results as well, a Relu behind it included. What the next convolution is given are those codes.
3. Where channels are scaled, they are divided first, and the weights have the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.targets.quantize.grids import Grid, LayerGrids
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer
from crossfuse.targets.quantize.ranges import relu_behind
from crossfuse.targets.quantize.rounding import Channels, per_filter

__all__ = ["MICROSOFT", "Product", "StaticProducts", "with_bias"]

MICROSOFT = "com.microsoft"

Initializer = Callable[[str, NDArray[Any]], ir.Value]
"""A name and an array → an initializer of the graph."""

Rounded = Callable[[LinearLayer, Grid], Channels]


class Product(NamedTuple):
    """What was emitted for a layer.

    Attributes:
        result: in fp32, bias of a Gemm included.
        weights: name of the initializer with its integers.
        domain: of the operator.
        replaces: the node whose result it is, where that is another one than the layer's own.
    """

    result: ir.Value
    weights: str
    domain: str = ""
    replaces: ir.Node | None = None


class StaticProducts:
    """Emits products beside the layers of one graph, in the graph's order.

    Args:
        initializer: registers constants.
        rounded: weights for what is rounded to a grid, with the factors of its channels.
    """

    def __init__(self, initializer: Initializer, rounded: Rounded) -> None:
        self._initializer = initializer
        self._integers = rounded
        self._codes: dict[tuple[ir.Value, Grid], ir.Value] = {}
        self._widened: dict[tuple[ir.Value, Grid], ir.Value] = {}
        self._constants: dict[tuple[object, ...], ir.Value] = {}

    def dequantized(self, build: GraphBuilder, layer: LinearLayer, grids: LayerGrids) -> Product:
        """A layer between numbers that are quantised and dequantised."""
        source = layer.node.inputs[0]
        assert source is not None
        given = self._widened.get((source, grids.given))
        if given is None:
            codes = self._rounded(build, source, grids.given)
            given = build.op("DequantizeLinear", codes, *self._grid(grids.given))
            self._widened[source, grids.given] = given
        rounded = self._integers(layer, grids.given)
        weights = self._weights(layer, grids.given, "weights", rounded.weights)
        scales = self._weights(layer, grids.given, "scales", rounded.scales)
        is_conv = layer.node.op_type in CONVOLUTIONS
        if rounded.scales.ndim == 1:
            wide = build.op("DequantizeLinear", weights, scales, axis=0 if is_conv else 1)
        else:
            wide = build.op("Mul", build.op("Cast", weights, to=int(ir.DataType.FLOAT)), scales)
        if is_conv:
            node = build.tape.op(
                "Conv", [given, wide, *layer.node.inputs[2:]], attributes=layer.node.attributes
            )
            return Product(node, weights.name or "")
        result = build.op("MatMul", given, wide)
        return Product(with_bias(build, layer.node, result), weights.name or "")

    def integers(self, build: GraphBuilder, layer: LinearLayer, grids: LayerGrids) -> Product:
        """A layer as one of ONNX Runtime's operators; a product's weights have two axes."""
        if layer.node.op_type in CONVOLUTIONS:
            return self._convolution(build, layer, grids)
        source = layer.node.inputs[0]
        assert source is not None
        codes = self._rounded(build, source, grids.given)
        rounded = self._integers(layer, grids.given)
        weights = self._weights(layer, grids.given, "weights", rounded.weights)
        scales = self._weights(layer, grids.given, "scales", rounded.scales)
        zeros = self._weights(layer, grids.given, "zeros", np.zeros(rounded.scales.shape, np.int8))
        step, zero = self._grid(grids.given)
        added = _addition_behind(layer.node, rounded.scales.size)
        result = build.op(
            "MatMulIntegerToFloat",
            *(codes, weights, step, scales, zero, zeros),
            None if added is None else added.bias,
            domain=MICROSOFT,
        )
        name = weights.name or ""
        if added is not None:
            return Product(result, name, MICROSOFT, added.node)
        return Product(with_bias(build, layer.node, result), name, MICROSOFT)

    def _convolution(self, build: GraphBuilder, layer: LinearLayer, grids: LayerGrids) -> Product:
        node, source, made = layer.node, layer.node.inputs[0], grids.made
        assert source is not None
        assert made is not None
        bias = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
        rounded = self._filters(layer, grids.given, bias)
        name = f"{layer.site}:weights"
        weights = self._initializer(name, rounded.weights)
        scales = self._initializer(f"{layer.site}:scales", rounded.scales)
        zeros = self._initializer(f"{layer.site}:zeros", np.zeros(rounded.scales.shape, np.int8))
        whole = None
        if bias is not None:
            steps = rounded.scales.astype(np.float64) * grids.given.step
            whole = self._initializer(f"{layer.site}:bias", np.rint(bias / steps).astype(np.int32))
        codes = build.tape.op(
            "QLinearConv",
            [
                *(self._rounded(build, source, grids.given), *self._grid(grids.given)),
                *(weights, scales, zeros, *self._grid(made)),
                *(() if whole is None else (whole,)),
            ],
            attributes=node.attributes,
        )
        result = build.op("DequantizeLinear", codes, *self._grid(made))
        self._codes[result, made] = codes
        return Product(result, weights.name or "", replaces=relu_behind(layer))

    def _rounded(self, build: GraphBuilder, source: ir.Value, grid: Grid) -> ir.Value:
        """Codes of a value, made once."""
        if (source, grid) not in self._codes:
            value = source
            if grid.scaling:
                factors = 1 / np.asarray(grid.scaling, np.float64)
                value = build.op("Mul", source, self._shared("factors", factors.astype(np.float32)))
            self._codes[source, grid] = build.op("QuantizeLinear", value, *self._grid(grid))
        return self._codes[source, grid]

    def _grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        step, zero = np.array(grid.step, np.float32), np.array(grid.zero, np.uint8)
        return self._shared("step", step), self._shared("zero", zero)

    def _shared(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant, made once for its content."""
        key = (name, array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._initializer(f"quantized:{name}", array)
        return self._constants[key]

    def _filters(self, layer: LinearLayer, grid: Grid, bias: NDArray[Any] | None) -> Channels:
        assert layer.tensor is not None
        least = None if bias is None else np.abs(bias) / (grid.step * _MOST_BIAS)
        return per_filter(layer.tensor.numpy(), least)

    def _weights(self, layer: LinearLayer, grid: Grid, name: str, array: NDArray[Any]) -> ir.Value:
        """A layer's constant, shared by the layers of the same weights and factors."""
        key = (*layer.weights_key, grid.scaling, name)
        if key not in self._constants:
            self._constants[key] = self._initializer(f"{layer.site}:{name}", array)
        return self._constants[key]


_MOST_BIAS = 2.0**30
"""A convolution's bias in steps of its products, at most: it is an int32."""


class _Addition(NamedTuple):
    node: ir.Node
    bias: ir.Value


def _addition_behind(node: ir.Node, columns: int) -> _Addition | None:
    """The addition of a constant vector that alone is given a product's result."""
    result = node.outputs[0]
    users = list(result.uses())
    if node.op_type != "MatMul" or result.is_graph_output() or len(users) != 1:
        return None
    user = users[0].node
    if not is_onnx(user, "Add") or user.graph is not node.graph:
        return None
    other = user.inputs[1 - users[0].idx]
    fits = other is not None and other.is_initializer() and other.dtype == ir.DataType.FLOAT
    if other is None or not fits or _shape(other) != (columns,):
        return None
    return _Addition(user, other)


def _shape(value: ir.Value) -> tuple[object, ...]:
    return () if value.shape is None else tuple(value.shape)


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def with_bias(build: GraphBuilder, node: ir.Node, result: ir.Value) -> ir.Value:
    """A result with a Gemm's third operand, times its beta."""
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is None:
        return result
    beta = node.attributes.get_float("beta", 1.0)
    if beta != 1.0:
        bias = build.op("Mul", bias, build.constant(beta, np.float32))
    return build.op("Add", result, bias)
