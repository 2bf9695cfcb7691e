"""From the fp32 graph to one that computes in fp16 or bf16, with islands that stay in fp32.

Every node either takes and gives half floats, or is an *island* (`islands` has the rules) and stays
as it was; casts stand where the two meet, one per value.

Constants beyond the half type's range are clamped to it, as ``torch.finfo(dtype).min`` is when the
eager model runs in that type; infinite ones stay infinite. Where clamped numbers would mean
something else, in the biases of attentions, they are brought into the range in fp32
(`wide_biases`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from crossfuse.errors import InputError
from crossfuse.graph.attention_node import attention_nodes
from crossfuse.targets.precision.islands import (
    IslandOptions,
    computes_floats,
    find_islands,
    node_key,
)
from crossfuse.targets.precision.wide_biases import narrow_biases

__all__ = ["HALF_TYPES", "HalfGraph", "cast_graph", "to_half"]

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision → ONNX type."""

_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: float.fromhex("0x1.fep127")}

_FP32_INPUTS = {"Resize": {1, 2, 3}, "Upsample": {1}}
"""Inputs that the operator's definition fixes to fp32."""


@dataclass(frozen=True)
class HalfGraph:
    """A graph in half precision, and which of its nodes stayed in fp32, with the reason."""

    model: ir.Model
    kept: Mapping[str, str]


def cast_graph(
    model: ir.Model,
    precision: str,
    *,
    keep: Mapping[str, str] | None = None,
    boundary: Iterable[str] = (),
    without_bf16: Collection[str] = (),
    bounded: Collection[str] = (),
    handed: Collection[str] = (),
) -> HalfGraph:
    """Cast a copy of an fp32 graph; weights are converted when they are written.

    Args:
        model: with ``FusedAttention`` nodes, or lowered.
        precision: ``fp16`` or ``bf16``.
        keep: names of nodes that stay in fp32 → why.
        boundary: names of fp32 inputs and outputs that become half floats too; the others keep
            their type.
        without_bf16: operators that the target has no bf16 kernel for; they stay in fp32.
        bounded: names of inputs that hold no numbers beyond the range of half floats.
        handed: names of outputs that are biases in another graph.

    Raises:
        InputError: another precision.
    """
    if precision not in HALF_TYPES:
        raise InputError(
            "no half precision of that name", got=repr(precision), expected=" or ".join(HALF_TYPES)
        )
    half, keep = model.clone(), keep or {}
    wide = {node for node in attention_nodes(half.graph) if node_key(node) in keep}
    biases = narrow_biases(half.graph, bounded=bounded, handed=handed, wide=wide)
    without_kernel = frozenset(without_bf16 if precision == "bf16" else ())
    known = dict.fromkeys(biases.emitted, "") | biases.own
    options = IslandOptions(keep, without_kernel, known)
    islands = find_islands(list(half.graph), options)
    kept = {node_key(node): why for node, why in islands.items() if node not in biases.emitted}
    _Caster(half.graph, HALF_TYPES[precision]).cast(islands, frozenset(boundary))
    return HalfGraph(half, kept)


@dataclass
class _Caster:
    """Rewrites a graph in place."""

    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        self.graph = graph
        self.half = half
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(self, islands: Mapping[ir.Node, str], boundary: Collection[str]) -> None:
        """Cast all but the islands; inputs and outputs keep their types unless named."""
        for value in self.graph.inputs:
            if value.name in boundary and value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(self.half)
        before = [value.dtype for value in self.graph.outputs]
        for node in list(self.graph):
            if node.op_type == "Constant" or not computes_floats(node):
                continue
            if node in islands:
                self._take(node, ir.DataType.FLOAT)
            else:
                self._take(node, self.half)
                self._give_half(node)
        for i, dtype in enumerate(before):
            value = self.graph.outputs[i]
            to_cast = value.name in boundary and dtype == ir.DataType.FLOAT
            requested = self.half if to_cast else dtype
            if value.dtype != requested and requested is not None:
                self.graph.outputs[i] = self._rename_output(value, requested)

    def _take(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Make a node's float inputs be of one type."""
        fixed = _FP32_INPUTS.get(node.op_type, set())
        for i, value in enumerate(node.inputs):
            requested = ir.DataType.FLOAT if i in fixed else dtype
            if value is None or value.dtype not in (ir.DataType.FLOAT, self.half):
                continue
            if value.dtype != requested:
                node.replace_input_with(i, self._as(value, requested))

    def _give_half(self, node: ir.Node) -> None:
        """Make a node's fp32 outputs half floats, and attributes that name their type, too."""
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self.half))
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            tensor = ir.tensor(np.zeros(1, np.float32)) if given is None else given.as_tensor()
            if tensor.dtype == ir.DataType.FLOAT:
                number = ir.tensor(to_half(tensor.numpy(), self.half))
                node.attributes["value"] = ir.AttrTensor("value", number)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(self.half)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type, made once."""
        if (value, dtype) in self.made:
            return self.made[value, dtype]
        tensor = _constant(value)
        if tensor is not None:
            made = self._constant_as(value, tensor, dtype)
        else:
            made = self._cast(value, dtype)
            self.made[made, value.dtype or dtype] = value
        self.made[value, dtype] = made
        return made

    def _constant_as(
        self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType
    ) -> ir.Value:
        dims = tensor.shape.numpy()
        name = f"{value.name}.{dtype.name.lower()}"
        made = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))
        made.const_value = ir.LazyTensor(
            lambda: ir.tensor(to_half(tensor.numpy(), dtype)), dtype, ir.Shape(dims), name=name
        )
        self.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = ir.node(
            "Cast",
            [value],
            attributes={"to": int(dtype)},
            name=f"{value.name}.to_{dtype.name.lower()}",
        )
        made = node.outputs[0]
        made.name = f"{value.name}.{dtype.name.lower()}"
        made.shape, made.type = value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            first = next(iter(self.graph), None)
            if first is None:
                self.graph.append(node)
            else:
                self.graph.insert_before(first, node)
        else:
            self.graph.insert_after(producer, node)
        return made

    def _rename_output(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """An output in the type that it had; it keeps its name, and the value behind it gets
        another."""
        name = value.name
        output = self._as(value, dtype)
        if output.is_graph_output() or _constant(output) is not None:
            output = self._cast(value, dtype)
        value.name, output.name = f"{name}.computed", name
        return output


def to_half(array: np.ndarray[Any, Any], dtype: ir.DataType) -> np.ndarray[Any, Any]:
    """Round to another float type; finite numbers beyond its range become its largest."""
    target = np.dtype(ml_dtypes.bfloat16) if dtype == ir.DataType.BFLOAT16 else dtype.numpy()
    if dtype == ir.DataType.FLOAT:
        return array.astype(target)
    limit = _LARGEST[dtype]
    clamped = np.where(np.isinf(array), array, np.clip(array, -limit, limit))
    return np.asarray(clamped, dtype=target)


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """A constant's or initializer's tensor."""
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    return (
        ir.convenience.get_const_tensor(value)
        if producer is not None and producer.op_type == "Constant"
        else None
    )
