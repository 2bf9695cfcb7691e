"""The reference set: inputs, the eager model's results and its own rounding error, kept in the
bundle as ``reference.npz``.

So a bundle can be verified again on the machine where it will run, without PyTorch and without the
model. What a file says is believed no further than it can be checked: see `load_reference` and
`check_reference`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.files import open_plain
from crossfuse.core.foreign import cause_of
from crossfuse.core.json_codec import json_text
from crossfuse.core.npz import read_arrays
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import Advice, BundleError, Said
from crossfuse.parity.shape_points import EXAMPLE, LEAST_POINTS, MADE, QUICK_POINTS, TAILS

__all__ = [
    "EAGER",
    "REFERENCE_FILE",
    "ReferencePoint",
    "ReferenceSet",
    "check_reference",
    "load_reference",
    "save_reference",
]

REFERENCE_FILE = "reference.npz"

EAGER = "the eager model"
"""What computes a reference, but where the report says something else."""

Array = NDArray[Any]
_FP16_OF_BF16 = 2.0**-3
"""Ratio of the two types' rounding errors: fp16 keeps 11 bits, bf16 keeps 8."""


@dataclass(frozen=True)
class ReferencePoint:
    """One shape point.

    Attributes:
        sizes: of the named dimensions.
        seed: of the inputs.
        inputs: by name.
        outputs: the reference's, by name; float64 for floating outputs where the module runs in
            float64.
        eager: the eager float32 model's outputs' largest absolute error against the reference, by
            output; for integer outputs, the fraction of elements that differ.
        half: precision → the same of the eager model in that precision; without outputs that are
            not finite there.
        kind: ``example`` for the user's own inputs, ``made`` for others, ``tails`` for those made
            to reach tails.
    """

    sizes: Mapping[str, int]
    seed: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    eager: Mapping[str, float]
    half: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kind: str = MADE


@dataclass(frozen=True)
class ReferenceSet:
    """All points, and where their results are from.

    Attributes:
        dtype: what the reference was computed in (``float64`` or ``float32``).
        points: inputs and results.
        notes: what was not tried, and why, for people.
        computed_by: what computed the reference.
        reason: why it is not plain float64 of a float32 model; empty where it is.
    """

    dtype: str
    points: tuple[ReferencePoint, ...]
    notes: tuple[str, ...] = ()
    computed_by: str = EAGER
    reason: str = ""

    def eager_error(self, output: str, precision: str = "fp32", *, tails: bool = False) -> float:
        """The worst error of the eager model in a precision, over the points where it was measured.

        It is 0 where it never was.

        Where the eager model overflows in fp16, an eighth of its error in bf16 stands in: rounding
        with three bits more.

        Args:
            output: its name.
            precision: ``fp32``, ``fp16`` or ``bf16``.
            tails: over the points made to reach tails, instead of all others.
        """
        points = [point for point in self.points if (point.kind == TAILS) is tails]
        if precision == "fp32":
            return max((point.eager[output] for point in points), default=0.0)
        measured = [point.half for point in points if point.half]
        if measured and all(output in errors.get(precision, {}) for errors in measured):
            return max(errors[precision][output] for errors in measured)
        if precision == "fp16":
            return self.eager_error(output, "bf16", tails=tails) * _FP16_OF_BF16
        return 0.0


def save_reference(reference: ReferenceSet, path: Path) -> None:
    """Write as NPZ: arrays by ``POINT/inputs|outputs/NAME``, and a JSON text as bytes under
    ``about``."""
    arrays: dict[str, Array] = {}
    about: dict[str, Any] = {
        "dtype": reference.dtype,
        "reason": reference.reason,
        "notes": list(reference.notes),
        "points": [],
    }
    for i, point in enumerate(reference.points):
        about["points"].append(
            {"sizes": dict(point.sizes), "seed": point.seed, "kind": point.kind} | _errors(point)
        )
        arrays |= {f"{i}/inputs/{name}": array for name, array in point.inputs.items()}
        arrays |= {f"{i}/outputs/{name}": array for name, array in point.outputs.items()}
    arrays["about"] = np.frombuffer(json_text(about).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _errors(point: ReferencePoint) -> dict[str, Any]:
    return {
        "eager": dict(point.eager),
        "half": {name: dict(errors) for name, errors in point.half.items()},
    }


def load_reference(path: Path) -> ReferenceSet:
    """Read a file whose hash was checked; who wrote it is not known.

    Raises:
        BundleError: not a reference set: a field that is missing or of another type, an error that
            is no finite number.
    """
    try:
        with open_plain(path) as file:
            data = read_arrays(file)
        about = json.loads(bytes(data["about"]))
        parts: dict[int, dict[str, dict[str, Array]]] = {}
        for key, array in data.items():
            index, _, rest = key.partition("/")
            part, _, name = rest.partition("/")
            if part in ("inputs", "outputs"):
                parts.setdefault(int(index), {"inputs": {}, "outputs": {}})[part][name] = array
        points = tuple(_point(point, parts[i]) for i, point in enumerate(about["points"]))
        if len(points) != len(parts):
            raise ValueError(f"{len(points)} points are described and {len(parts)} are there")
        if about["dtype"] not in ("float64", "float32"):
            raise ValueError(
                f"the dtype {about['dtype']!r} is not one that a reference is computed in"
            )
        notes = tuple(str(note) for note in about.get("notes", ()))
        return ReferenceSet(about["dtype"], points, notes, reason=str(about.get("reason", "")))
    except Exception as error:  # a damaged file makes NumPy, zipfile and zlib raise anything
        raise BundleError(
            f"the reference set can't be read: {cause_of(error)}",
            where=path,
            do="Export the bundle again",
        ) from error


def _point(about: Mapping[str, Any], parts: Mapping[str, Mapping[str, Array]]) -> ReferencePoint:
    kind, seed, half = about.get("kind", MADE), about["seed"], about.get("half", {})
    if kind not in (EXAMPLE, MADE, TAILS) or type(seed) is not int or set(half) - {"fp16", "bf16"}:
        raise ValueError(
            f"a point's kind, seed or precisions are not known: {kind!r}, {seed!r}, {list(half)}"
        )
    for name, array in [*parts["inputs"].items(), *parts["outputs"].items()]:
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {array.dtype}")
    sizes = {str(name): _number(size, int) for name, size in about["sizes"].items()}
    eager = {str(name): _number(error, float) for name, error in about["eager"].items()}
    halves = {
        name: {str(n): _number(error, float) for n, error in errors.items()}
        for name, errors in half.items()
    }
    return ReferencePoint(sizes, seed, parts["inputs"], parts["outputs"], eager, halves, kind)


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"{value!r} is no number")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is not what a size or an error can be")
    return value


def check_reference(
    reference: ReferenceSet,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    where: Path,
    *,
    quick: bool = False,
) -> None:
    """Check a bundle's reference set against its graphs: what it leaves out could not fail.

    Args:
        reference: as read.
        inputs: of the whole, as a session takes them.
        outputs: of the whole.
        where: the file.
        quick: the bundle says that it was checked at few points.

    Raises:
        BundleError: too few points, or a point whose inputs, outputs or errors are not those of the
            graphs.
    """
    do = Advice(
        "Don't trust this bundle: export it again, or verify it against the model ({})",
        Said("--source", "source=..."),
    )
    count = sum(point.kind != TAILS for point in reference.points)
    least = QUICK_POINTS if quick else LEAST_POINTS
    if count < least:
        raise BundleError(
            "the reference set holds too few points",
            where=where,
            got=count,
            expected=least,
            do=do,
        )
    takes, gives = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    for i, point in enumerate(reference.points):
        for what, found, expected in (
            ("inputs", set(point.inputs), set(takes)),
            ("outputs", set(point.outputs), set(gives)),
            ("eager errors", set(point.eager), set(gives)),
        ):
            if found != expected:
                raise BundleError(
                    f"the reference set's {what} are not the graph's",
                    where=f"{where}, point {i}",
                    got=", ".join(sorted(found)) or "none",
                    expected=", ".join(sorted(expected)),
                    do=do,
                )
        for specs, arrays in ((takes, point.inputs), (gives, point.outputs)):
            for name, array in arrays.items():
                spec = specs[name]
                floats = spec.dtype.startswith(("float", "bfloat"))
                if array.ndim != len(spec.shape) or (array.dtype.kind == "f") != floats:
                    raise BundleError(
                        "a tensor of the reference set is not the graph's",
                        where=f"{where}, point {i}, {name}",
                        got=f"{array.dtype}{list(array.shape)}",
                        expected=spec,
                        do=do,
                    )
    for name, spec in gives.items():
        if 0 not in spec.shape and not any(point.outputs[name].size for point in reference.points):
            raise BundleError(
                "the reference set holds no number of an output", where=f"{where}, {name}", do=do
            )
