"""The linear layers of a graph: products and convolutions with weights.

1. A layer is a ``MatMul``, ``Gemm``, ``Einsum``, ``Conv`` or ``ConvTranspose`` of fp32 with one
   operand of two or more axes that depends on constants alone.
2. Weights may be computed from constants, as those are that modules pack together, norm, or sum of
   parts; where an operator of that has no reference implementation, they can't be read.
3. A layer's site is the path of its module; several of one module are told apart by ``#2``, ``#3``
   in the order of execution.
4. Layers in the bodies of ``If``, ``Loop`` and ``Scan`` count as well.

A product of two computed values is no linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.graph.constants import constant_of, is_constant
from crossfuse.graph.metadata import module_path
from crossfuse.graph.op_classes import PRODUCT_OPS, is_onnx
from crossfuse.targets.precision.islands import node_key

__all__ = ["CONVOLUTIONS", "LinearLayer", "linear_layers", "matrix"]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

_LEAST_RANK = 2


@dataclass(frozen=True)
class LinearLayer:
    """One product with weights.

    Attributes:
        site: its name in the ledger.
        node: of the graph.
        operand: which of the node's inputs the weights are.
        tensor: the weights as the node takes them; None where they can't be read.
        shape: of the weights.
        nested: it is in the body of another node.
    """

    site: str
    node: ir.Node
    operand: int
    tensor: ir.TensorProtocol | None
    shape: tuple[int, ...]
    nested: bool = False

    @property
    def key(self) -> str:
        """The node's name in the fused graph, which is the same in all stages."""
        return node_key(self.node)

    @property
    def weights_key(self) -> tuple[object, ...]:
        """Equal for layers that multiply by the same numbers, in all stages."""
        value, attributes = self.node.inputs[self.operand], self.node.attributes
        scaled = tuple(str(attributes.get(name)) for name in ("alpha", "transB"))
        return (None if value is None else value.name, self.shape, *scaled)


def linear_layers(model: ir.Model, sites: Mapping[str, str] | None = None) -> list[LinearLayer]:
    """The layers, in the graph's order.

    Args:
        model: a fused or lowered graph.
        sites: names of nodes → sites, of the whole graph that this is a stage of.
    """
    top = set(model.graph)
    names = _Sites(sites or {})
    found = []
    for node in model.graph.all_nodes():
        operand = _weights_of(node)
        if operand is None:
            continue
        value = node.inputs[operand]
        assert value is not None
        tensor = constant_of(value)
        shape = _shape_of(value, tensor)
        found.append(
            LinearLayer(names.of(node), node, operand, tensor, shape, nested=node not in top)
        )
    return found


def matrix(layer: LinearLayer) -> NDArray[Any]:
    """The weights, which can be read, as the right operand of a product, times a Gemm's alpha."""
    assert layer.tensor is not None
    weights: NDArray[Any] = layer.tensor.numpy()
    if layer.node.op_type != "Gemm":
        return weights
    attributes = layer.node.attributes
    weights = weights.T if attributes.get_int("transB", 0) else weights
    return weights * np.float32(attributes.get_float("alpha", 1.0))


class _Sites:
    """Names, each given once."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._seen: Counter[str] = Counter(site.partition("#")[0] for site in known.values())
        self._given: set[str] = set()

    def of(self, node: ir.Node) -> str:
        """The site that the whole graph has for the node, or a new one."""
        site = self._known.get(node_key(node))
        if site is None or site in self._given:
            path = module_path(node) or node_key(node)
            self._seen[path] += 1
            site = path + (f"#{self._seen[path]}" if self._seen[path] > 1 else "")
        self._given.add(site)
        return site


def _weights_of(node: ir.Node) -> int | None:
    """Which operand of a product is weights; None where none is, or all are."""
    if not is_onnx(node, *PRODUCT_OPS, *CONVOLUTIONS):
        return None
    operands = node.inputs[:2] if node.op_type != "Einsum" else node.inputs
    constant = [i for i, value in enumerate(operands) if value is not None and _is_weights(value)]
    if len(constant) == len(operands):
        return None
    return constant[-1] if constant else None


def _is_weights(value: ir.Value) -> bool:
    rank = None if value.shape is None else len(value.shape)
    known = constant_of(value)
    if known is not None:
        return known.dtype == ir.DataType.FLOAT and len(known.shape) >= _LEAST_RANK
    floats = value.dtype in (None, ir.DataType.FLOAT)
    return floats and rank is not None and rank >= _LEAST_RANK and is_constant(value)


def _shape_of(value: ir.Value, tensor: ir.TensorProtocol | None) -> tuple[int, ...]:
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)
