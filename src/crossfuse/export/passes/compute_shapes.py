"""Follow sizes through the arithmetic that files compute their shapes with.

ONNX's shape inference gives up where a shape is computed: heads merged into a batch, a chunk's
ends, a table cut to a length. Rules:

1. Small integer tensors are followed as lists of sizes, from ``Shape`` through arithmetic, slices
   and concatenations; a size is a number, a product of dimensions, or a text that stands for what
   it was computed from.
2. Where all sizes are numbers, the tensor becomes a constant; so does other small arithmetic on
   constants (a scale).
3. An ``If`` whose condition is constant gives way to the branch that it takes.
4. Operators with a shape rule (`shape_rules`) get the shapes that follow; others are inferred
   again, by ONNX's rules, where something about their result is unknown.
5. A table of the file that is cut to a computed length, from its beginning, has that length.

It must not touch shapes that are known, quantizers, or what depends on more than sizes and
constants.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from crossfuse.export.matching.axes import Size
from crossfuse.export.matching.size_arithmetic import Sizes, folded, follow_sizes
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.export.passes.shape_rules import SHAPE_RULES
from crossfuse.graph.builder import GraphBuilder

__all__ = ["ComputeShapesPass"]

_SMALL = 64
_UNKNOWN = "unk__"


class ComputeShapesPass(FusionPass):
    """Shapes that follow from the arithmetic of sizes."""

    def call(self, model: ir.Model) -> FusionResult:
        """Infer in place; what was inferred without changing a node is no change."""
        ShapeInferencePass(data_prop=True)(model)
        given = {
            str(d.value)
            for v in model.graph.inputs
            for d in v.shape or ()
            if isinstance(d, ir.SymbolicDim)
        }
        work = _Work(model, given)
        for node in list(model.graph):
            work.visit(node)
        ShapeInferencePass(data_prop=True)(model)
        return FusionResult(model, work.modified)


class _Work:
    def __init__(self, model: ir.Model, given: set[str]) -> None:
        self.model, self.given = model, given
        self.sizes: dict[ir.Value, Sizes] = {}
        self.arrays: dict[ir.Value, NDArray[np.generic]] = {}
        self.modified = False

    def visit(self, node: ir.Node) -> None:
        for value in node.outputs:
            self._forget(value)
        if node.domain not in ("", "ai.onnx"):
            return
        if node.op_type == "If" and self._chosen(node):
            return
        self._infer(node)
        if len(node.outputs) != 1 or any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            return
        out = node.outputs[0]
        rule = SHAPE_RULES.get(node.op_type)
        shape = None if rule is None else rule(node, self)
        if shape is not None and (out.shape is None or any(_unknown(d) for d in out.shape)):
            known = (
                out.shape
                if out.shape is not None and len(out.shape) == len(shape)
                else [None] * len(shape)
            )
            out.shape = ir.Shape(
                [
                    s.dim if _unknown(d) and s is not None else d
                    for d, s in zip(known, shape, strict=True)
                ]
            )
        self._follow(node, out)

    def _chosen(self, node: ir.Node) -> bool:
        """Put the branch of a constant condition in the place of an ``If``."""
        condition, graph = self.array(node.inputs[0]), node.graph
        if condition is None or condition.size != 1 or not isinstance(graph, ir.Graph):
            return False
        branch = node.attributes[
            "then_branch" if condition.reshape(-1)[0] else "else_branch"
        ].as_graph()
        results, nodes = list(branch.outputs), list(branch)
        if branch.initializers or any(value.producer() not in nodes for value in results):
            return False
        branch.outputs.clear()
        branch.remove(nodes)
        graph.insert_before(node, nodes)
        for old, result in zip(node.outputs, results, strict=True):
            name, old.name = old.name, None
            ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
            result.name = name
        graph.remove(node, safe=True)
        self.modified = True
        for inner in nodes:
            self.visit(inner)
        return True

    def of(self, value: ir.Value | None) -> Sizes | None:
        """A value's elements, where it is a small integer tensor."""
        if value is None:
            return None
        if value in self.sizes:
            return self.sizes[value]
        array = self.array(value)
        if array is None or array.ndim > 1 or array.dtype.kind not in "iu":
            return None
        return Sizes(tuple(Size(int(n)) for n in array.reshape(-1)), array.ndim == 0)

    def array(self, value: ir.Value | None) -> NDArray[np.generic] | None:
        """A value's content, where it is a small constant."""
        if value is None:
            return None
        if value not in self.arrays:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or tensor.size > _SMALL or tensor.dtype.is_string():
                return None
            self.arrays[value] = tensor.numpy()
        return self.arrays[value]

    def dims(self, value: ir.Value | None) -> list[Size | None] | None:
        """A value's shape in sizes; None for what is unknown."""
        if value is None or value.shape is None:
            return None
        return [
            None if _unknown(d) else Size.parse(d if isinstance(d, int) else str(d.value))
            for d in value.shape
        ]

    def _forget(self, value: ir.Value) -> None:
        """Names that ONNX's inference made up for unknown sizes are no knowledge."""
        if value.shape is not None and not value.is_graph_output():
            made_up = [
                not isinstance(d, int)
                and str(d.value).startswith(_UNKNOWN)
                and str(d.value) not in self.given
                for d in value.shape
            ]
            if any(made_up):
                value.shape = ir.Shape(
                    [None if new else d for d, new in zip(value.shape, made_up, strict=True)]
                )

    def _infer(self, node: ir.Node) -> None:
        """By ONNX's own rules, where something is unknown."""
        if all(
            v.shape is not None and v.dtype is not None and not any(_unknown(d) for d in v.shape)
            for v in node.outputs
        ):
            return
        version = self.model.graph.opset_imports.get("", 1)
        inputs = [v for v in node.inputs if v is not None]
        if any(v.type is None for v in inputs) or any(
            a.type == ir.AttributeType.GRAPH for a in node.attributes.values()
        ):
            return
        if any(not o.name for o in node.outputs) or any(not v.name for v in inputs):
            return
        data = {
            v.name or "": ir.to_proto(ir.tensor(a, name=v.name))
            for v in inputs
            if (a := self.array(v)) is not None
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, version, "")
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                ir.to_proto(node),
                {v.name or "": _type_proto(v) for v in inputs},
                data,
                opset_imports=[onnx.helper.make_opsetid("", version)],
            )
        except Exception:  # noqa: BLE001 -- ONNX's inference raises its own and others; nothing is known then
            return
        for value in node.outputs:
            proto = found.get(value.name or "")
            if proto is None or not proto.HasField("tensor_type"):
                continue
            if value.type is None and proto.tensor_type.elem_type:
                value.type = ir.TensorType(ir.DataType(proto.tensor_type.elem_type))
            if not proto.tensor_type.HasField("shape"):
                continue
            dims = [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in proto.tensor_type.shape.dim
            ]
            known = (
                list(value.shape)
                if value.shape is not None and len(value.shape) == len(dims)
                else [None] * len(dims)
            )
            value.shape = ir.Shape(
                [new if _unknown(old) else old for old, new in zip(known, dims, strict=True)]
            )

    def _follow(self, node: ir.Node, out: ir.Value) -> None:
        """Note what an operator makes of sizes and small constants."""
        sizes = follow_sizes(node, self)
        if sizes is not None:
            numbers = sizes.numbers
            if numbers is None:
                self.sizes[out] = sizes
                return
            array = np.asarray(numbers, out.dtype.numpy() if out.dtype is not None else np.int64)
            self._fix(node, out, array.reshape(()) if sizes.scalar else array)
            return
        arrays = [self.array(v) for v in node.inputs]
        if arrays and all(a is not None for a in arrays):
            result = folded(node, [a for a in arrays if a is not None])
            if result is not None and result.size <= _SMALL:
                self._fix(node, out, result)

    def _fix(self, node: ir.Node, out: ir.Value, array: NDArray[np.generic]) -> None:
        self.arrays[out] = array
        out.shape = ir.Shape(array.shape)
        if node.op_type == "Constant" or out.is_graph_output():
            return
        build = GraphBuilder()
        made = build.constant(array, array.dtype)
        build.insert_before(node)
        out.replace_all_uses_with(made)
        self.arrays[made] = array
        self.modified = True


def _unknown(dim: int | ir.SymbolicDim | str | None) -> bool:
    return dim is None or (isinstance(dim, ir.SymbolicDim) and dim.value is None)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    assert value.dtype is not None
    shape = (
        None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    )
    return onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
