"""Raise a file's graph to an opset that the passes know.

Rules:

1. Graphs are raised by ONNX's converter, their own weights left out, so that size doesn't matter;
   from opset 18 on by onnxscript's, which works in place.
2. ``Softmax``, ``LogSoftmax`` and ``Hardmax`` of opset 12 and before normalise over all axes from
   ``axis`` on, as if flattened. Over the last axis that is what they mean since 13. Over more, they
   become a ``Flatten``, the operator, and a ``Reshape``. (The converter flattens wherever it
   doesn't know the rank, which no attention can be read through.)

It must not touch a graph of that opset or a newer one.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.version_converter import convert_version

from crossfuse.core.foreign import brief
from crossfuse.errors import InputError
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import rank_of

__all__ = ["RaiseOpsetPass", "opset_of"]

_COERCED = {"Softmax", "LogSoftmax", "Hardmax"}
_COERCED_BEFORE = 13
_DEFAULT_AXIS = 1
_OLDEST_OF_PYTHON = 18
_SET_ASIDE = "crossfuse.set_aside"
_SMALL = 1000
_WEIGHTS_APART = 4


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators; 0 where the model names none."""
    return model.graph.opset_imports.get("") or model.graph.opset_imports.get("ai.onnx") or 0


class RaiseOpsetPass(FusionPass):
    """The graph at a newer opset.

    Args:
        opset: that it is raised to.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def call(self, model: ir.Model) -> FusionResult:
        """Raise in place.

        Raises:
            InputError: the graph can't be converted.
        """
        given = opset_of(model)
        if given >= self.opset:
            return FusionResult(model, False)
        if given < _OLDEST_OF_PYTHON:
            coerced = given < _COERCED_BEFORE
            if coerced:
                _set_aside(model)
            _convert(model, self.opset)
            if coerced:
                _take_back(model)
        else:
            convert_version(model, self.opset)
        if opset_of(model) != self.opset:
            raise InputError(
                "the graph can't be converted",
                got=f"opset {opset_of(model)}",
                expected=f"opset {self.opset}",
                do="Export it again at a newer opset",
            )
        return FusionResult(model, True)


def _own_nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if is_onnx(node))


def _set_aside(model: ir.Model) -> None:
    """Keep the converter's hands off softmaxes."""
    for node in _own_nodes(model):
        if node.op_type in _COERCED:
            node.domain = _SET_ASIDE
    model.graph.opset_imports[_SET_ASIDE] = 1


def _take_back(model: ir.Model) -> None:
    """Give softmaxes the meaning that they have today."""
    axes: dict[ir.Node, int] = {}
    for node in model.graph.all_nodes():
        if node.domain == _SET_ASIDE:
            axes[node] = node.attributes.get_int("axis", _DEFAULT_AXIS) or 0
            node.domain = ""
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    model.graph.opset_imports.pop(_SET_ASIDE, None)
    # Over which axis they run is nothing to the shapes.
    ShapeInferencePass(data_prop=True)(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node in axes:
                _uncoerce(node, axes[node])


def _uncoerce(node: ir.Node, axis: int) -> None:
    source = node.inputs[0]
    assert source is not None
    if axis == -1 or axis + 1 == rank_of(source):
        return
    build = GraphBuilder()
    flat = build.op("Flatten", source, axis=axis)
    normal = build.op(node.op_type, flat, axis=-1)
    made = normal.producer()
    assert made is not None
    made.name = node.name
    build.replace(node, build.op("Reshape", normal, build.op("Shape", source)))


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
        raise InputError(
            f"ONNX's converter can't raise the graph: {brief(error, 200)}",
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
