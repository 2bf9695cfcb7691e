"""An exported program → ``onnx_ir.Model``: names, dimensions and module paths kept,
``fused_attention`` as one node."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

import crossfuse.ops.torch_op  # noqa: F401 -- registers the operator that the table translates
from crossfuse.core.dimensions import multiple_of, rename
from crossfuse.core.text import brief
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.computed_weights import compute_weights, has_translation
from crossfuse.export.capture.decompose import decompose_locally
from crossfuse.export.capture.exporter_shortcuts import exporter_shortcuts
from crossfuse.export.capture.operators import stable_translations
from crossfuse.export.capture.simplify import simplify
from crossfuse.export.capture.trace import quiet_exporter
from crossfuse.export.capture.untranslated import untranslated
from crossfuse.ops.onnx_schema import translation_table
from crossfuse.spec.model_spec import ModelSpec, Tracing

__all__ = ["IR_VERSION", "OPSET", "OtherLengthsError", "name_dimensions", "program_to_onnx"]

OPSET = 20
"""The opset of every exported graph: the first with ``Gelu``, executed by every runtime in use."""

IR_VERSION = 10
"""The first IR version with function overloads, which the portable graph's operator body needs."""


class OtherLengthsError(InputError):
    """A list among the results has a length that depends on sizes.

    Attributes:
        patterns: of the outputs that lists are among.
    """

    patterns: tuple[str, ...]


def program_to_onnx(
    program: ExportedProgram,
    spec: ModelSpec,
    outputs: tuple[str, ...],
    tracing: Tracing | None = None,
) -> ir.Model:
    """Translate with PyTorch's exporter.

    Raises:
        InputError: an operator that the exporter has no translation for.
        OtherLengthsError: a list among the results is not as long as at the example.
    """
    tracing = tracing or Tracing()
    table: dict[Any, Any] = {**stable_translations(), **tracing.translations, **translation_table()}
    try:
        with quiet_exporter(), exporter_shortcuts():
            tracing.fix_program(program)
            known = has_translation(OPSET)
            decompose_locally(
                program, lambda made: compute_weights(made, lambda op: op in table or known(op))
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(spec.inputs),
                custom_translation_table=table,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps every cause in types of its own
        raise _not_translated(spec, error) from error
    if exported is None:
        raise InputError("PyTorch's ONNX exporter gave no model", where=spec.name)
    with quiet_exporter():
        simplify(exported.model)
    # Now that no output is an input any more, which would be renamed with it.
    graph = exported.model.graph
    if len(graph.outputs) != len(outputs):
        raise _of_other_lengths(spec, outputs, len(graph.outputs))
    for values, names in ((graph.outputs, outputs), (graph.inputs, spec.inputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    tracing.fix_model(exported)
    model = exported.model
    model.ir_version = IR_VERSION
    model.graph.name = re.sub(r"\W+", "_", spec.name) or "model"
    _adopt_constants(model.graph)
    _tell_apart(model.graph)
    name_dimensions(model, _symbols(program, spec))
    return model


def _of_other_lengths(spec: ModelSpec, outputs: Sequence[str], traced: int) -> OtherLengthsError:
    """A list among the results has as many tensors as some size says."""
    lists = dict.fromkeys(m[1] for name in outputs if (m := re.fullmatch(r"(.+)_\d+", name)))
    patterns = tuple(f"{name}_*" for name in lists)
    leave_out = Said(
        " ".join(f"--drop-output '{pattern}'" for pattern in patterns) or "--drop-output NAME",
        f"drop_outputs={list(patterns) or ['NAME']!r}",
    )
    error = OtherLengthsError(
        "the model gives a list whose length depends on the sizes of its inputs; a graph gives as "
        "many outputs at all sizes",
        where=", ".join(lists) or spec.name,
        got=f"{len(outputs)} outputs at the example's sizes, {traced} at others",
        do=Advice("Return one tensor in its place, or leave it out: {}", leave_out),
    )
    error.patterns = patterns
    return error


def _adopt_constants(graph: ir.Graph) -> None:
    """Make initializers of constants that nodes use and the graph doesn't hold: those whose name
    another took when two equal operators were optimized (two clamps of one value, say)."""
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None:
                continue
            if value.producer() is not None or value.is_initializer():
                continue
            name = value.name or "constant"
            while name in graph.initializers:
                name += "_"
            value.name = name
            graph.register_initializer(value)


def _tell_apart(graph: ir.Graph) -> None:
    """Rename values inside that are called as an output is: an output may have any name, ``mean``
    or ``clamp`` too."""
    outputs = {value.name: value for value in graph.outputs}
    inner = [*graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    taken = {value.name for value in (*graph.inputs, *inner)}
    for value in inner:
        if value.name not in outputs or outputs[value.name] is value:
            continue
        name = f"{value.name}_"
        while name in taken:
            name += "_"
        taken.add(name)
        if value.is_initializer():
            del graph.initializers[str(value.name)]
            value.name = name
            graph.register_initializer(value)
        else:
            value.name = name


def _symbols(program: ExportedProgram, spec: ModelSpec) -> dict[str, str]:
    """torch.export's symbol (``s31``) → the spec's dimension name, read off the program's
    inputs."""
    found: dict[str, str] = {}
    user = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    for node, name in zip(placeholders, spec.inputs, strict=True):
        for axis, size in spec.axes.get(name, {}).items():
            symbol = multiple_of(str(node.meta["val"].shape[axis]))
            dim = multiple_of(size)
            if symbol is not None and dim is not None and symbol[0] == dim[0]:
                found[symbol[1]] = dim[1]
    return found


def name_dimensions(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """Write dimensions' names in place of symbols, in expressions too."""
    if not symbols:
        return

    def named(size: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(size, int) or size.value is None:
            return size if isinstance(size, int) else None
        return rename(str(size.value), symbols)

    values = [*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([named(size) for size in value.shape])


def _not_translated(spec: ModelSpec, error: Exception) -> InputError:
    function = re.search(r"ops\.higher_order\.(\w+)", str(error))
    if function is not None:
        return InputError(
            f"PyTorch's ONNX exporter can't translate the function that {function[1]} runs",
            where=spec.name,
            do="Write the loop or the choice in Python, with a fixed number of steps",
        )
    cause = _cause(error)
    if "No ONNX function found" in cause and (found := untranslated(error)) is not None:
        return InputError(
            f"PyTorch's ONNX exporter has no translation of {found.operator}",
            where=spec.name if found.place is None else f"{spec.name}; {found.place}",
            do="Write it there with operators that have an ONNX translation, or leave out what "
            "needs it",
        )
    return InputError(
        f"PyTorch's ONNX exporter can't translate the model: {cause}",
        where=spec.name,
        do="Replace the operator it names with one that has an ONNX translation",
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(error)
