"""Integer products in the place of linear layers.

1. *Dynamic*: what the layer is given is quantised where it runs, once for all layers that are given
   it, each row to a step of its own (`row_products`); as a whole where the weights have more than
   two axes (``DynamicQuantizeLinear``, ``MatMulInteger``).
2. *Blocks*: ``MatMulNBits``, which rounds what it is given in blocks too, per row: for few rows, as
   in a decoding step.
3. *Static*: what the layer is given is rounded to a grid that was chosen before
   (`static_products`; of symmetric codes, `symmetric_products`).

Results keep their names, types and shapes; attention and everything else stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.graph.builder import GraphBuilder
from crossfuse.targets.quantize.grids import Grid, LayerGrids
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer, matrix
from crossfuse.targets.quantize.rounding import (
    BLOCK,
    Blocks,
    Channels,
    OneStep,
    in_blocks,
    on_one_step,
    per_channel,
    per_filter,
)
from crossfuse.targets.quantize.row_products import RowProducts
from crossfuse.targets.quantize.static_products import (
    MICROSOFT,
    Product,
    StaticProducts,
    with_bias,
)
from crossfuse.targets.quantize.symmetric_products import SymmetricProducts

__all__ = [
    "ACCURACY_LEVEL",
    "DYNAMIC",
    "MICROSOFT",
    "WHOLE",
    "Form",
    "IntegerProducts",
    "Product",
    "RoundedWeights",
    "rewrite",
]

ACCURACY_LEVEL = 4
"""``MatMulNBits`` rounds what it is given to int8: in fp32 it has no kernel for 8 bits on CPUs."""

_MATRIX = 2


@dataclass(frozen=True)
class Form:
    """How a layer is quantised.

    Attributes:
        bits: of its weights.
        blocks: in blocks, else per channel.
        rows: what it is given is rounded row by row where it runs, else as a whole.
        grids: that what it is given is rounded to; None where that is decided where it runs.
        qdq: with grids, as a product of numbers that are quantised and dequantised.
    """

    bits: int = 8
    blocks: bool = False
    rows: bool = False
    grids: LayerGrids | None = None
    qdq: bool = False


WHOLE = Form()
"""Rounded as a whole where it runs."""

DYNAMIC = Form(rows=True)
"""Rounded row by row where it runs."""


@dataclass
class RoundedWeights:
    """Integers made once for all stages and all trials of a search, by the weights that they are
    made of."""

    channels: dict[tuple[object, ...], Channels] = field(default_factory=dict)
    blocks: dict[tuple[object, ...], Blocks] = field(default_factory=dict)
    steps: dict[tuple[object, ...], OneStep] = field(default_factory=dict)

    def per_channel(self, layer: LinearLayer) -> Channels:
        """A layer's, per channel."""
        key = layer.weights_key
        if key not in self.channels:
            self.channels[key] = per_channel(matrix(layer))
        return self.channels[key]

    def on_grid(self, layer: LinearLayer, grid: Grid) -> Channels:
        """A layer's, per channel, with the factors of what it is given; a convolution's per
        filter."""
        key = (*layer.weights_key, layer.node.op_type, grid.scaling)
        if key not in self.channels:
            if layer.node.op_type in CONVOLUTIONS:
                assert layer.tensor is not None
                self.channels[key] = per_filter(layer.tensor.numpy())
            else:
                factors = np.asarray(grid.scaling or 1.0, np.float32).reshape(-1, 1)
                self.channels[key] = per_channel(matrix(layer) * factors)
        return self.channels[key]

    def on_one_step(self, layer: LinearLayer, grid: Grid) -> OneStep:
        """A layer's in the grid's codes, with the factors of what it is given."""
        key = (*layer.weights_key, layer.node.op_type, grid.scaling, grid.codes)
        if key not in self.steps:
            if layer.node.op_type in CONVOLUTIONS:
                assert layer.tensor is not None
                array = layer.tensor.numpy()
                axes = tuple(range(1, array.ndim))
            else:
                array = matrix(layer) * np.asarray(grid.scaling or 1.0, np.float32).reshape(-1, 1)
                axes = (-2,)
            self.steps[key] = on_one_step(array, axes, grid.codes)
        return self.steps[key]

    def in_blocks(self, layer: LinearLayer, bits: int) -> Blocks:
        """A layer's, in blocks."""
        key = (*layer.weights_key, bits)
        if key not in self.blocks:
            self.blocks[key] = in_blocks(matrix(layer), bits)
        return self.blocks[key]


def rewrite(
    model: ir.Model, layers: Iterable[tuple[LinearLayer, Form]], made: RoundedWeights
) -> dict[str, str]:
    """Put integer products in the place of layers of a graph, which is changed.

    Args:
        model: the graph.
        layers: of it, which no rule keeps in fp32, each with its form; in the graph's order.
        made: integers of earlier calls.

    Returns:
        site → name of the initializer with its integers, which layers of the same weights share.
    """
    writer = IntegerProducts(model.graph, made)
    names, chosen = {}, list(layers)
    for layer, form in chosen:
        build = GraphBuilder()
        product = writer.of(build, layer, form)
        names[layer.site] = product.weights
        build.replace(product.replaces or layer.node, product.result)
        if product.domain:
            model.graph.opset_imports.setdefault(product.domain, 1)
    RemoveUnusedNodesPass()(model)
    if any(form.grids is not None for _, form in chosen):
        # Codes stand in front of the first addition that a bias was taken of, and the product of
        # another layer that is given them may be before that.
        model.graph.sort()
    return names


class IntegerProducts:
    """Emits integer products beside the layers of one graph, in the graph's order."""

    def __init__(self, graph: ir.Graph, made: RoundedWeights) -> None:
        self._graph = graph
        self._made = made
        self._given: dict[ir.Value, list[ir.Value]] = {}
        self._initializers: dict[tuple[object, ...], tuple[ir.Value, ...]] = {}
        self._static = StaticProducts(self._initializer, made.on_grid)
        self._symmetric = SymmetricProducts(self._initializer, made.on_one_step)
        self._rows = RowProducts(self._initializer, made.per_channel)

    def of(self, build: GraphBuilder, layer: LinearLayer, form: Form) -> Product:
        """Emit a layer's product in a form; in blocks only weights of two axes can be."""
        if form.blocks and len(layer.shape) == _MATRIX:
            return self._in_blocks(build, layer, form.bits)
        if form.grids is not None and form.grids.given.codes.symmetric:
            return self._symmetric.of(build, layer, form.grids.given)
        if form.grids is not None and form.qdq:
            return self._static.dequantized(build, layer, form.grids)
        if form.grids is not None and (layer.node.op_type == "Conv" or len(layer.shape) == _MATRIX):
            return self._static.integers(build, layer, form.grids)
        if form.rows and len(layer.shape) == _MATRIX:
            return self._rows.of(build, layer)
        return self._dynamic(build, layer)

    def _dynamic(self, build: GraphBuilder, layer: LinearLayer) -> Product:
        node, rounded = layer.node, self._made.per_channel(layer)
        source = node.inputs[0]
        assert source is not None
        arrays: dict[str, NDArray[Any]] = {"weights": rounded.weights, "scales": rounded.scales}
        if rounded.scales.ndim == 1:
            # ONNX Runtime joins nodes only where the weights have a zero point.
            arrays["zeros"] = np.zeros(rounded.scales.shape, np.int8)
        weights, scales, *zeros = self._constants(layer, 0, arrays)
        if source not in self._given:
            self._given[source] = list(
                build.tape.op_multi_out("DynamicQuantizeLinear", [source], {}, num_outputs=3)
            )
        codes, step, zero = self._given[source]
        product = build.op("MatMulInteger", codes, weights, zero, *zeros)
        product = build.op("Cast", product, to=int(ir.DataType.FLOAT))
        result = build.op("Mul", product, build.op("Mul", step, scales))
        return Product(with_bias(build, node, result), weights.name or "")

    def _in_blocks(self, build: GraphBuilder, layer: LinearLayer, bits: int) -> Product:
        node, rounded = layer.node, self._made.in_blocks(layer, bits)
        arrays: dict[str, NDArray[Any]] = {"weights": rounded.packed, "scales": rounded.scales}
        weights, scales = self._constants(layer, bits, arrays)
        size, columns = rounded.size
        result = build.op(
            "MatMulNBits",
            node.inputs[0],
            weights,
            scales,
            domain=MICROSOFT,
            K=size,
            N=columns,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )
        return Product(with_bias(build, node, result), weights.name or "", MICROSOFT)

    def _constants(
        self, layer: LinearLayer, bits: int, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[ir.Value, ...]:
        """A layer's constants as initializers, shared by the layers of the same weights."""
        key = (*layer.weights_key, bits)
        if key not in self._initializers:
            self._initializers[key] = tuple(
                self._initializer(f"{layer.site}:{what}", array) for what, array in arrays.items()
            )
        return self._initializers[key]

    def _initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        while name in self._graph.initializers:
            name += "'"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value
