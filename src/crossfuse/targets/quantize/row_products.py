"""Integer products of numbers that are rounded where they run, each row to a step of its own.

A row's step is its largest magnitude over 127, so rows beside it, of other samples or tokens, do
not change what becomes of it. The rows are divided by their steps, rounded to codes of uint8, and
multiplied by int8 weights in ONNX Runtime's ``MatMulIntegerToFloat``; the results are multiplied by
the steps, and only then a bias is added. Layers that are given the same numbers share the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.builder import GraphBuilder
from crossfuse.targets.quantize.layers import LinearLayer
from crossfuse.targets.quantize.rounding import Channels
from crossfuse.targets.quantize.static_products import MICROSOFT, Initializer, Product, with_bias

__all__ = ["RowProducts"]

_TOP, _ZERO = 127, 128
"""The largest code, and the code of 0 as uint8."""

_LEAST = float(np.finfo(np.float32).tiny) * _TOP
"""The smallest magnitude that a row's step is made of, so that steps are normal numbers."""

Rounded = Callable[[LinearLayer], Channels]


class RowProducts:
    """Emits products beside the layers of one graph, in the graph's order.

    Args:
        initializer: registers constants.
        rounded: weights, per channel.
    """

    def __init__(self, initializer: Initializer, rounded: Rounded) -> None:
        self._initializer = initializer
        self._rounded = rounded
        self._codes: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[tuple[object, ...], ir.Value] = {}

    def of(self, build: GraphBuilder, layer: LinearLayer) -> Product:
        """A layer's product; its weights have two axes."""
        source = layer.node.inputs[0]
        assert source is not None
        if source not in self._codes:
            self._codes[source] = self._coded(build, source)
        codes, steps = self._codes[source]
        rounded = self._rounded(layer)
        weights, scales, zeros = (
            self._shared((*layer.weights_key, what), f"{layer.site}:{what}", array)
            for what, array in (
                ("weights", rounded.weights),
                ("scales", rounded.scales),
                ("zeros", np.zeros(rounded.scales.shape, np.int8)),
            )
        )
        product = build.op(
            "MatMulIntegerToFloat",
            *(codes, weights, self._one(), scales, self._zero(), zeros),
            domain=MICROSOFT,
        )
        result = build.op("Mul", product, steps)
        return Product(with_bias(build, layer.node, result), weights.name or "", MICROSOFT)

    def _coded(self, build: GraphBuilder, source: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Codes of uint8, and each row's step."""
        last = self._shared(("axis",), "rows:axis", np.array([-1], np.int64))
        highest = build.op("ReduceMax", source, last, keepdims=1)
        lowest = build.op("Neg", build.op("ReduceMin", source, last, keepdims=1))
        least = self._shared(("least",), "rows:least", np.array(_LEAST, np.float32))
        top = self._shared(("top",), "rows:top", np.array(_TOP, np.float32))
        largest = build.op("Max", highest, lowest, least)
        scaled = build.op("Mul", source, build.op("Div", top, largest))
        codes = build.op("QuantizeLinear", scaled, self._one(), self._zero())
        return codes, build.op("Div", largest, top)

    def _one(self) -> ir.Value:
        return self._shared(("one",), "rows:one", np.array(1, np.float32))

    def _zero(self) -> ir.Value:
        return self._shared(("zero",), "rows:zero", np.array(_ZERO, np.uint8))

    def _shared(self, key: tuple[object, ...], name: str, array: NDArray[Any]) -> ir.Value:
        """A constant, made once."""
        if key not in self._constants:
            self._constants[key] = self._initializer(name, array)
        return self._constants[key]
