"""The fp32 graph that rounds as a half-precision graph does, so that its numbers can be had on any
CPU.

Half weights are widened; each result that the half graph would hold in fp16 or bf16 is rounded to
it and back. Products are summed in fp32 and rounded once, as tensor cores do; operators that only
move or select numbers need no rounding, nor do codes that a product alone is given. What overflows
there overflows here.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx

__all__ = ["half_inputs", "simulate", "write_out_fp8"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_EXACT = frozenset(
    {
        *("Abs", "Concat", "Constant", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity"),
        *("GatherElements", "GatherND", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax"),
        *("ReduceMin", "Relu", "Reshape", "ScatterElements", "ScatterND", "Slice", "Squeeze"),
        *("SpaceToDepth", "Split", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators that only move or select numbers: their results need no rounding."""

_PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Which engines compute on codes, so that these are never dequantised one by one."""


def simulate(model: ir.Model, *, boundary: Iterable[str] = ()) -> ir.Model:
    """A copy without half floats inside.

    Args:
        model: with half floats; fused or lowered.
        boundary: half inputs and outputs that stay so; the others become fp32, holding rounded
            numbers.
    """
    model = model.clone()
    graph = model.graph
    stay = frozenset(boundary)
    ends = [value.dtype for value in graph.outputs]
    for node in list(graph):
        _unconstant(graph, node)
    starts = [v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype in _HALF]
    nodes = list(graph)
    half = {
        output: output.dtype for node in nodes for output in node.outputs if output.dtype in _HALF
    }
    for node in nodes:
        _retype(node)
    for value in starts:
        if value.is_graph_input() and value.name not in stay:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        else:
            _convert_uses(graph, value, [ir.DataType.FLOAT], nodes)
    for value, dtype in half.items():
        value.type = ir.TensorType(ir.DataType.FLOAT)
        producer = value.producer()
        assert producer is not None
        if dtype is not None and not _exact(producer):
            _convert_uses(graph, value, [dtype, ir.DataType.FLOAT], nodes)
    for i, value in enumerate(graph.outputs):
        if value.name in stay and ends[i] in _HALF and value.dtype not in _HALF:
            graph.outputs[i] = _end(graph, value, ends[i])
    write_out_fp8(graph)
    return model


def write_out_fp8(graph: ir.Graph) -> None:
    """Write numbers of fp8 that are dequantised as a cast and a product: ONNX Runtime's optimiser
    joins the operator to an integer product, and then refuses that.

    Args:
        graph: in fp32 where it computes; it is changed.
    """
    for node in list(graph):
        codes = node.inputs[0] if is_onnx(node, "DequantizeLinear") else None
        if codes is not None and codes.dtype == ir.DataType.FLOAT8E4M3FN:
            build = GraphBuilder()
            wide = build.op("Cast", codes, to=int(ir.DataType.FLOAT))
            build.replace(node, build.op("Mul", wide, node.inputs[1]))


def _exact(node: ir.Node) -> bool:
    """Whether a node's results are what the half graph has, unrounded."""
    if not is_onnx(node, "DequantizeLinear"):
        return node.op_type in _EXACT
    return all(_on_codes(user) for user, _ in node.outputs[0].uses())


def _on_codes(node: ir.Node) -> bool:
    """Whether both operands of a product are codes, dequantised."""
    sources = [None if value is None else value.producer() for value in node.inputs[:2]]
    return is_onnx(node, *_PRODUCTS) and all(
        one is not None and is_onnx(one, "DequantizeLinear") for one in sources
    )


def half_inputs(model: ir.Model) -> tuple[str, ...]:
    """Names of the graph's inputs that are half floats."""
    return tuple(value.name or "" for value in model.graph.inputs if value.dtype in _HALF)


def _unconstant(graph: ir.Graph, node: ir.Node) -> None:
    """Half constants become initializers, which are widened like weights."""
    if node.op_type != "Constant" or node.outputs[0].dtype not in _HALF:
        return
    old = node.outputs[0]
    tensor = ir.convenience.get_const_tensor(old)
    assert tensor is not None
    new = ir.Value(name=f"{old.name}.value", type=old.type, shape=old.shape, const_value=tensor)
    graph.register_initializer(new)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _retype(node: ir.Node) -> None:
    """Attributes that name the half type."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() in _HALF:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype in _HALF:
            node.attributes["value"] = ir.AttrTensor(
                "value", ir.tensor(tensor.numpy().astype("float32"))
            )


def _convert_uses(
    graph: ir.Graph, value: ir.Value, types: list[ir.DataType], nodes: list[ir.Node]
) -> None:
    """Put casts between a value and its uses."""
    uses = list(value.uses())
    ends = [i for i, output in enumerate(graph.outputs) if output is value]
    last, before = value, value.producer()
    for dtype in types:
        cast = ir.node("Cast", [last], attributes={"to": int(dtype)})
        made = cast.outputs[0]
        made.name, made.shape, made.type = (
            f"{last.name}.as_{dtype.name.lower()}",
            value.shape,
            ir.TensorType(dtype),
        )
        if before is None:
            graph.insert_before(nodes[0], cast)
        else:
            graph.insert_after(before, cast)
        last, before = made, cast
    for node, index in uses:
        node.replace_input_with(index, last)
    if ends:
        name = value.name
        value.name, last.name = f"{name}.computed", name
        for i in ends:
            graph.outputs[i] = last


def _end(graph: ir.Graph, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    assert dtype is not None
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
    made, name = cast.outputs[0], value.name
    value.name, made.name = f"{name}.widened", name
    made.shape, made.type = value.shape, ir.TensorType(dtype)
    graph.append(cast)
    return made
