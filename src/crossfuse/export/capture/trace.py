"""``torch.export`` of a :class:`ModelSpec`, with named dynamic dimensions and traced at sizes that
hide nothing."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from crossfuse.core.foreign import place_of
from crossfuse.core.tensors import Dim
from crossfuse.core.text import brief
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.exporter_shortcuts import uncached_fakes
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["capture", "named_outputs", "quiet_exporter"]

_log = logging.getLogger(__name__)

_SUGGESTION = re.compile(r"(\w+) = Dim\('\1'(?:, min=(\d+))?(?:, max=(\d+))?\)")


def capture(spec: ModelSpec, *, defer_guards: bool = False) -> tuple[ExportedProgram, ModelSpec]:
    """Trace the module with its dynamic dimensions symbolic.

    The trace uses sizes of at least 2, pairwise different where the ranges allow: a size of 1 or
    two equal sizes would let a specialised shape pass for a dynamic one. A dimension given without
    a maximum gets the model's own limit where tracing finds one (the length of a table of position
    embeddings, say).

    Returns:
        the program, and the spec with the limits found.

    Raises:
        InputError: the module can't be traced, or a dynamic dimension turns out to be fixed or
            narrower than its range says.
    """
    while True:
        try:
            return _trace(spec, defer_guards), spec
        # torch.export raises many unrelated types, each of which means "can't be traced"
        except Exception as error:
            limited = _with_limits(spec, str(error))
            if limited is None:
                place = place_of(error)
                raise InputError(
                    f"torch.export can't trace the model: {type(error).__name__}: "
                    f"{_first_lines(error)}",
                    where=spec.name if place is None else f"{spec.name}; {place}",
                    do=_advice(error),
                ) from error
            spec = limited


def _trace(spec: ModelSpec, defer_guards: bool) -> ExportedProgram:
    dims = {
        name: torch.export.Dim(name, min=d.min, max=d.max) if d.max != d.min else None
        for name, d in spec.dims.items()
    }
    inputs = spec.sample(_trace_sizes(spec), seed=0)
    shapes = {
        name: {
            axis: dims[dim]
            for axis, dim in spec.axes.get(name, {}).items()
            if dims[dim] is not None
        }
        for name in inputs
    }
    with (
        torch.no_grad(),
        quiet_exporter(),
        uncached_fakes(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        return torch.export.export(
            spec.module,
            (),
            inputs,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=defer_guards,
        )


def _with_limits(spec: ModelSpec, message: str) -> ModelSpec | None:
    """The spec with the maxima that torch.export suggests for dimensions that have none; None where
    it suggests none."""
    open_ended = {name: dim for name, dim in spec.dims.items() if dim.max is None}
    found = {
        name: Dim(name, open_ended[name].min, int(high))
        for name, _, high in _SUGGESTION.findall(message)
        if high and name in open_ended
    }
    if not found:
        return None
    axes = {
        name: {axis: found.get(Dim.parse(dim).name, dim) for axis, dim in axes.items()}
        for name, axes in spec.dynamic.items()
    }
    _log.debug("the model limits %s", ", ".join(f"{n} to {d.max}" for n, d in found.items()))
    return dataclasses.replace(spec, dynamic=axes)


def _trace_sizes(spec: ModelSpec) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, dim in spec.dims.items():
        size = max(2, dim.min, spec.example_sizes[name])
        while size in sizes.values():
            size += 1
        sizes[name] = size if dim.max is None else max(dim.min, min(size, dim.max))
    return sizes


def named_outputs(result: object) -> dict[str, Tensor]:
    """Tensors of a module's result by name: a dict's keys, a dataclass's or named tuple's fields,
    else ``output[_i]``.

    Raises:
        InputError: the result holds no tensor, or something that is neither a tensor nor a
            container of tensors.
    """
    flat = dict(_walk("", result))
    if not flat:
        raise InputError("the model returns no tensor", got=type(result).__name__)
    return {name or "output": tensor for name, tensor in flat.items()}


def _walk(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a result with their names, in order."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if value is None:
        return
    for part, item in _parts(name, value):
        yield from _walk(part, item)


def _parts(name: str, value: object) -> Iterator[tuple[str, object]]:
    """What a container of this name holds, with names.

    Raises:
        InputError: it is no container.
    """
    fields = _fields(value)
    if fields is not None:
        yield from ((f"{name}_{field}" if name else field, item) for field, item in fields.items())
    elif isinstance(value, tuple | list):
        yield from ((f"{name or 'output'}_{i}", item) for i, item in enumerate(value))
    else:
        raise InputError(
            "the model returns something that is not a tensor",
            where=name,
            got=type(value).__name__,
        )


def _fields(value: object) -> dict[str, object] | None:
    """What a mapping, dataclass or named tuple holds, by name; None of anything else."""
    if isinstance(value, Mapping):
        return {f"{key}": item for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {field: getattr(value, field) for field in value._fields}
    return None


def _advice(error: Exception) -> str | Advice:
    """What to do about what torch.export says."""
    text = str(error)
    if any(
        phrase in text
        for phrase in (
            "Constraints violated",
            "Not all values of",
            "specialized",
            "must be divisible",
        )
    ):
        return Advice(
            "Make the named dimensions fit the model: {}",
            Said("--dynamic INPUT:AXIS=NAME:MIN:MAX", "ModelSpec(dynamic=...)"),
        )
    if any(
        phrase in text
        for phrase in ("data-dependent", "Data-dependent", "data dependent", "unbacked")
    ):
        return "Avoid control flow and shapes that depend on tensor values"
    return (
        "Make the module traceable: torch.export.export(module, (), inputs, strict=False) has "
        "to succeed"
    )


def _first_lines(error: BaseException, limit: int = 400) -> str:
    """The error's message without its advice about PyTorch's own logs."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(
        r"For more information, run with TORCH_LOGS=\S+ ?|The error above occurred when.*", "", text
    ).strip()
    return brief(text, limit)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep PyTorch's exporters from talking about packages that crossfuse doesn't need; errors
    still raise."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    loggers: list[tuple[logging.Logger, Any]] = [
        (logging.getLogger(n), logging.getLogger(n).level) for n in names
    ]
    try:
        for logger, _ in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)
