"""What one would use otherwise: eager PyTorch, ``torch.compile``, a plain export in ONNX Runtime. Needs the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import InputError

if TYPE_CHECKING:
    from crossfuse.model_spec import ModelSpec

__all__ = ["RIVALS", "make_rival"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[], Arrays]

_OPSET = 20


def make_rival(name: str, spec: ModelSpec, inputs: Arrays) -> Run:
    """A function that runs the rival on these inputs and gives its outputs by name.

    Args:
        name: one of `RIVALS`.
        spec: of the model.
        inputs: at the sizes to measure; the plain export is made for just these.

    Raises:
        InputError: no rival of that name.
    """
    if name not in RIVALS:
        raise InputError("there is no such rival", got=repr(name), expected=", ".join(RIVALS))
    return RIVALS[name](spec, inputs)


def _eager(spec: ModelSpec, inputs: Arrays) -> Run:
    return _module(spec, spec.module, inputs)


def _compile(spec: ModelSpec, inputs: Arrays) -> Run:
    import torch

    return _module(spec, torch.compile(spec.module), inputs)


def _module(spec: ModelSpec, module: Any, inputs: Arrays) -> Run:
    import torch

    from crossfuse.export.capture import named_outputs

    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}

    def run() -> Arrays:
        with torch.inference_mode():
            outputs = spec.kept(named_outputs(module(**given)))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def _onnx(spec: ModelSpec, inputs: Arrays) -> Run:
    """``torch.onnx.export`` as it comes, in ONNX Runtime on the CPU with its own optimizations.

    Our operator, where the model calls it, is exported as the scaled dot-product attention that it is in PyTorch.
    """
    import onnxruntime as ort
    import torch

    from crossfuse.export.capture import named_outputs
    from crossfuse.operator.torch_op import compute

    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    with torch.inference_mode():
        names = list(named_outputs(spec.module(**given)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        program = torch.export.export(spec.module, (), given)
        table = torch.export.default_decompositions()
        table[torch.ops.crossfuse.fused_attention.default] = compute
        program = program.run_decompositions(table)
        torch.onnx.export(program, (), path, kwargs=given, dynamo=True, opset_version=_OPSET, verbose=False, output_names=names)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    feeds = {name: array for name, array in inputs.items() if name in taken}

    def run() -> Arrays:
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


RIVALS: dict[str, Callable[[ModelSpec, Arrays], Run]] = {"eager": _eager, "compile": _compile, "onnx": _onnx}
"""Name → how it is made."""
