"""What linear layers became, read from the graph that ONNX Runtime made of a target's own.

A layer's integers keep their name through the engine's optimiser, and so do weights that it widens:
a ``DequantizeLinear`` of constants is computed while the graph is loaded, and the constant that
comes out has the name of its result. The nodes that take a layer's integers say what it became.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from crossfuse.core.linear_ledger import FP32, INT8, Became, weights_in

__all__ = ["EngineGraph"]

_INTEGER_PRODUCTS = frozenset(
    {
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul"),
        *("QGemm", "QLinearConv", "ConvInteger"),
    }
)
_BLOCK_PRODUCT = "MatMulNBits"
_WIDENED = "DequantizeLinear"
_MOVED = frozenset({"Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_IN_INT8 = 4
"""The accuracy level of ``MatMulNBits`` at which what it is given is rounded to int8."""


class EngineGraph:
    """An optimised graph, asked for the users of constants.

    Args:
        model: as ONNX Runtime wrote it.
    """

    def __init__(self, model: ir.Model) -> None:
        self._users: dict[str, list[ir.Node]] = {}
        for node in model.graph.all_nodes():
            for value in node.inputs:
                if value is not None:
                    self._users.setdefault(value.name or "", []).append(node)

    def became(self, weights: str, widened: str | None = None) -> Became:
        """What the layer with these integers is.

        Args:
            weights: name of the constant in the target's graph.
            widened: name of what a ``DequantizeLinear`` made of them there, if it has one.
        """
        found = [self._kind(node, weights) for node in self._products(weights)]
        if not found:
            return Became(FP32, self._lost(widened))
        worst = next((one for one in found if one.words == FP32), found[0])
        return worst

    def _lost(self, widened: str | None) -> str:
        if widened is not None and self._users.get(widened):
            return "the engine widened its weights to fp32 when it loaded the graph"
        return "the engine's graph has no product with its integers"

    def _products(self, weights: str) -> Iterable[ir.Node]:
        """The nodes that multiply by a constant, whatever moves or widens it before."""
        # On CPUs whose int8 products saturate, ONNX Runtime shifts int8 weights to uint8.
        pending = [n for n in self._users if n == weights or n.startswith(f"{weights}_")]
        while pending:
            for node in self._users.get(pending.pop(), []):
                if node.op_type in _MOVED or node.op_type == _WIDENED:
                    pending += [output.name or "" for output in node.outputs]
                else:
                    yield node

    def _kind(self, node: ir.Node, weights: str) -> Became:
        if node.op_type in _INTEGER_PRODUCTS:
            return Became(INT8)
        if node.op_type == _BLOCK_PRODUCT:
            level = node.attributes.get_int("accuracy_level", 0)
            computed = "int8" if level == _IN_INT8 else "fp32"
            return Became(weights_in(node.attributes.get_int("bits", 4), computed))
        if any(value is not None and self._widens(value) for value in node.inputs):
            return Became(weights_in(8))
        return Became(FP32, f"the engine computes it as {node.op_type} of {weights}")

    @staticmethod
    def _widens(value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and producer.op_type in (_WIDENED, *_MOVED)
