"""What relations between sizes ask for, however the tracer writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sympy
import torch
import torch.nn.functional as F
from tests.traced_for_tests import WIDTH
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv, Mod

from crossfuse import InputError, ModelSpec
from crossfuse.export.capture.guards import Guard
from crossfuse.export.capture.relations import (
    holding,
    holds,
    multiples,
    numbers,
    of_a_remainder,
    reduced,
)
from crossfuse.export.capture.trace import capture

B, N, M = sympy.symbols("b n m", integer=True, positive=True)
NAMES = {B: "b", N: "n", M: "m"}


def test_which_relations_want_a_multiple() -> None:
    eighth = sympy.Eq(Mod(N, 8), 0)
    for expression, wants in (
        (eighth, True),
        (sympy.Or(sympy.Eq(N, 8), eighth), True),  # as PyTorch writes it where n is 8 or more
        (sympy.Eq(8 * FloorDiv(N, 8), N), True),
        (sympy.And(eighth, N >= 16), True),
        (sympy.Eq(N, 8), False),
        (sympy.Ne(Mod(N, 8), 0), False),
        (N >= 8, False),
        (sympy.Or(sympy.Eq(N, 3), eighth), False),
    ):
        assert Guard(expression, NAMES, None).is_multiple is wants, expression
        assert multiples(expression) == ({N: 8} if wants else {})


def test_multiples_whatever_the_other_sizes_are() -> None:
    for expression, wanted in (
        (sympy.Eq(32 * B * N, 256 * B * FloorDiv(N, 8)), {N: 8}),
        (sympy.Eq(Mod(32 * B * N, 256 * FloorDiv(N, 8)), 0), {N: 8}),
        (sympy.Eq(Mod(32 * B * N, 256 * B), 0), {N: 8}),
        (sympy.Eq(Mod(32 * B * N, 256), 0), {N: 8, B: 8}),
        (sympy.Eq(4 * B * N * M, 24 * B * M * FloorDiv(N, 6)), {N: 6}),
        (sympy.Eq(B, N), {}),
        (sympy.Eq(B * N, 8 * M), {}),
    ):
        short = reduced(expression)
        assert multiples(short) == wanted, expression
        # What was taken from both sides changes nothing.
        for b, n, m in ((1, 8, 2), (2, 12, 3), (3, 18, 2), (8, 5, 5), (7, 7, 1)):
            sizes = {B: b, N: n, M: m}
            assert holds(short, sizes) == holds(expression, sizes)
    assert numbers(reduced(sympy.Eq(32 * B * N, 256 * B * FloorDiv(N, 8)))) == {8}
    of_another = sympy.Eq(Mod(N, M), 0)
    assert of_a_remainder(of_another)
    assert multiples(of_another) == {}


def test_an_order_stays_as_it_was_asked() -> None:
    for expression in (4 * N >= 2, 2 * N > 2 * M, sympy.true):
        assert reduced(expression) == expression


def rearranged(x: Tensor) -> Tensor:
    """As libraries of patterns do it: a shape with all sizes computed."""
    return x.reshape(x.shape[0], x.shape[1] // 8, 8, WIDTH).transpose(1, 2).flatten(2)


def turned_windows(x: Tensor) -> Tensor:
    b, n, _ = x.shape
    parts = x.view(b, n // 8, 8, WIDTH // 8, 8).permute(0, 1, 3, 2, 4).contiguous()
    return parts.view(-1, 8, 8).view(b, n, WIDTH)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "view": (lambda x: x.view(-1, x.shape[1] // 8, 8, WIDTH), 8),
    "view of a batch": (lambda x: x.view(x.shape[0], x.shape[1] // 8, 8, WIDTH), 8),
    "view, blocks counted": (lambda x: x.view(x.shape[0], -1, 8, WIDTH), 8),
    "reshape": (lambda x: x.reshape(-1, 8, WIDTH).mul(2).view(x.shape), 8),
    "reshape of all": (
        lambda x: x.reshape(x.shape[0] * x.shape[1] // 8, 8, WIDTH).mul(2).view(x.shape),
        8,
    ),
    "unflatten": (lambda x: x.unflatten(1, (-1, 8)), 8),
    "unfold": (lambda x: x.unfold(1, 8, 8).flatten(2).view(x.shape[0], -1, 8 * WIDTH) + x.view(
        x.shape[0], -1, 8 * WIDTH), 8),
    "chunk": (lambda x: torch.mul(*x.chunk(2, 1)), 2),
    "tensor_split": (lambda x: torch.mul(*torch.tensor_split(x, 2, dim=1)), 2),
    "split": (lambda x: torch.mul(*x.split(x.shape[1] // 2, 1)), 2),
    "every other": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], -1), 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x[:, None], 4), 4),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x.unflatten(-1, (8, -1)), 2), 4),
    "rearrange": (rearranged, 8),
    "windows": (turned_windows, 8),
}  # fmt: skip


class Cut(nn.Module):
    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.inner(x))


@pytest.mark.parametrize(
    "name", ["view", *(pytest.param(n, marks=pytest.mark.slow) for n in FORMS if n != "view")]
)
def test_a_size_that_has_to_be_a_multiple_is_told_with_it(name: str) -> None:
    form, unit = FORMS[name]
    spec = ModelSpec(Cut(form), {"x": torch.randn(2, 24, WIDTH)}, {"x": {0: "batch", 1: "n:8:64"}})
    with pytest.raises(InputError) as caught:
        capture(spec)
    message = str(caught.value)
    assert f"'n' a multiple of {unit}" in message
    assert "Pad inside forward to such a multiple" in message
    assert f"F.pad(x, (0, -n % {unit}))" in message
    assert f"{unit}*NAME" in message
    assert f"{Path(__file__).name}, line" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_an_axis_that_is_named_as_a_multiple_is_traced(name: str) -> None:
    form, unit = FORMS[name]
    module = Cut(form).eval()
    spec = ModelSpec(
        module, {"x": torch.randn(2, 24, WIDTH)}, {"x": {0: "batch", 1: f"{unit}*blocks:1:32"}}
    )
    program, _ = capture(spec)
    x = torch.randn(3, 5 * unit, WIDTH)
    (found,) = program.module()(x=x)
    torch.testing.assert_close(found, module(x))


def test_many_points_at_once() -> None:
    windows = N + Mod(4 - Mod(N, 4), 4)
    points = [{B: b, N: n, M: m} for b in (1, 3) for n in range(1, 20) for m in (2, 4, 9)]
    for relation in (
        sympy.Eq(Mod(B * windows * M, FloorDiv(windows, M) + 1), 0),
        sympy.And(windows >= M, sympy.Or(sympy.Ne(N, M), sympy.Max(N, 7) < 12)),
        sympy.Gt(B**2 * 10**20, N * 10**20),  # an operator that is not in the table, large numbers
        sympy.Eq(FloorDiv(N, M - 2), 1),  # not defined where m is 2
        sympy.Eq(FloorDiv(windows * M, windows), M),  # true everywhere
        sympy.true,
    ):
        found = holding(relation, points)
        assert found == [holds(relation, point) for point in points], relation
        assert not relation.free_symbols or any(found)
    assert holding(sympy.Eq(N, 1), []) == []
