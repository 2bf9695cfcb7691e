"""``torch.export`` of a :class:`ModelSpec` with named dimensions, at sizes that hide nothing."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from crossfuse.core.foreign import place_of
from crossfuse.core.tensors import Dim
from crossfuse.core.text import brief
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.assumed_branches import Assumptions, assumed, other_ways
from crossfuse.export.capture.block_sizes import even_chunks, whole_blocks
from crossfuse.export.capture.control_flow import both_branches
from crossfuse.export.capture.expert_loops import all_experts
from crossfuse.export.capture.flat_boundary import flat_boundary, parameter_names
from crossfuse.export.capture.flex_attention import flex_as_sdpa
from crossfuse.export.capture.guards import (
    Guard,
    GuardLog,
    drop_assertions,
    tried,
    watched_guards,
)
from crossfuse.export.capture.known_values import known_values
from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.capture.padding_advice import padding_advice
from crossfuse.export.capture.trace_sizes import limited, trace_sizes, traced_size
from crossfuse.export.capture.traceable import traceable
from crossfuse.export.capture.tracing_shortcuts import tracing_shortcuts
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["capture", "quiet_exporter"]

_log = logging.getLogger(__name__)

_ABOUT_SIZES = (
    "Constraints violated",
    "Not all values of",
    "specialized",
    "must be divisible",
    "must match the size",
    "not in VR",
    "inconsistent min=",
    "not a subset of src_bound",
)
"""What torch.export says where a relation between sizes is in the way."""

_MOST_BLOCK = 1024
"""The largest number that is taken for the size of a block."""

_FAR = 2**31
"""A size that no dimension has: products of such still fit the tracer's integers."""

_SUGGESTION = re.compile(r"(\w+) = Dim\('\1'(?:, min=(\d+))?(?:, max=(\d+))?\)")
_CONSTANT = re.compile(r"specialized it to be a constant \((\d+)\)")
"""The size that torch.export found a dimension to have."""


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
    first = _Way(deferred=defer_guards, vouched=defer_guards)
    ways = (first, _Way(deferred=True), _Way(deferred=True, larger=True))
    failure: InputError | None = None
    blocks: set[int] = set()
    for way in ways:
        try:
            return _traced(spec, way, blocks)
        except InputError as error:
            failure = failure if failure is not None and (failure.got or not error.got) else error
            if not way.others_may_do(error):
                break
    assert failure is not None
    raise failure


@dataclasses.dataclass(frozen=True)
class _Way:
    """How a trace is tried.

    Attributes:
        deferred: relations that the tracer can't prove are left to be tried.
        larger: at sizes other than the example's, where the model may take another path.
        vouched: the source says that such relations hold.
    """

    deferred: bool
    larger: bool = False
    vouched: bool = False

    def others_may_do(self, error: InputError) -> bool:
        """A relation between sizes is what failed."""
        return bool(error.got) or _is_about_sizes(error.__cause__)


def _traced(spec: ModelSpec, way: _Way, blocks: set[int]) -> tuple[ExportedProgram, ModelSpec]:
    """The program, and the spec with limits, and with examples where it has to be compared.

    Args:
        spec: of the module.
        way: how.
        blocks: numbers that sizes were related to where a trace was refused; more come with it.

    Raises:
        InputError: with ``got`` where a dimension is not free.
    """
    branches = Assumptions()
    while True:
        sizes = trace_sizes(spec, _beyond(blocks) if way.larger else None)
        own_proofs = not way.deferred or way.vouched
        with watched_guards(sizes, spec.dims, own_proofs=own_proofs) as log:
            try:
                program = _trace(spec, sizes, way.deferred, branches)
                if branches.doubt():
                    continue
            # torch.export raises many unrelated types, each of which means "can't be traced"
            except Exception as error:
                if isinstance(error, AssertionError | ValueError) and branches.turn_last():
                    continue
                error = branches.cause_of(error)
                limited = _with_limits(spec, str(error))
                if limited is not None:
                    spec = limited
                    continue
                refused = tried(log, spec.dims).refused if _is_about_sizes(error) else None
                blocks |= refused.constants if refused is not None else set()
                raise _refusal(spec, refused, log, error) from error
        compared = other_ways(spec, branches)
        spec = dataclasses.replace(spec, examples=[*spec.examples, *compared])
        if own_proofs:
            return program, spec
        found = tried(log, spec.dims)
        if found.refused is not None:
            blocks |= found.refused.constants
            raise _refusal(spec, found.refused, log, None)
        drop_assertions(program)
        more = [spec.sample({**spec.example_sizes, **point}, seed=0) for point in found.sizes]
        return program, dataclasses.replace(spec, examples=[*spec.examples, *more])


def _is_about_sizes(error: BaseException | None) -> bool:
    return any(text in str(error) for text in _ABOUT_SIZES)


def _refusal(
    spec: ModelSpec, guard: Guard | None, log: GuardLog, error: Exception | None
) -> InputError:
    """A dimension that is not free, with the relation; else what the tracer says."""
    if guard is not None:
        fit = padding_advice(guard) or _fit(spec, guard.sizes)
        return guard.refusal(spec.name, spec.dims, spec.module, fit)
    assert error is not None
    place = place_of(error)
    return InputError(
        f"torch.export can't trace the model: {type(error).__name__}: "
        f"{log.named(_first_lines(error))}",
        where=spec.name if place is None else f"{spec.name}; {place}",
        do=_advice(spec, error),
    )


def _trace(
    spec: ModelSpec, sizes: dict[str, int], defer_guards: bool, branches: Assumptions
) -> ExportedProgram:
    far = _FAR if defer_guards else None
    dims = {
        name: torch.export.Dim(name, min=d.min, max=d.max or far) if d.max != d.min else None
        for name, d in spec.dims.items()
    }
    inputs = spec.sample(sizes, seed=0)
    parameters = parameter_names(inputs)
    shapes = {
        parameters[name]: {
            axis: found
            for axis, size in spec.axes.get(name, {}).items()
            if (found := traced_size(size, dims)) is not None
        }
        for name in inputs
    }
    with (
        torch.no_grad(),
        traceable(),
        assumed(branches),
        known_values(spec.module),
        all_experts(),
        even_chunks(),
        whole_blocks() if defer_guards else nullcontext(),
        flex_as_sdpa(),
        both_branches(),
        _fresh_attributes(spec.module),
        quiet_exporter(),
        tracing_shortcuts(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        flat_boundary(spec),
    ):
        program = torch.export.export(
            spec.module,
            (),
            {parameters[name]: tensor for name, tensor in inputs.items()},
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=defer_guards,
        )
    _drop_buffer_writes(program)
    # What only a check of the model's code reads may have no translation.
    program.graph.eliminate_dead_code()
    return program


def _drop_buffer_writes(program: ExportedProgram) -> None:
    """What a call leaves in buffers, unread, is no output: its size may be another than theirs."""
    buffers, read = program.graph_signature.inputs_to_buffers, set[Any]()
    for node in reversed(list(program.graph.nodes)):
        written = node.args[0] if node.target is torch.ops.aten.copy_.default else None
        if not node.users and written not in read and getattr(written, "name", "") in buffers:
            program.graph.erase_node(node)
        else:
            read.update(node.all_input_nodes)
    program.graph_module.recompile()


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
        name: {axis: limited(dim, found) for axis, dim in axes.items()}
        for name, axes in spec.dynamic.items()
    }
    _log.debug("the model limits %s", ", ".join(f"{n} to {d.max}" for n, d in found.items()))
    return dataclasses.replace(spec, dynamic=axes)


@contextmanager
def _fresh_attributes(module: nn.Module) -> Iterator[None]:
    """What the trace leaves in the module is gone, for torch.export already: it refuses tensors
    that a forward assigns."""
    with kept_state(module) as state:
        handle = module.register_forward_hook(
            lambda *_: state.restore_attributes(buffers=False), always_call=True
        )
        try:
            yield
        finally:
            handle.remove()


def _beyond(blocks: set[int]) -> int:
    """A size of more than two blocks, of which none is half full."""
    return 2 * max((size for size in blocks if size <= _MOST_BLOCK), default=0) + 1


def _fit(spec: ModelSpec, sizes: Collection[int]) -> Advice:
    """How dimensions that turned out to have one of these sizes are made to fit: inputs with fixed
    axes of such a size may be what they have to agree with."""
    fixed = [
        f"{name}:{axis}"
        for name, tensor in spec.inputs.items()
        for axis, size in enumerate(tensor.shape)
        if size in sizes and axis not in spec.axes.get(name, {})
    ]
    also = (
        f"; axes of that size that are fixed ({', '.join(fixed)}) may have to be the same dimension"
        if fixed
        else ""
    )
    return Advice(
        "Make the named dimensions fit the model: {}{}",
        Said("--dynamic INPUT:AXIS=NAME:MIN:MAX", "ModelSpec(dynamic=...)"),
        also,
    )


def _advice(spec: ModelSpec, error: Exception) -> str | Advice:
    """What to do about what torch.export says."""
    text = str(error)
    by_content = type(error).__name__ == "GuardOnDataDependentSymNode"
    if _is_about_sizes(error) and not by_content:
        return _fit(spec, {int(size) for size in _CONSTANT.findall(text)})
    if by_content or any(
        phrase in text
        for phrase in ("data-dependent", "Data-dependent", "data dependent", "unbacked")
    ):
        return (
            "Avoid control flow and shapes that depend on tensor values; a number that decides can "
            "be given as a Python number, which is then part of what is exported"
        )
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
