"""Reference results without the model: the bundle's fused graph in its portable form, executed by
ONNX Runtime in fp32.

This compares a target with the graph that it was lowered from. Whether that graph is the model,
only the reference set that the bundle carries, or the model itself, can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.tensors import CONTEXTS, names_of
from crossfuse.core.text import brief
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.given import Given, fan_out_of, sizes_given, whole_boundary
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import EXAMPLE, TAILS
from crossfuse.runtime.refused_inputs import Takes, refused_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.bundle.manifest import Manifest

__all__ = ["FUSED", "fused_reference", "whole_inputs"]

FUSED = "the bundle's fused graph, executed by ONNX Runtime on the CPU (not the eager model)"


def fused_reference(
    model: ir.Model,
    manifest: Manifest,
    given: Sequence[Given],
    own: ReferenceSet | None,
    progress: Callable[[str], None] = lambda _: None,
) -> ReferenceSet:
    """Results at the user's inputs.

    Args:
        model: the whole fused graph.
        manifest: of its bundle.
        given: checked inputs.
        own: the bundle's reference set: how far fp32, or a half precision, is from float64 on this
            model, relative to the magnitudes of its outputs. Without it the policy's floors stand
            alone.
        progress: told what begins.

    Raises:
        InputError: the graph gives NaN or infinity, or ONNX Runtime refuses the inputs.
    """
    from crossfuse.targets.cpu_run import opened
    from crossfuse.targets.portable import lower_portable

    lowered = lower_portable(model).model
    names = [value.name or "" for value in lowered.graph.outputs]
    needed = {value.name or "": value for value in lowered.graph.inputs}
    takes = Takes(whole_boundary(manifest)[0], manifest.dims)
    outputs = names_of(whole_boundary(manifest)[1])
    points = []
    with opened(lowered) as run:
        for i, (where, arrays) in enumerate(given):
            progress(f"fused graph in fp32 {i + 1}/{len(given)}: {where}")
            whole = whole_inputs(arrays, manifest)
            try:
                results = dict(zip(names, run({name: whole[name] for name in needed}), strict=True))
            except Exception as error:  # ONNX Runtime's exceptions have no common base
                said = brief(error)
                raise refused_inputs(
                    said, arrays, takes, who="the fused graph", where=where
                ) from error
            truth = {name: results[name] for name in outputs}
            bad = [
                name
                for name, array in truth.items()
                if array.dtype.kind == "f" and not np.isfinite(array).all()
            ]
            if bad:
                raise InputError(
                    "the fused graph gives NaN or infinity, so there is nothing to compare with",
                    where=f"{where}, {', '.join(bad)}",
                    do=Advice(
                        "Give inputs on which the model is defined; {} says what the model itself "
                        "gives",
                        Said("--source", "source=..."),
                    ),
                )
            eager = {
                name: _expected_error(own, name, "fp32", array) for name, array in truth.items()
            }
            half = {
                p: {n: _expected_error(own, n, p, a) for n, a in truth.items()}
                for p in ("fp16", "bf16")
            }
            points.append(
                ReferencePoint(
                    sizes_given(arrays, manifest), i, arrays, truth, eager, half, EXAMPLE
                )
            )
    return ReferenceSet("float32", tuple(points), (), FUSED)


def whole_inputs(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The inputs of the whole graph, each context repeated for its queries."""
    if manifest.shared_batch is None:
        return dict(arrays)
    count = fan_out_of(arrays, manifest)
    axes = {
        spec.name: spec.shape.index(CONTEXTS)
        for spec in manifest.stages["context"].inputs
        if CONTEXTS in spec.shape
    }
    return {
        name: np.repeat(array, count, axis=axes[name]) if name in axes else array
        for name, array in arrays.items()
    }


def _expected_error(
    own: ReferenceSet | None, name: str, precision: str, truth: NDArray[Any]
) -> float:
    """How far a precision may be from exact, judged by the bundle's own points: relative to
    magnitudes, twice.

    Twice, because the reference here has such an error as well as the target.
    """
    if own is None or name not in own.points[0].outputs:
        return 0.0
    error = own.eager_error(name, precision)
    if truth.dtype.kind != "f":
        return error
    largest = max(_magnitude(point.outputs[name]) for point in own.points if point.kind != TAILS)
    return 2.0 * error * max(_magnitude(truth) / largest, 1.0) if largest > 0 else error


def _magnitude(array: NDArray[Any]) -> float:
    return float(np.max(np.abs(array), initial=0.0))
