"""What OpenVINO's own execution graph says of linear layers: which type each is computed in.

OpenVINO's products and convolutions are given names before a model is compiled, and the node that
bears a name, or one that OpenVINO derived from it (``NAME/WithoutBiases``), is what the layer
became. Where OpenVINO joined a product and its bias under the name of the bias, that is the name.
The type is that of the node's implementation (``undef_I8``, ``brgemm_avx512_amx_bf16``), and that
of its second operand tells integers that are widened where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossfuse.core.linear_ledger import INT8, Became, weights_in
from crossfuse.core.openvino_nodes import ExecutedNode

__all__ = ["WIDE_FLOATS", "MarkedLinears", "mark_linears"]

WIDE_FLOATS = "crossfuse.floats"
"""Property of a graph in integers or bf16: the type that its fp32 numbers may be computed in."""

_MARK = "crossfuse.linear."
_OPERATORS = frozenset(
    {
        *("MatMul", "Einsum", "Convolution", "GroupConvolution"),
        *("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    }
)
_BEHIND = frozenset({"Add", "Multiply", "Reshape", "Convert", "Squeeze", "Unsqueeze", "Transpose"})
"""Operators that the front end puts behind a product: its bias, its scale, its layout."""

_SIZES = "ShapeOf"

_PRODUCT = re.compile(r"fully_?connected|matmul|gemm|convolution|deconv|einsum", re.IGNORECASE)
_BITS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4}
_FLOATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_FARTHEST = 6
"""How many nodes behind its product a layer's name may be: an einsum's products have none."""


@dataclass(frozen=True)
class MarkedLinears:
    """The products of a model that is about to be compiled.

    Attributes:
        marks: name of a tensor that holds a product's result, with its bias or without → mark.
        names: mark → the name that the operator had.
        behind: mark → names of the operators that the front end put behind the product.
    """

    marks: Mapping[str, str]
    names: Mapping[str, str]
    behind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def became(self, nodes: Collection[ExecutedNode], results: Iterable[str]) -> dict[str, Became]:
        """What the layers with these results are; without those that no node was found of.

        Args:
            nodes: of the execution graph.
            results: names of tensors in the graph that was compiled.
        """
        executed = _Executed(nodes)
        found: dict[str, Became] = {}
        for result in results:
            mark = self.marks.get(result, "")
            product = executed.product(mark, self.behind.get(mark, ()))
            if product is not None:
                found[result] = _kind(product)
        return found

    def original(self, origin: str) -> str:
        """The name that an operator had before it was marked, if it was."""
        return self.names.get(_mark_in(origin), origin)


def mark_linears(model: Any) -> MarkedLinears:
    """Name the products and convolutions of an ``openvino.Model``, in place."""
    names: dict[str, str] = {}
    own: dict[str, str] = {}
    later: dict[str, str] = {}
    behind: dict[str, tuple[str, ...]] = {}
    for operator in model.get_ordered_ops():
        if operator.get_type_name() not in _OPERATORS:
            continue
        mark = f"{_MARK}{len(names)}."
        names[mark] = operator.get_friendly_name()
        operator.set_friendly_name(mark)
        own |= dict.fromkeys(operator.output(0).get_names(), mark)
        chain = _chain(operator.output(0))
        behind[mark] = tuple(node.get_friendly_name() for node in chain)
        for name in (name for node in chain for name in node.output(0).get_names()):
            later.setdefault(name, mark)
    return MarkedLinears({**later, **own}, names, behind)


class _Executed:
    """Nodes of an execution graph, by what they came from."""

    def __init__(self, nodes: Collection[ExecutedNode]) -> None:
        self._by_name = {node.name: node for node in nodes}
        self._by_mark: dict[str, list[ExecutedNode]] = {}
        self._unmarked: dict[str, ExecutedNode] = {}
        for node in nodes:
            marks = _marks_in(node.origins)
            if not marks and _PRODUCT.search(node.kind):
                self._unmarked |= dict.fromkeys(node.origins, node)
                marks = _marks_in(name for name in node.given[1:] if not self._multiplies(name))
            for mark in marks:
                self._by_mark.setdefault(mark, []).append(node)

    def product(self, mark: str, behind: Collection[str]) -> ExecutedNode | None:
        """The node that multiplies: one that bears the mark, or takes weights that do; one that
        bears the name of what is behind the product; the nearest one before a node that bears the
        mark."""
        marked = self._by_mark.get(mark, [])
        near = [one for one in marked if _PRODUCT.search(one.kind)]
        near += [self._unmarked[name] for name in behind if name in self._unmarked]
        if near:
            return near[0]
        before = (self._before(one) for one in marked)
        return next((one for one in before if one is not None), None)

    def _multiplies(self, name: str) -> bool:
        node = self._by_name.get(name)
        return node is not None and _PRODUCT.search(node.kind) is not None

    def _before(self, node: ExecutedNode) -> ExecutedNode | None:
        for _ in range(_FARTHEST):
            found = self._by_name.get(node.given[0]) if node.given else None
            if found is None or _PRODUCT.search(found.kind):
                return found
            node = found
        return None


def _chain(value: Any) -> list[Any]:
    """The operators behind a product that are given it and constants alone, one after the other."""
    found: list[Any] = []
    while True:
        users = [
            port for port in value.get_target_inputs() if port.get_node().get_type_name() != _SIZES
        ]
        if len(users) != 1:
            return found
        (port,) = users
        node = port.get_node()
        if node.get_type_name() not in _BEHIND or (port.get_index() and not _plain(node, port)):
            return found
        found.append(node)
        value = node.output(0)


def _plain(node: Any, port: Any) -> bool:
    """Whether all that an operator takes, but for this, are constants."""
    return all(
        one.get_source_output().get_node().get_type_name() == "Constant"
        for one in node.inputs()
        if one.get_index() != port.get_index()
    )


def _marks_in(names: Iterable[str]) -> set[str]:
    return {found for name in names if (found := _mark_in(name))}


def _mark_in(origin: str) -> str:
    """The mark that a name is, or was derived from; empty where it is none."""
    if not origin.startswith(_MARK):
        return ""
    number, dot, _ = origin.removeprefix(_MARK).partition(".")
    return f"{_MARK}{number}." if dot and number.isdigit() else ""


def _kind(node: ExecutedNode) -> Became:
    dtype = node.implementation.rpartition("_")[2].lower()
    if dtype not in _BITS and dtype not in _FLOATS:
        dtype = node.precision
    bits = _BITS.get(node.weights)
    if dtype in _BITS:
        return Became(INT8 if bits in (8, None) else weights_in(bits or 8, "int8"))
    words = _FLOATS.get(dtype, dtype)
    return Became(words if bits is None else weights_in(bits, words))
