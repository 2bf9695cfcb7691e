"""Numbers that scale and shift the channels of a convolution join its weights and its bias, and
adding zeros is left out.

Frozen batch norms are written so. Engines fold them as well, but of numbers that several layers
share, and in half precision, not all do; and there the product of two rounded numbers would be
rounded once more.

Rules:

1. ``Mul``, ``Div``, ``Add`` and ``Sub`` of a constant with one number per channel, or one for all,
   and batch norms, behind a ``Conv`` or a ``ConvTranspose`` of one group are folded into its
   weights and bias, as far as they follow one another.
2. A bias of zeros is none.
3. An ``Add`` or ``Sub`` of zeros that leaves the shape as it is is removed, anywhere.

It must not fire where a result in between has another use or is an output, where weights or bias
are not stored numbers or belong to several layers, where the folded numbers would not be finite, or
where the weights are no fp32 or fp64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dims_of, rank_of

__all__ = ["FoldAffinePass"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_CHANNELS = 1
"""The axis of channels in what convolutions give."""

Numbers = NDArray[Any]


class FoldAffinePass(FusionPass):
    """Scales and shifts of channels → weights and biases."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        for node in list(model.graph):
            layer = _Convolution.of(node)
            if layer is not None:
                modified |= layer.fold()
            elif node.graph is not None:
                modified |= _remove_zeros(node)
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified)


@dataclass
class _Convolution:
    """A convolution whose weights are its own.

    Attributes:
        node: of the graph.
        axis: of the weights, the one of output channels.
        weights: as they are stored.
        bias: ``[channels]``; zeros where it has none.
    """

    node: ir.Node
    axis: int
    weights: ir.TensorProtocol
    bias: Numbers

    @classmethod
    def of(cls, node: ir.Node) -> _Convolution | None:
        """The convolution that a node is, if its numbers can be changed."""
        if not is_onnx(node, "Conv", "ConvTranspose"):
            return None
        axis = 0 if node.op_type == "Conv" else 1
        if axis and node.attributes.get_int("group", 1) != 1:
            return None
        weights = _own(node.inputs[1])
        if weights is None or weights.dtype not in _FLOATS:
            return None
        channels = weights.shape.numpy()[axis]
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            return cls(node, axis, weights, np.zeros(channels))
        bias = _stored(given)
        return None if bias is None else cls(node, axis, weights, bias.numpy().astype(np.float64))

    def fold(self) -> bool:
        """Take in what follows; whether anything did."""
        channels = len(self.bias)
        scale, shift = np.ones(channels), self.bias
        chain: list[ir.Node] = []
        value = self.node.outputs[0]
        while (following := _only_user(value)) is not None:
            found = self._affine(following, value)
            if found is None:
                break
            factor, addend = found
            scale, shift = scale * factor, shift * factor + addend
            chain.append(following)
            value = following.outputs[0]
        has_bias = len(self.node.inputs) > 2 and self.node.inputs[2] is not None
        useless = has_bias and not shift.any()
        if not (chain or useless) or not self._finite(scale, shift):
            return False
        self._set(scale, shift)
        if chain:
            _shorten(self.node.outputs[0], chain)
        return True

    def _affine(self, node: ir.Node, value: ir.Value) -> tuple[Numbers, Numbers] | None:
        """What a node multiplies each channel of ``value`` by, and what it adds then."""
        if is_onnx(node, "BatchNormalization"):
            return _batch_norm(node, value)
        numbers = self._per_channel(node, value)
        if numbers is None:
            return None
        none, zero = np.ones(1), np.zeros(1)
        if node.op_type in ("Add", "Sub"):
            return none, numbers if node.op_type == "Add" else -numbers
        return numbers if node.op_type == "Mul" else 1 / numbers, zero

    def _per_channel(self, node: ir.Node, value: ir.Value) -> Numbers | None:
        """The constant that a node applies to each channel of ``value``, or to all."""
        other = _operand_beside(node, value)
        tensor = None if other is None else _stored(other)
        if tensor is None:
            return None
        rank, shape = len(self.weights.shape), tensor.shape.numpy()
        if len(shape) > rank:
            return None
        aligned = (1,) * (rank - len(shape)) + tuple(shape)
        sizes = {size for axis, size in enumerate(aligned) if axis != _CHANNELS}
        if sizes != {1} or aligned[_CHANNELS] not in (1, len(self.bias)):
            return None
        numbers = tensor.numpy().astype(np.float64).ravel()
        return None if node.op_type == "Div" and not numbers.all() else numbers

    def _finite(self, scale: Numbers, shift: Numbers) -> bool:
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return False
        largest = np.finfo(self.weights.dtype.numpy()).max
        highest = np.abs(self.weights.numpy()).max(initial=0) if (scale != 1).any() else 0
        return bool(max(np.abs(scale).max(initial=0), 1) * float(highest) < largest) and bool(
            np.abs(shift).max(initial=0) < largest
        )

    def _set(self, scale: Numbers, shift: Numbers) -> None:
        dtype = self.weights.dtype.numpy()
        if (scale != 1).any():
            rank = len(self.weights.shape)
            broadcast = scale.reshape([-1 if i == self.axis else 1 for i in range(rank)])
            stored = self.weights
            scaled = ir.LazyTensor(
                lambda: ir.tensor((stored.numpy() * broadcast).astype(dtype)),
                stored.dtype,
                ir.Shape(stored.shape.numpy()),
            )
            self.node.replace_input_with(1, self._initializer("weight", scaled))
        if shift.any():
            bias = self._initializer("bias", ir.tensor(shift.astype(dtype)))
            self.node.resize_inputs(3)
            self.node.replace_input_with(2, bias)
        else:
            self.node.resize_inputs(2)

    def _initializer(self, kind: str, tensor: ir.TensorProtocol) -> ir.Value:
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        name = f"{self.node.name or self.node.outputs[0].name}.folded_{kind}"
        while name in graph.initializers:
            name += "_"
        made = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        tensor.name = name
        graph.register_initializer(made)
        return made


def _batch_norm(node: ir.Node, value: ir.Value) -> tuple[Numbers, Numbers] | None:
    """Factor and addend of a batch norm over numbers that were counted in training."""
    if node.inputs[0] is not value or node.attributes.get_int("training_mode", 0) != 0:
        return None
    stored = [None if one is None else _stored(one) for one in node.inputs[1:5]]
    weight, bias, mean, variance = (
        None if one is None else one.numpy().astype(np.float64) for one in stored
    )
    if weight is None or bias is None or mean is None or variance is None:
        return None
    factor = weight / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, bias - mean * factor


def _operand_beside(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of arithmetic on ``value``; of a difference or quotient the second."""
    if is_onnx(node, "Mul", "Add"):
        first, second = node.inputs
        return second if first is value else first
    if is_onnx(node, "Sub", "Div") and node.inputs[0] is value:
        return node.inputs[1]
    return None


def _only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone takes a value, once."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    user = next(iter(uses))[0]
    return user if user.graph is not None and user.graph is _graph_of(value) else None


def _graph_of(value: ir.Value) -> object:
    producer = value.producer()
    return None if producer is None else producer.graph


def _shorten(result: ir.Value, chain: list[ir.Node]) -> None:
    """Put a convolution's result in the place of what the last node of a chain gave."""
    last = chain[-1].outputs[0]
    graph = chain[-1].graph
    assert isinstance(graph, ir.Graph)
    is_output, name = last.is_graph_output(), last.name
    ir.convenience.replace_all_uses_with(last, result, replace_graph_outputs=True)
    for node in reversed(chain):
        graph.remove(node, safe=True)
    if is_output:
        result.name = name


def _remove_zeros(node: ir.Node) -> bool:
    """Take a sum with zeros for what is added to; whether that is what the node is."""
    if not is_onnx(node, "Add", "Sub") or node.outputs[0].is_graph_output():
        return False
    dims = dims_of(node.outputs[0])
    for value in node.inputs:
        other = None if value is None else _operand_beside(node, value)
        if value is None or other is None or rank_of(value) is None or dims_of(value) != dims:
            continue
        tensor = _stored(other)
        if tensor is not None and None not in (dims or ()) and not tensor.numpy().any():
            node.outputs[0].replace_all_uses_with(value)
            return True
    return False


def _own(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Stored numbers that one node alone takes."""
    return None if value is None or len(value.uses()) != 1 else _stored(value)


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """Numbers that are stored in the graph."""
    return None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
