"""Products of narrow tensors summed in a wide type, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossfuse.parity.wide_products import WideProducts


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda a, b: a @ b,
    "linear": lambda a, b: F.linear(a, b.mT, b[0]),
    "batched": lambda a, b: torch.stack([a, a]) @ torch.stack([b, b]),
    "conv": lambda a, b: F.conv1d(a[None], b.mT[:, :, None].expand(-1, -1, 1)[:, : a.shape[0]]),
    "attention": lambda a, b: F.scaled_dot_product_attention(
        a[None, None], a.flip(0)[None, None], a[None, None]
    ),
}


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_products_are_summed_wide_and_rounded_once(name: str) -> None:
    product = PRODUCTS[name]
    a, b = normal(64, 256), normal(256, 64, seed=1)
    exact = product(a.double(), b.double())
    with torch.no_grad(), WideProducts(torch.float32, torch.float64):
        got = product(a, b)

    def beyond_one_rounding(values: Tensor) -> bool:
        return bool(((values.double() - exact).abs() > exact.abs() * 2.0**-24 + 1e-13).any())

    assert got.dtype == torch.float32
    assert not beyond_one_rounding(got)
    assert beyond_one_rounding(product(a, b)), "sums in float32 lose something here"


def test_half_products_are_rounded_once() -> None:
    """Within one rounding of the exact product of the half operands."""
    a, b = normal(64, 4096).half(), normal(4096, 64, seed=1).half()
    exact = a.double() @ b.double()
    with torch.no_grad(), WideProducts(torch.float16, torch.float32):
        got = a @ b
    assert got.dtype == torch.float16
    assert bool(((got.double() - exact).abs() <= exact.abs() * 2.0**-11 + 1e-4).all())


def test_other_operators_and_other_types_are_left_alone() -> None:
    seen: list[torch.dtype] = []
    half = normal(4, 4).half()
    with torch.no_grad(), WideProducts(torch.float16, torch.float32):
        assert torch.equal(half + half, half * 2)
        seen.append((half.sum() + half.exp().mean()).dtype)
        single = normal(4, 4)
        assert torch.equal(single @ single, torch.mm(single, single))
    assert seen == [torch.float16]
    assert torch.equal(single @ single, normal(4, 4) @ normal(4, 4))
