"""From the fp32 graph to one that computes in fp16 or bf16, with islands that stay in fp32.

Every node either takes and gives half floats, or is an *island* and stays as it was; casts stand
where the two meet, one per value. Islands are, whatever the precision, the reductions and
transcendental functions that norms and softmaxes are written with, together with the arithmetic
that takes their results directly (an epsilon of 1e-6 is no half float), arithmetic whose results
become integers (buckets of positions), a discrete choice before any attention and what decides it
(a quantizer's codes, where a rounding error is another code), and what the caller asks to keep.
Operators that compute in fp32 inside (``LayerNormalization``, attention) take half floats.

Constants beyond the half type's range are clamped to it, as ``torch.finfo(dtype).min`` is when the
eager model runs in that type; infinite ones stay infinite. Where clamped numbers would mean
something else, in the biases of attentions, they are brought into the range in fp32
(`wide_biases`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from crossfuse.errors import InputError
from crossfuse.graph.metadata import attention_nodes, clone
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.wide_biases import Islands, narrow_biases

__all__ = ["HALF_TYPES", "Cast", "cast_graph", "node_key"]

_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: float.fromhex("0x1.fep127")}

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision → ONNX type."""

_SENSITIVE = {
    "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceSumSquare",
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "CumSum", "Sin", "Cos", "Range", "RandomNormalLike",
    "RandomUniformLike", "InstanceNormalization", "BatchNormalization", "GridSample", "Einsum", "TopK",
}  # fmt: skip
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Max", "Clip", "Neg"}
_DOMAINS = ("", DOMAIN, "com.microsoft")
_CHOICES = {"ArgMax", "ArgMin"}
_INDICES = "its results become integers"

_FP32_INPUTS = {"Resize": {1, 2, 3}, "Upsample": {1}}
"""Inputs that the operator's definition fixes to fp32."""


@dataclass(frozen=True)
class Cast:
    """A graph in half precision, and which of its nodes stayed in fp32, with the reason."""

    model: ir.Model
    kept: Mapping[str, str]


def node_key(node: ir.Node) -> str:
    """How a node is named in lists of islands: its name in the fused graph."""
    return node.name or node.outputs[0].name or ""


def cast_graph(
    model: ir.Model,
    precision: str,
    *,
    keep: Mapping[str, str] | None = None,
    boundary: Iterable[str] = (),
    without_bf16: Collection[str] = (),
    bounded: Collection[str] = (),
    handed: Collection[str] = (),
) -> Cast:
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
    model = clone(model)
    missing = without_bf16 if precision == "bf16" else ()
    keep = dict(keep or {})
    wide = {node for node in attention_nodes(model.graph) if node_key(node) in keep}
    biases = narrow_biases(model.graph, bounded=bounded, handed=handed, wide=wide)
    half = HALF_TYPES[precision]
    caster = _Caster(model.graph, half, keep, biases, frozenset(boundary), frozenset(missing))
    caster.run()
    return Cast(model, caster.kept)


@dataclass
class _Caster:
    graph: ir.Graph
    half: ir.DataType
    keep: Mapping[str, str]
    biases: Islands
    boundary: frozenset[str]
    missing: frozenset[str]
    kept: dict[str, str] = field(default_factory=dict)
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        nodes = list(self.graph)
        islands = self._islands(nodes)
        self.kept = {
            node_key(node): why for node, why in islands.items() if node not in self.biases.emitted
        }
        for value in self.graph.inputs:
            if value.name in self.boundary and value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(self.half)
        ends = {value: value.dtype for value in self.graph.outputs}
        for node in nodes:
            if node.op_type == "Constant" or not _computes_floats(node):
                continue
            if node in islands:
                self._take(node, ir.DataType.FLOAT)
            else:
                self._take(node, self.half)
                self._give_half(node)
        for i, value in enumerate(self.graph.outputs):
            wanted = (
                self.half
                if value.name in self.boundary and ends[value] == ir.DataType.FLOAT
                else ends[value]
            )
            if value.dtype != wanted and wanted is not None:
                self.graph.outputs[i] = self._rename_end(value, wanted)

    def _islands(self, nodes: list[ir.Node]) -> dict[ir.Node, str]:
        found = dict.fromkeys(self.biases.emitted, "") | self.biases.own
        for node in nodes:
            if node in found or node.op_type == "Constant" or not _computes_floats(node):
                continue
            name = node_key(node)
            if name in self.keep:
                found[node] = self.keep[name]
            elif any(
                attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for attribute in node.attributes.values()
            ):
                found[node] = "it has a body of its own"
            elif node.domain not in _DOMAINS:
                found[node] = (
                    f"the operator {node.domain}.{node.op_type} is not known to take half floats"
                )
            elif node.op_type in self.missing and node.domain == "":
                found[node] = f"the target has no bf16 kernel for {node.op_type}"
            elif node.op_type in _SENSITIVE and _gives_floats(node):
                found[node] = f"{node.op_type} loses too much in half precision"
        for choice in nodes:
            if choice.op_type in _CHOICES and choice.domain == "":
                for node in _deciding(choice):
                    found.setdefault(node, f"an {choice.op_type} inside the model chooses by it")
        for node in reversed(nodes):
            if node not in found and _makes_indices(node, found):
                found[node] = _INDICES
        for node in nodes:
            if node in found or node.op_type not in _ARITHMETIC:
                continue
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if (
                    value is None
                    or producer is None
                    or producer not in found
                    or value.dtype != ir.DataType.FLOAT
                ):
                    continue
                if producer.op_type in _SENSITIVE:
                    found[node] = f"it takes the result of a {producer.op_type} in fp32"
                    break
        return found

    def _take(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Make a node's float inputs be of one type."""
        fixed = _FP32_INPUTS.get(node.op_type, set())
        for i, value in enumerate(node.inputs):
            wanted = ir.DataType.FLOAT if i in fixed else dtype
            if (
                value is None
                or value.dtype not in (ir.DataType.FLOAT, self.half)
                or value.dtype == wanted
            ):
                continue
            node.replace_input_with(i, self._as(value, wanted))

    def _give_half(self, node: ir.Node) -> None:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self.half))
        if node.op_type == "ConstantOfShape":
            tensor = (
                node.attributes["value"].as_tensor()
                if "value" in node.attributes
                else ir.tensor(np.zeros(1, np.float32))
            )
            if tensor.dtype == ir.DataType.FLOAT:
                node.attributes["value"] = ir.AttrTensor(
                    "value", ir.tensor(to_half(tensor.numpy(), self.half))
                )
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(self.half)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type, made once."""
        if (value, dtype) in self.made:
            return self.made[value, dtype]
        tensor = _constant(value)
        made = (
            self._constant_as(value, tensor, dtype)
            if tensor is not None
            else self._cast(value, dtype)
        )
        self.made[value, dtype] = made
        if tensor is None:
            self.made[made, value.dtype or dtype] = value
        return made

    def _constant_as(
        self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType
    ) -> ir.Value:
        made = ir.Value(
            name=f"{value.name}.{dtype.name.lower()}",
            type=ir.TensorType(dtype),
            shape=ir.Shape(tensor.shape.numpy()),
        )
        made.const_value = ir.LazyTensor(
            lambda: ir.tensor(to_half(tensor.numpy(), dtype)),
            dtype,
            ir.Shape(tensor.shape.numpy()),
            name=made.name,
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
        made.name, made.shape, made.type = (
            f"{value.name}.{dtype.name.lower()}",
            value.shape,
            ir.TensorType(dtype),
        )
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

    def _rename_end(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """An output in the type that it had; it keeps its name, the value behind it gets
        another."""
        name = value.name
        end = self._as(value, dtype)
        if end.is_graph_output() or _constant(end) is not None:
            end = self._cast(value, dtype)
        value.name, end.name = f"{name}.computed", name
        return end


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


def _deciding(choice: ir.Node) -> set[ir.Node]:
    """A discrete choice, and the nodes whose floats it depends on; none where an attention is
    among them."""
    seen = {choice}
    todo = [choice]
    while todo:
        node = todo.pop()
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in seen or producer.op_type == "Constant":
                continue
            if producer.domain == DOMAIN:
                return set()
            seen.add(producer)
            todo.append(producer)
    return {node for node in seen if _computes_floats(node)}


def _makes_indices(node: ir.Node, found: Mapping[ir.Node, str]) -> bool:
    """Its floats all end as integers, such as buckets of positions."""
    if (
        node.op_type == "Constant"
        or not _gives_floats(node)
        or any(o.is_graph_output() for o in node.outputs)
    ):
        return False
    users = [user for output in node.outputs for user, _ in output.uses()]
    return bool(users) and all(_to_integers(user) or found.get(user) == _INDICES for user in users)


def _to_integers(node: ir.Node) -> bool:
    return node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()).is_integer()


def _gives_floats(node: ir.Node) -> bool:
    return any(output.dtype == ir.DataType.FLOAT for output in node.outputs)


def _computes_floats(node: ir.Node) -> bool:
    """Floats of the graph's own type go in or out; what only moves integers is left alone."""
    return _gives_floats(node) or any(
        value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs
    )
