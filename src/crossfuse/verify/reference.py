"""The reference set: inputs, the eager model's results and its own rounding error, kept in the bundle as ``reference.npz``.

So a bundle can be verified again on the machine where it will run, without PyTorch and without the model.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import BundleError

__all__ = ["REFERENCE_FILE", "ReferencePoint", "ReferenceSet", "load_reference", "save_reference"]

REFERENCE_FILE = "reference.npz"
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
        outputs: the reference's, by name; float64 for floating outputs where the module runs in float64.
        eager: the eager float32 model's outputs' largest absolute error against the reference, by output; for integer
            outputs, the fraction of elements that differ.
        half: precision → the same of the eager model in that precision; without outputs that are not finite there.
    """

    sizes: Mapping[str, int]
    seed: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    eager: Mapping[str, float]
    half: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceSet:
    """All points, and the dtype that the reference was computed in (``float64`` or ``float32``).

    ``reason`` says why it is not plain float64 of a float32 model; empty where it is.
    """

    dtype: str
    points: tuple[ReferencePoint, ...]
    reason: str = ""

    def eager_error(self, output: str, precision: str = "fp32") -> float:
        """The worst error of the eager model in a precision, over the points where it was measured; 0 where it never was.

        Where the eager model overflows in fp16, an eighth of its error in bf16 stands in: rounding with three bits more.
        """
        if precision == "fp32":
            return max((point.eager[output] for point in self.points), default=0.0)
        measured = [point.half for point in self.points if point.half]
        if measured and all(output in errors.get(precision, {}) for errors in measured):
            return max(errors[precision][output] for errors in measured)
        if precision == "fp16":
            return self.eager_error(output, "bf16") * _FP16_OF_BF16
        return 0.0


def save_reference(reference: ReferenceSet, path: Path) -> None:
    """Write as NPZ: arrays by ``POINT/inputs|outputs/NAME``, and a JSON text as bytes under ``about``."""
    arrays: dict[str, Array] = {}
    about: dict[str, Any] = {"dtype": reference.dtype, "reason": reference.reason, "points": []}
    for i, point in enumerate(reference.points):
        about["points"].append({"sizes": dict(point.sizes), "seed": point.seed} | _errors(point))
        arrays |= {f"{i}/inputs/{name}": array for name, array in point.inputs.items()}
        arrays |= {f"{i}/outputs/{name}": array for name, array in point.outputs.items()}
    arrays["about"] = np.frombuffer(json.dumps(about, allow_nan=False).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _errors(point: ReferencePoint) -> dict[str, Any]:
    return {"eager": dict(point.eager), "half": {name: dict(errors) for name, errors in point.half.items()}}


def load_reference(path: Path) -> ReferenceSet:
    """Read a verified file.

    Raises:
        BundleError: not a reference set.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            about = json.loads(bytes(data["about"]))
            points = []
            for i, point in enumerate(about["points"]):
                parts: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
                for key in data.files:
                    index, _, rest = key.partition("/")
                    if index == str(i):
                        part, _, name = rest.partition("/")
                        parts[part][name] = data[key]
                points.append(
                    ReferencePoint(
                        point["sizes"], point["seed"], parts["inputs"], parts["outputs"], point["eager"], point.get("half", {})
                    )
                )
            return ReferenceSet(about["dtype"], tuple(points), reason=str(about.get("reason", "")))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BundleError(f"the reference set can't be read: {error}", where=path) from error
