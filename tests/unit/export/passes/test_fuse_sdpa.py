"""PyTorch's attention calls become the operator in the exported program, or stay with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.passes.fuse_sdpa import FuseSdpaPass

FUSED = torch.ops.crossfuse.fused_attention.default
SDPA = torch.ops.aten.scaled_dot_product_attention.default


class Calls(nn.Module):
    """One call of the function, its keyword arguments as given."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options)


def tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


FOUR = ((2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 6))
SEEN = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
ADDED = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(3, 5)


def exported(module: nn.Module, inputs: tuple[Tensor | None, ...]) -> Any:
    return torch.export.export(module, inputs)


def targets(program: Any) -> list[Any]:
    return [n.target for n in program.graph.nodes if n.target in (FUSED, SDPA)]


@pytest.mark.parametrize(
    ("shapes", "mask", "options"),
    [
        (FOUR, None, {}),
        (FOUR, None, {"scale": 0.3}),
        (FOUR, None, {"is_causal": True}),
        (FOUR, SEEN, {}),
        (FOUR, ADDED, {}),
        (FOUR, SEEN[:1], {}),
        (((4, 3, 8), (4, 5, 8), (4, 5, 6)), SEEN, {}),
        (((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8)), None, {"enable_gqa": True}),
        (((1, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8)), None, {}),
        (((2, 4, 3, 8), (2, 1, 5, 8), (2, 1, 5, 8)), None, {}),
        (((2, 1, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8)), SEEN, {}),
        (((3, 8), (5, 8), (5, 6)), SEEN, {}),
        (((2, 3, 4, 3, 8), (2, 3, 4, 5, 8), (2, 3, 4, 5, 6)), ADDED, {}),
        (((2, 3, 4, 3, 8), (2, 1, 4, 5, 8), (1, 3, 4, 5, 6)), SEEN, {}),
        (((2, 3, 4, 3, 8), (2, 3, 4, 5, 8), (2, 3, 4, 5, 6)), SEEN.expand(2, 1, 4, 3, 5), {}),
        (((2, 3, 4, 3, 8), (4, 5, 8), (4, 5, 8)), None, {"is_causal": True}),
        (((2, 3, 4, 3, 8), (2, 3, 2, 5, 8), (2, 3, 2, 5, 8)), None, {"enable_gqa": True}),
    ],
    ids=[
        *("plain", "scale", "causal", "bool", "float", "row", "3 axes", "grouped", "batch", "head"),
        *("query head", "2 axes", "5 axes", "5 axes broadcast", "5 axes of a mask", "fewer axes"),
        "5 axes grouped",
    ],
)
def test_every_form_is_replaced(
    shapes: tuple[tuple[int, ...], ...], mask: Tensor | None, options: dict[str, Any]
) -> None:
    """Equal to PyTorch's own function in float64."""
    module, inputs = Calls(**options), (*tensors(*shapes), mask)
    expected = module(*inputs)
    result = FuseSdpaPass()(exported(module, inputs))
    assert result.modified
    assert not result.missed
    assert targets(result.program) == [FUSED]
    got = result.program.module()(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_grouped_heads_of_unknown_number_stay_with_their_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = Calls(), Calls(enable_gqa=True)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.far(self.near(q, k, v), k, v)

    q, k, v = tensors((2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8))
    heads = {1: torch.export.Dim("heads", min=2, max=8)}
    program = torch.export.export(Model(), (q, k, v), dynamic_shapes=[heads] * 3)
    result = FuseSdpaPass()(program)
    assert targets(result.program) == [FUSED, SDPA]
    assert result.modified
    (missed,) = result.missed
    assert missed.module == "far"
    assert "grouped heads whose number is not known" in missed.reason


def test_nothing_to_replace() -> None:
    program = exported(nn.Linear(4, 4).double(), tensors((2, 4)))
    result = FuseSdpaPass()(program)
    assert not result.modified
    assert result.program is program


def test_dropout_is_an_error() -> None:
    program = exported(Calls(dropout_p=0.1), tensors(*FOUR))
    with pytest.raises(InputError, match=r"drops attention weights at random.*dropout_p=0.1"):
        FuseSdpaPass()(program)
