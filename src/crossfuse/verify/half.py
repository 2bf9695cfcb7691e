"""The eager model in half precision: the error that fp16 or bf16 has anyway.

The module runs with its parameters, buffers and inputs in half precision. PyTorch's CPU products in fp16 are two orders of
magnitude slower than in fp32, so products are computed in fp32 from the half operands and rounded once, as a GPU does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from crossfuse.verify.parity import output_error

__all__ = ["HALF_DTYPES", "half_errors"]

HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision → PyTorch's type."""

_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "crossfuse::fused_attention",
)  # fmt: skip

Outputs = Mapping[str, NDArray[Any]]


def half_errors(
    module: nn.Module,
    precision: str,
    points: Sequence[tuple[Mapping[str, Tensor], Outputs]],
    outputs: Callable[[Any], Mapping[str, Tensor]],
) -> list[dict[str, float]]:
    """Largest errors by output, one dict per point; without outputs that are not finite, and empty where the module fails.

    Args:
        module: in fp32; left as it is.
        precision: ``fp16`` or ``bf16``.
        points: inputs, and the reference's outputs for them.
        outputs: names what the module returns.
    """
    dtype = HALF_DTYPES[precision]
    tensors = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(t): _in(t, dtype) for t in tensors if t.is_floating_point()}
    try:
        half = copy.deepcopy(module, memo)
    except Exception:  # noqa: BLE001 -- the user's code, which may refuse to be copied in any way
        return [{} for _ in points]
    mode = _WideProducts() if precision == "fp16" else contextlib.nullcontext()
    found = []
    for inputs, truth in points:
        given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
        try:
            with torch.no_grad(), mode:
                got = outputs(half(**given))
        except Exception:  # noqa: BLE001 -- the user's code, which may refuse half precision in any way
            return [{} for _ in points]
        errors = {name: output_error(_numpy(got[name]), truth[name]) for name in truth}
        found.append({name: error for name, error in errors.items() if np.isfinite(error)})
    return found


class _WideProducts(TorchDispatchMode):
    """Products of half tensors in fp32, rounded at the end."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        wide = func(*tree_map(_widen, args), **tree_map(_widen, kwargs or {}))
        return tree_map(_narrow, wide)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _narrow(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    half = tensor.detach().to(dtype)
    return nn.Parameter(half, requires_grad=False) if isinstance(tensor, nn.Parameter) else half


def _numpy(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array
