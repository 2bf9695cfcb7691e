"""Reading an ONNX file: checked, in float32, in operators and at an opset that the passes know,
with its shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from crossfuse.core.text import brief
from crossfuse.errors import InputError
from crossfuse.export.capture.to_onnx import IR_VERSION, OPSET
from crossfuse.export.passes.compute_shapes import ComputeShapesPass
from crossfuse.export.passes.lower_opset import NEWEST_OPSET, LowerOpsetPass
from crossfuse.export.passes.note_modules import NoteModulesPass
from crossfuse.export.passes.raise_opset import RaiseOpsetPass, opset_of
from crossfuse.export.passes.retype import SINGLE, RetypePass, has_types
from crossfuse.export.sources.onnx_file.microsoft.expand import (
    ATTENTION_OPSET,
    expand_microsoft,
    has_microsoft,
    needs_attention_opset,
    own_strays,
)

__all__ = ["NEWEST_IR", "load_onnx", "read_onnx", "short"]

NEWEST_FUSED = 23
"""The newest opset of a graph whose attentions are fused; newer ones are lowered to it."""

NEWEST_IR = 13
"""The newest IR version that ONNX Runtime reads."""


def load_onnx(path: Path, axes: Mapping[str, Mapping[int, str]] | None = None) -> ir.Model:
    """Read a graph in float32, its functions inlined, in operators and at an opset that the passes
    know, with inferred shapes.

    Args:
        path: the file.
        axes: names of dynamic dimensions by input and axis; where omitted, those that the file
            gives, or made up ones.

    Raises:
        InputError: not an ONNX file, weights outside its folder, or an opset or operators that
            can't be taken in.
    """
    model = read_onnx(path)
    InlinePass()(model)
    opset = opset_of(model)
    if opset > NEWEST_OPSET or opset < 1:
        raise InputError(
            "the opset can't be read",
            where=path,
            got=opset,
            expected=f"1 to {NEWEST_OPSET}",
            do=f"Export it at opset {NEWEST_FUSED} or an older one",
        )
    if has_types(model, SINGLE):
        _widen(model)
    _name_inputs(model, axes or {})
    try:
        NoteModulesPass()(model)
        microsoft = has_microsoft(model)
        newer = microsoft and needs_attention_opset(model)
        RaiseOpsetPass(ATTENTION_OPSET if newer else OPSET)(model)
        if opset > NEWEST_FUSED:
            ShapeInferencePass(data_prop=True)(model)
            LowerOpsetPass(NEWEST_FUSED)(model)
        if microsoft:
            expand_microsoft(model)
    except InputError as error:
        raise InputError(
            error.what, where=path, got=error.got, expected=error.expected, do=error.do
        ) from error
    LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    ComputeShapesPass()(model)
    RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    NoteModulesPass()(model)
    model.ir_version = min(max(model.ir_version, IR_VERSION), NEWEST_IR)
    return model


def read_onnx(path: Path) -> ir.Model:
    """The file as it is.

    Raises:
        InputError: not an ONNX file, or weights outside its folder.
    """
    if not path.is_file():
        raise InputError("the ONNX file doesn't exist", where=path)
    try:
        model = ir.load(path)
        # ONNX Runtime reads nodes in any order, and its own tools write them so.
        moved = TopologicalSortPass()(model).modified
        if own_strays(model, opset_of(model)) or moved:
            onnx.checker.check_model(_without_weights(model))
        else:
            onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's and onnx's errors share no base but this
        raise InputError(f"the ONNX file can't be read: {short(error)}", where=path) from error
    for value in list(model.graph.inputs):
        # Before IR version 4 every weight was listed as an input.
        if value.name in model.graph.initializers:
            model.graph.inputs.remove(value)
    folder = path.parent.resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).resolve().is_relative_to(
            folder
        ):
            raise InputError(
                "the graph's weights lie outside its folder", where=path, got=tensor.location
            )
    return model


def _name_inputs(model: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give every dynamic dimension of an input a plain name."""
    renamed: dict[str, str] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        shape: list[int | str] = []
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                shape.append(size)
                continue
            given = str(size.value) if size.value is not None else ""
            plain = given if given.isidentifier() else re.sub(r"\W", "_", f"{name}_{axis}")
            shape.append(axes.get(name, {}).get(axis, plain))
            if given and given != shape[-1]:
                renamed[given] = str(shape[-1])
        if value.shape is not None:
            value.shape = ir.Shape(shape)
    if not renamed:
        return
    for other in [
        *model.graph.outputs,
        *(v for node in model.graph.all_nodes() for v in node.outputs),
    ]:
        if other.shape is not None and any(
            not isinstance(d, int) and str(d.value) in renamed for d in other.shape
        ):
            other.shape = ir.Shape(
                [
                    d if isinstance(d, int) else renamed.get(str(d.value), d.value)
                    for d in other.shape
                ]
            )


def _widen(model: ir.Model) -> None:
    """Half precision in float32.

    Inputs of float16 stay what they are, and are cast. (NumPy has no bfloat16.)
    """
    half = [value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT16]
    RetypePass(SINGLE)(model)
    first = next(iter(model.graph), None)
    for value in half:
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = (
            f"{value.name}_in_float32",
            value.shape,
            ir.TensorType(ir.DataType.FLOAT),
        )
        value.replace_all_uses_with(wide)
        cast.replace_input_with(0, value)
        if first is not None:
            model.graph.insert_before(first, [cast])


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """For the checker: what has a weight's size is an input."""
    bare = model.clone()
    for name, value in list(bare.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.type, value.shape, value.const_value = (
            ir.TensorType(tensor.dtype),
            ir.Shape(tensor.shape.numpy()),
            None,
        )
        bare.graph.initializers.pop(name)
        if value not in bare.graph.inputs:
            bare.graph.inputs.append(value)
    return ir.to_proto(bare)


def short(error: BaseException) -> str:
    """An error in one line."""
    return brief(error, 300)
