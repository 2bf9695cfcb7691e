"""Names of operators are those of ONNX: one that is misspelt would keep nothing in fp32."""

from __future__ import annotations

import onnx
import pytest

from crossfuse.core.missing_kernels import (
    CUDA_WITHOUT_BF16,
    CUDA_WITHOUT_KERNEL,
    TENSORRT_WITHOUT_BF16,
)


@pytest.mark.parametrize("names", [CUDA_WITHOUT_BF16, CUDA_WITHOUT_KERNEL, TENSORRT_WITHOUT_BF16])
def test_every_name_is_an_operator_s(names: frozenset[str]) -> None:
    assert names
    assert [name for name in names if not onnx.defs.has(name)] == []


def test_what_has_no_kernel_has_none_in_bf16() -> None:
    assert CUDA_WITHOUT_KERNEL <= CUDA_WITHOUT_BF16
