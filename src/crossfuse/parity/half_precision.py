"""The eager model in half precision: the error that fp16 or bf16 has anyway.

The module runs with its parameters, buffers and inputs in half precision. PyTorch's CPU products in
fp16 are two orders of magnitude slower than in fp32, so products are computed in fp32 from the half
operands and rounded once, as a GPU does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossfuse.export.capture.copies import copied
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.parity.policy import output_error
from crossfuse.parity.wide_products import WideProducts

__all__ = ["HALF_DTYPES", "half_errors"]

HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision → PyTorch's type."""

Outputs = Mapping[str, NDArray[Any]]


@without_fast_paths()
def half_errors(
    module: nn.Module,
    precision: str,
    points: Sequence[tuple[Mapping[str, Tensor], Outputs]],
    run: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]],
) -> list[dict[str, float]]:
    """Largest errors by output, one dict per point.

    Outputs that are not finite are left out; where the module fails, all are.

    Args:
        module: in fp32; left as it is.
        precision: ``fp16`` or ``bf16``.
        points: inputs, and the reference's outputs for them.
        run: gives a module's outputs for inputs, by name.
    """
    dtype = HALF_DTYPES[precision]
    try:
        half = copied(module, lambda _: dtype)
    except Exception:  # noqa: BLE001 -- the user's code, which may refuse a copy in any way
        return [{} for _ in points]
    mode = (
        WideProducts(torch.float16, torch.float32)
        if precision == "fp16"
        else contextlib.nullcontext()
    )
    found = []
    for inputs, truth in points:
        given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
        try:
            with torch.no_grad(), mode:
                got = run(given, half)
        except Exception:  # noqa: BLE001 -- the user's code, which may refuse half precision in any way
            return [{} for _ in points]
        errors = {name: output_error(_numpy(got[name]), truth[name]) for name in truth}
        found.append({name: error for name, error in errors.items() if np.isfinite(error)})
    return found


def _numpy(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array
