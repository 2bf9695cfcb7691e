"""The eager model's own error in half precision, against a float64 computation of the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossfuse.parity.half_precision import HALF_DTYPES, half_errors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(inputs: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    return {"y": module(**inputs)}


def points(module: nn.Module, *inputs: Tensor) -> list:
    with torch.no_grad():
        return [
            ({"x": x} if isinstance(x, Tensor) else x, {"y": module(x).numpy()}) for x in inputs
        ]


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(32, 8, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_a_products_error_is_that_of_its_roundings(precision: str, bits: int) -> None:
    """Operands rounded to the type, summed exactly, rounded again: computed here in float64."""
    module, x = Product(), normal(5, 32)
    dtype = HALF_DTYPES[precision]
    (found,) = half_errors(module, precision, points(module, x), named)
    exact = x.double() @ module.weight.detach().double()
    rounded = (x.to(dtype).double() @ module.weight.detach().to(dtype).double()).to(dtype).double()
    expected = float((rounded - exact).abs().max())
    assert found["y"] == pytest.approx(expected, rel=0.5)
    assert found["y"] < 2.0 ** (1 - bits) * float(exact.abs().max()) * 4
    assert module.weight.dtype == torch.float32, "the module is left as it is"


def test_integers_stay_integers() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.int64
            return self.table(x)

    module = Lookup()
    (found,) = half_errors(module, "bf16", points(module, torch.arange(50)), named)
    table = module.table.weight.detach()
    assert found["y"] == float((table.bfloat16().float() - table).abs().max())


def test_an_output_that_overflows_has_no_error() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1000

    module = Large()
    small, large = half_errors(module, "fp16", points(module, normal(3), 1000 * normal(3)), named)
    assert small["y"] < 2, "half the spacing of numbers around 2000"
    assert large == {}
    (wide,) = half_errors(module, "bf16", points(module, 1000 * normal(3)), named)
    assert np.isfinite(wide["y"]), "bf16 has the range"


def test_a_module_that_refuses_is_no_measure() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return x

    module = Refuses()
    given = points(module, normal(3), normal(3))
    assert half_errors(module, "fp16", given, named) == [{}, {}]
