"""A plain export quantised by NNCF, as a user of OpenVINO would have it: post-training, in int8,
with its settings for transformers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from crossfuse.core.openvino import openvino
from crossfuse.core.requirements import needed

__all__ = ["quantized_by_nncf"]


def quantized_by_nncf(path: Path, data: Sequence[Mapping[str, NDArray[Any]]]) -> Path:
    """The quantised model's file, beside the export's; one that is there already is taken.

    Args:
        path: an ONNX file of static shapes.
        data: sets of inputs to calibrate on, by name.

    Raises:
        PackageError: NNCF is not installed. It may raise anything else.
    """
    made = path.with_name("nncf.xml")
    if made.exists():
        return made
    with needed("nncf", "the baseline openvino-int8"):
        os.environ.setdefault("NNCF_CI", "1")  # its switch not to report that it is used
        nncf = importlib.import_module("nncf")
    model = openvino().Core().read_model(path)
    taken = {name for port in model.inputs for name in port.get_names()}
    sets = [{name: array for name, array in one.items() if name in taken} for one in data]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(sets),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(sets),
    )
    openvino().save_model(quantized, made, compress_to_fp16=False)
    return made
