"""Bring a file's graph to an opset that the passes know.

Rules:

1. Older graphs are raised by ONNX's converter, its own weights left out, so that size doesn't
matter.
2. ``Softmax``, ``LogSoftmax`` and ``Hardmax`` of opset 12 and before normalise over all axes from
   ``axis`` on, as if flattened. Over the last axis that is what they mean since 13. Over more, they
   become a ``Flatten``, the operator, and a ``Reshape``. (The converter flattens wherever it
   doesn't know the rank, which no attention can be read through.)
3. Newer graphs are said to be of an older opset where their operators exist there and mean the
   same: opsets 24 to 26 mostly add types. ``Swish`` is written out; ``Attention`` loses its lengths
   of unpadded keys to a mask.

It must not lower a graph with an operator that the older opset lacks: its name is the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnx_ir.tape import Tape
from onnxscript.version_converter import convert_version

from crossfuse.errors import InputError

__all__ = ["NEWEST_OPSET", "lower_opset", "opset_of", "raise_opset"]

NEWEST_OPSET = 26
"""The newest opset that ONNX Runtime executes."""

_COERCED = {"Softmax", "LogSoftmax", "Hardmax"}
_COERCED_BEFORE = 13
_DEFAULT_AXIS = 1
_OLDEST_OF_PYTHON = 18
_HELD = "crossfuse.held"
_SMALL = 1000
_WEIGHTS_APART = 4


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators; 0 where the model names none."""
    return model.graph.opset_imports.get("") or model.graph.opset_imports.get("ai.onnx") or 0


def raise_opset(model: ir.Model, opset: int) -> tuple[ir.Model, bool]:
    """Raise in place.

    Raises:
        InputError: the graph can't be converted.
    """
    given = opset_of(model)
    if given >= opset:
        return model, False
    if given < _OLDEST_OF_PYTHON:
        coerced = given < _COERCED_BEFORE
        if coerced:
            _hold(model)
        _convert(model, opset)
        if coerced:
            _release(model)
    else:
        convert_version(model, opset)
    if opset_of(model) != opset:
        raise InputError("the graph can't be converted", got="opset "
            f"{opset_of(model)}", expected=f"opset {opset}",
                         do="Export it again at a newer opset")  # fmt: skip
    return model, True


def lower_opset(model: ir.Model, opset: int) -> tuple[ir.Model, bool]:
    """Lower in place, where the opset is newer.

    Raises:
        InputError: an operator that the older opset lacks.
    """
    given = opset_of(model)
    if given <= opset:
        return model, False
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain in ("", "ai.onnx"):
                _lower(graph, node)
    unknown = sorted(
        {n.op_type for n in _own_nodes(model) if not onnx.defs.has(n.op_type, opset, "")}
    )
    if unknown:
        raise InputError(
            f"the graph has operators of opset {given} that can't be taken in",
            got=", ".join(unknown),
            do=f"Export it again at opset {opset}",
        )
    model.graph.opset_imports.pop("ai.onnx", None)
    model.graph.opset_imports[""] = opset
    return model, True


def _own_nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx"))


def _hold(model: ir.Model) -> None:
    """Keep the converter's hands off softmaxes."""
    for node in _own_nodes(model):
        if node.op_type in _COERCED:
            node.domain = _HELD
    model.graph.opset_imports[_HELD] = 1


def _release(model: ir.Model) -> None:
    """Give softmaxes the meaning that they have today."""
    axes: dict[ir.Node, int] = {}
    for node in model.graph.all_nodes():
        if node.domain == _HELD:
            axes[node] = node.attributes.get_int("axis", _DEFAULT_AXIS) or 0
            node.domain = ""
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    model.graph.opset_imports.pop(_HELD, None)
    # Over which axis they run is nothing to the shapes.
    ShapeInferencePass(data_prop=True)(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node in axes:
                _uncoerce(graph, node, axes[node])


def _uncoerce(graph: ir.Graph, node: ir.Node, axis: int) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    rank = None if source.shape is None else len(source.shape)
    if axis == -1 or axis + 1 == rank:
        return
    tape = Tape()
    flat = tape.op("Flatten", [source], {"axis": axis})
    normal = tape.op(node.op_type, [flat], {"axis": -1}, name=node.name)
    shaped = tape.op("Reshape", [normal, tape.op("Shape", [source])])
    shaped.type, shaped.shape = out.type, out.shape
    for new in tape.nodes:
        new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, tape.nodes)
    name, out.name = out.name, None
    ir.convenience.replace_all_uses_with(out, shaped, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    shaped.name = name


def _convert(model: ir.Model, opset: int) -> None:
    """By ONNX's own converter, which loses weights over a limit of size, and metadata: both are
    kept here."""
    notes = {
        node.outputs[0].name: dict(node.metadata_props)
        for node in model.graph.all_nodes()
        if node.outputs
    }
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    stripped = model.clone()
    stripped.ir_version = max(stripped.ir_version, _WEIGHTS_APART)
    for name, value in list(stripped.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _SMALL:
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        value.const_value = None
        stripped.graph.initializers.pop(name)
        stripped.graph.inputs.append(value)
    try:
        converted = ir.from_proto(
            onnx.version_converter.convert_version(ir.to_proto(stripped), opset)
        )
    except Exception as error:  # the converter's own errors share no base but this
        text = " ".join(str(error).split())
        raise InputError(
            "ONNX's converter can't raise the graph: "
            f"{text if len(text) <= 200 else text[:199] + '…'}",
            got=f"opset {opset_of(model)}",
            expected=f"opset {opset}",
            do="Export it again at a newer opset",
        ) from error
    graph = converted.graph
    for value in list(graph.inputs):
        if value.name in weights:
            graph.inputs.remove(value)
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    for node in graph.all_nodes():
        if node.outputs:
            node.metadata_props.update(notes.get(node.outputs[0].name, {}))
    model.graph = graph


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    """Write out what opsets from 24 on add."""
    tape = Tape()
    if node.op_type == "Swish":
        (x,) = node.inputs
        alpha = node.attributes.get_float("alpha", 1.0)
        assert x is not None
        inner = (
            x
            if alpha == 1.0
            else tape.op("Mul", [x, tape.op("CastLike", [_constant(tape, np.float32(alpha)), x])])
        )
        result = tape.op("Mul", [x, tape.op("Sigmoid", [inner])])
    elif node.op_type == "Attention" and (_lengths(node) is not None or _windows(node)):
        result = _masked_attention(tape, node)
    else:
        return
    for new in tape.nodes:
        new.metadata_props.update(node.metadata_props)
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph.insert_before(node, tape.nodes)
    name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


def _lengths(node: ir.Node) -> ir.Value | None:
    return node.inputs[6] if len(node.inputs) > 6 else None


def _windows(node: ir.Node) -> dict[str, int]:
    """How far keys may lie to the left and to the right of a query, where that is limited."""
    sizes = {side: node.attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right")}
    return {side: size for side, size in sizes.items() if size is not None and size >= 0}


def _masked_attention(tape: Tape, node: ir.Node) -> ir.Value:
    """Lengths of keys, windows, and a causal limit that is aligned with the lengths, as a mask."""
    query, key, mask = (
        node.inputs[0],
        node.inputs[1],
        node.inputs[3] if len(node.inputs) > 3 else None,
    )
    lengths, windows = _lengths(node), _windows(node)
    past = node.inputs[4] if len(node.inputs) > 4 else None
    if past is not None:
        raise InputError(
            "the graph has an Attention node with a cache and windows, which can't be taken in",
            where=node.name,
        )
    assert query is not None
    assert key is not None
    rows = tape.op("Unsqueeze", [_places(tape, query), _constant(tape, np.array([1]))])
    keys = _places(tape, key)
    tests = []
    if lengths is not None:
        lengths = tape.op("Unsqueeze", [lengths, _constant(tape, np.array([1, 2, 3]))])
        tests.append(tape.op("Less", [keys, lengths]))
        rows = tape.op("Add", [rows, tape.op("Sub", [lengths, _length(tape, query)])])
    causal = bool(node.attributes.get_int("is_causal", 0))
    if causal and lengths is not None:
        tests.append(tape.op("LessOrEqual", [keys, rows]))
        causal = False
    if "left" in windows:
        first = tape.op("Sub", [rows, _constant(tape, np.int64(windows["left"]))])
        tests.append(tape.op("GreaterOrEqual", [keys, first]))
    if "right" in windows:
        last = tape.op("Add", [rows, _constant(tape, np.int64(windows["right"]))])
        tests.append(tape.op("LessOrEqual", [keys, last]))
    joined = tests[0]
    for test in tests[1:]:
        joined = tape.op("And", [joined, test])
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        joined = tape.op("And", [mask, joined])
    elif mask is not None:
        joined = tape.op(
            "Where",
            [joined, mask, tape.op("CastLike", [_constant(tape, np.float32(-np.inf)), mask])],
        )
    left_out = ("left_window_size", "right_window_size", "is_causal")
    attributes = {name: a.value for name, a in node.attributes.items() if name not in left_out}
    return tape.op(
        "Attention",
        [*node.inputs[:3], joined],
        {**attributes, "is_causal": int(causal)},
        name=node.name,
    )


def _length(tape: Tape, value: ir.Value) -> ir.Value:
    """Of queries or keys, a number."""
    axis = 1 if value.shape is not None and len(value.shape) == 3 else 2
    length: ir.Value = tape.op(
        "Squeeze", [tape.op("Shape", [value], {"start": axis, "end": axis + 1})]
    )
    return length


def _places(tape: Tape, value: ir.Value) -> ir.Value:
    bounds = [_constant(tape, np.int64(0)), _length(tape, value), _constant(tape, np.int64(1))]
    places: ir.Value = tape.op("Range", bounds)
    return places


def _constant(tape: Tape, value: np.ndarray | np.generic) -> ir.Value:
    made: ir.Value = tape.op("Constant", [], {"value": ir.tensor(np.asarray(value))})
    return made
