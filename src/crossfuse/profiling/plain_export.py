"""``torch.onnx.export`` as it comes, which several baselines run: at the sizes of some inputs, with
static shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["export_plainly"]

_OPSET = 20


def export_plainly(spec: ModelSpec, inputs: Mapping[str, NDArray[Any]], path: Path) -> list[str]:
    """Export a model and give the names of its outputs.

    Our operator, where the model calls it, is exported as the scaled dot-product attention that it
    is in PyTorch.

    Args:
        spec: the model.
        inputs: by name, at the sizes to export for.
        path: of the file; large weights go beside it.
    """
    import torch

    from crossfuse.export.capture.flat_boundary import flat_boundary
    from crossfuse.ops.torch_op import compute

    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    with torch.inference_mode():
        names = list(spec.outputs_of(spec.call(given)))
    with flat_boundary(spec) as parameters:
        taken = [name for name in parameters if name in given]
        keywords = {parameters[name]: given[name] for name in taken}
        program = torch.export.export(spec.module, (), keywords)
    table = torch.export.default_decompositions()
    table[torch.ops.crossfuse.fused_attention.default] = compute
    program = program.run_decompositions(table)
    torch.onnx.export(
        program,
        (),
        path,
        kwargs=keywords,
        dynamo=True,
        opset_version=_OPSET,
        verbose=False,
        input_names=taken,
        output_names=names,
    )
    return names
