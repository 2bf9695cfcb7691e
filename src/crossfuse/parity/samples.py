"""Inputs for the eager model, whole, and as a session takes them: in a split bundle each context
once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.core.tensors import CONTEXTS
from crossfuse.parity.shape_points import EXAMPLE, Planned

if TYPE_CHECKING:
    from torch import Tensor

    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Sample", "example_sample", "given_sample", "made_sample"]

_HALF_EXAMPLES = 4
"""At how many of the user's examples the half precisions' own errors are measured; besides, at the
largest sizes and tails."""


@dataclass(frozen=True)
class Sample:
    """One set of inputs.

    Attributes:
        sizes: of the named dimensions.
        whole: for the eager model.
        given: for a session.
        seed: of inputs made; a number for others.
        kind: of the point.
        half: the eager model's errors in half precision are measured here.
    """

    sizes: Mapping[str, int]
    whole: dict[str, Tensor]
    given: dict[str, Tensor]
    seed: int
    kind: str
    half: bool


def example_sample(
    spec: ModelSpec, inputs: Mapping[str, Tensor], index: int, shared_batch: str | None
) -> Sample:
    """The user's example, as it is."""
    sizes = spec.sizes_of(inputs, f"example {index + 1}")
    if shared_batch is not None:
        sizes = sizes | {CONTEXTS: sizes[shared_batch]}
    # A copy: what a module writes into its input would reach the next run.
    return Sample(sizes, dict(inputs), dict(inputs), 0, EXAMPLE, index < _HALF_EXAMPLES)


def made_sample(
    spec: ModelSpec, plan: Planned, inputs: dict[str, Tensor], seed: int, shared_batch: str | None
) -> Sample:
    """A planned point's inputs; of the contexts in them only as many as the plan has are kept."""
    given, sizes = dict(inputs), dict(plan.sizes)
    if shared_batch is not None:
        for name, axis in _per_context(spec, shared_batch).items():
            chosen = (*[slice(None)] * axis, slice(None, None, plan.fan_out))
            given[name] = inputs[name][chosen].contiguous()
            inputs[name] = given[name].repeat_interleave(plan.fan_out, dim=axis)
        sizes[CONTEXTS] = sizes[shared_batch] // plan.fan_out
    return Sample(sizes, inputs, given, seed, plan.kind, plan.half)


def given_sample(
    spec: ModelSpec, given: Mapping[str, Tensor], where: str, index: int, shared_batch: str | None
) -> Sample:
    """The user's inputs as for a session, each context repeated for its queries.

    Raises:
        InputError: they don't fit the spec.
    """
    whole, extra = dict(given), {}
    if shared_batch is not None:
        repeated = _per_context(spec, shared_batch)
        queries = next(
            (
                int(t.shape[axis])
                for n, t in given.items()
                for axis, dim in spec.axes.get(n, {}).items()
                if n not in repeated and dim == shared_batch
            ),
            0,
        )
        for name, axis in repeated.items():
            extra[CONTEXTS] = contexts = int(given[name].shape[axis])
            if queries % contexts == 0 and queries:
                whole[name] = given[name].repeat_interleave(queries // contexts, dim=axis)
    sizes = spec.sizes_of(whole, where) | extra
    return Sample(sizes, whole, dict(given), index, EXAMPLE, index < _HALF_EXAMPLES)


def _per_context(spec: ModelSpec, shared_batch: str) -> dict[str, int]:
    """Context inputs that have the batch → its axis."""
    axes = ((name, spec.axes.get(name, {})) for name in spec.context)
    return {name: axis for name, dims in axes for axis, dim in dims.items() if dim == shared_batch}
