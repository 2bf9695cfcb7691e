"""What a precision is chosen on: the user's own inputs, or those of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from crossfuse.bundle.manifest import Manifest
from crossfuse.core.npz import load_arrays
from crossfuse.core.tensors import CONTEXTS, names_of
from crossfuse.errors import InputError
from crossfuse.parity.fused import whole_inputs
from crossfuse.parity.given import check_given, whole_boundary
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import EXAMPLE, MADE, TAILS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CalibrationData", "calibration_data", "calibration_files", "reference_inputs"]

_MADE_POINTS = 2
"""How many of the points made for the check are calibrated on, besides the user's examples and what
reaches tails."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CalibrationData:
    """Inputs to choose by.

    Attributes:
        points: for the whole graph.
        sets: as a session takes them, with whatever else the user's files hold.
        words: where they are from; no path of the caller's.
    """

    points: Sequence[Arrays]
    sets: tuple[Arrays, ...]
    words: str


def calibration_files(given: Sequence[str]) -> list[Path]:
    """The NPZ files that paths of files and folders mean, those of a folder by name.

    Raises:
        InputError: a path that isn't there, or a folder without NPZ files.
    """
    files: list[Path] = []
    for text in given:
        path = Path(text)
        if not path.is_dir():
            if not path.exists():
                raise InputError("the calibration data doesn't exist", where=path)
            files.append(path)
            continue
        found = sorted(path.glob("*.npz"))
        if not found:
            raise InputError(
                "the folder of calibration data holds no NPZ file",
                where=path,
                do="Write one file per set of inputs with numpy.savez, arrays by input name",
            )
        files += found
    return files


def calibration_data(
    given: Sequence[str], manifest: Manifest, reference: ReferenceSet, model: ir.Model
) -> CalibrationData:
    """The user's own inputs, checked as a session would; the reference's where there are none.

    Args:
        given: paths of NPZ files and folders of them.
        manifest: of the bundle.
        reference: of the bundle.
        model: the whole fused graph.

    Raises:
        InputError: files that can't be read, or arrays that the model doesn't take.
    """
    if not given:
        points = _calibration(reference, manifest.shared_batch)
        chosen = tuple(point.inputs for point in points)
        words = f"{len(points)} of the reference's inputs"
        wholes = reference_inputs(reference, model, manifest.shared_batch)
        return CalibrationData(wholes, chosen, words)
    sets = [(str(file), load_arrays(file)) for file in calibration_files(given)]
    names = set(names_of(whole_boundary(manifest)[0]))
    inputs = [(where, {n: a for n, a in arrays.items() if n in names}) for where, arrays in sets]
    checked = check_given(inputs, manifest)
    taken = {value.name or "" for value in model.graph.inputs}
    wholes = [whole_inputs(arrays, manifest) for _, arrays in checked]
    return CalibrationData(
        [{n: a for n, a in whole.items() if n in taken} for whole in wholes],
        tuple({**arrays, **own} for (_, arrays), (_, own) in zip(sets, checked, strict=True)),
        f"{len(sets)} sets of the user's inputs",
    )


def reference_inputs(
    reference: ReferenceSet, model: ir.Model, shared_batch: str | None
) -> list[dict[str, Any]]:
    """Inputs of the points whose activations a search looks at, for the whole graph."""
    names = {value.name for value in model.graph.inputs}
    return [
        {name: array for name, array in point.inputs.items() if name in names}
        for point in _calibration(reference, shared_batch)
    ]


def _calibration(reference: ReferenceSet, shared_batch: str | None) -> list[ReferencePoint]:
    """The user's points, some made, and tails at which fp16 is judged; made points with several
    queries per context are nothing that the whole graph takes."""
    made = [
        p
        for p in reference.points
        if p.kind == MADE and p.sizes.get(CONTEXTS) in (None, p.sizes.get(shared_batch or CONTEXTS))
    ]
    tails = [
        p
        for p in reference.points
        if p.kind == TAILS and set(p.half.get("fp16", {})) == set(p.outputs)
    ]
    return [
        *(p for p in reference.points if p.kind == EXAMPLE),
        *made[:_MADE_POINTS],
        *tails,
    ]
