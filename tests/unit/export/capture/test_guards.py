"""Relations between sizes that a trace takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sympy
import torch
import torch.nn.functional as F
from tests.traced_for_tests import HEADS, WIDTH, Block, exported_equal
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec
from crossfuse.core.tensors import Dim
from crossfuse.export.capture.guards import Guard, GuardLog, tried
from crossfuse.export.capture.trace import capture

N, M = sympy.symbols("s1 s2", integer=True, positive=True)
DIMS = {N: "n", M: "m"}


def log_of(*expressions: object) -> GuardLog:
    log = GuardLog({"n": 5, "m": 7}, dims=DIMS)
    log.guards = [Guard(expression, DIMS, "model.py, line 3") for expression in expressions]
    return log


def test_relations_are_tried_at_the_sizes_allowed() -> None:
    ranges = {"n": Dim("n", 2, 64), "m": Dim("m", 1, 8)}
    true = sympy.Ne(sympy.Mod(2 * N - 1, N), 0)
    assert tried(log_of(true, sympy.Ge(N + M, 3)), ranges).refused is None
    assert tried(log_of(true), ranges).sizes == []
    # At the smallest sizes every target is compared in any case.
    assert tried(log_of(true), ranges | {"n": Dim("n", 1, 64)}).sizes == []


def test_an_order_of_sizes_is_refused_unless_an_operator_asks() -> None:
    ranges = {"n": Dim("n", 1, 40)}
    log = log_of(N > 8)
    assert tried(log, ranges).refused is log.guards[0]
    log.guards = [Guard(N > 8, DIMS, None, inside=True)]
    assert tried(log, ranges).refused is None
    points = [point["n"] for point in tried(log, ranges).sizes]
    assert points[-1] == 8
    log.guards = [Guard(sympy.GreaterThan(N // 4, 2), DIMS, None, inside=True)]
    assert tried(log, ranges).refused is None
    for expression in (sympy.Eq(N, 8), N <= 8):
        log.guards = [Guard(expression, DIMS, None, inside=True)]
        assert tried(log, ranges).refused is not None


def test_single_sizes_are_compared_and_others_refused() -> None:
    ranges = {"n": Dim("n", 2, 64), "m": Dim("m", 1, 8)}
    assert tried(log_of(sympy.Ne(N, 5)), ranges).sizes == [{"n": 5}]
    several = tried(log_of(sympy.Ne(sympy.Mod(N, 8), 0)), ranges)
    assert several.refused is None
    assert several.sizes == [{"n": 8}, {"n": 40}, {"n": 64}]
    # Of dimensions without end what the eager model can compute, as images of such sizes.
    both = tried(log_of(sympy.Ne(N, M)), {"n": Dim("n", 4), "m": Dim("m", 4)}).sizes
    assert len(both) == 2
    assert all(point["n"] == point["m"] <= 11 for point in both)
    large = tried(log_of(sympy.Ne(N, M)), {"n": Dim("n", 40), "m": Dim("m", 40)}).sizes
    assert large == []
    for expression, text in (
        (sympy.Eq(N, 16), "n == 16"),
        (sympy.Le(N, 16), "n <= 16"),
        (sympy.Eq(sympy.Mod(N, 2), 0), "(n % 2) == 0"),
        (sympy.Lt(N, M), "n < m"),
    ):
        refused = tried(log_of(expression), ranges).refused
        assert refused is not None
        assert refused.text().replace("m > n", "n < m") == text


class Positions(nn.Module):
    """What models do with a table of 16 positions, or with sizes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Parameter(torch.randn(1, 16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.how == "added":
            return x + self.table
        if self.how == "as int":
            return x * float(int(n))
        if self.how == "pairs":
            return x.unflatten(1, (-1, 2)).sum(2)
        if self.how == "joined":
            return x.reshape(x.shape[0], n // 4, 4 * WIDTH)
        return x + self.table[:, :n]


@pytest.mark.parametrize(
    ("how", "holds"),
    [
        pytest.param("added", "n == 16", marks=pytest.mark.slow),
        pytest.param("as int", "n == 16", marks=pytest.mark.slow),
        pytest.param("pairs", "% 2", marks=pytest.mark.slow),
        pytest.param("joined", "4", marks=pytest.mark.slow),
        ("cut", "n <= 16"),
    ],
)
def test_a_fixed_size_is_named_with_its_line(how: str, holds: str) -> None:
    spec = ModelSpec(Positions(how), {"x": torch.randn(2, 16, WIDTH)}, {"x": {1: "n:2:64"}})
    with pytest.raises(InputError) as caught:
        capture(spec)
    message = str(caught.value)
    assert holds in message
    assert "'n'" in message
    assert f"{Path(__file__).name}, line" in message
    assert "got n 2..64" in message
    multiple = {"pairs": 2, "joined": 4}.get(how)
    assert (f"F.pad(x, (0, -n % {multiple}))" in message) == (multiple is not None)
    assert (f"so it takes 'n' a multiple of {multiple} (" in message) == (multiple is not None)


def shifted(scores: Tensor) -> Tensor:
    """Transformer-XL: position j − i of [.., n, 2n − 1] at place (i, j)."""
    b, h, n, r = scores.shape
    return F.pad(scores, (1, 0)).view(b, h, r + 1, n)[:, :, 1:].reshape(b, h, n, r)[..., :n]


class Relative(Block):
    def __init__(self, shift: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shift = shift
        self.p = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        places = torch.arange(n - 1, -n, -1, dtype=x.dtype)[:, None]
        waves = (places * torch.arange(1, WIDTH + 1).to(x.dtype) / WIDTH).sin()
        q, k, v = (self.heads(f(x)) for f in (self.q, self.k, self.v))
        near = self.shift(q @ self.heads(self.p(waves)[None]).transpose(-2, -1))
        scores = (q @ k.transpose(-2, -1) + near) / (WIDTH // HEADS) ** 0.5
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def gathered(scores: Tensor) -> Tensor:
    """The same, by an index."""
    n = scores.shape[2]
    index = torch.arange(n)[None, :] - torch.arange(n)[:, None] + n - 1
    return scores.gather(-1, (2 * n - 2 - index).expand(*scores.shape[:2], n, n).contiguous())


class Windows(Block):
    """Attention within windows of 4, of a padded sequence, cut to its length again."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        x = F.pad(x, (0, 0, 0, -n % 4))
        parts = x.reshape(-1, 4, WIDTH)
        return super().forward(parts, parts).reshape(x.shape[0], -1, WIDTH)[:, :n]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [Relative(shifted), Relative(gathered), Windows()], ids=["shifted", "gathered", "w"]
)
def test_what_the_tracer_cannot_prove_is_exported(module: nn.Module, tmp_path: Path) -> None:
    def inputs(*shape: int) -> dict[str, Tensor]:
        return {"x": torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(3))}

    dynamic = {"x": {0: "batch:1:8", 1: "n:1:64"}}
    spec = ModelSpec(module.eval(), inputs(2, 5), dynamic)
    points = [inputs(1, 7), inputs(3, 2), inputs(2, 16), inputs(2, 1)]
    exported_equal(spec, tmp_path / "b", points=points)
