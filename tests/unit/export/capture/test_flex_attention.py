"""``flex_attention`` with modifications of the scores and masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.traced_for_tests import (
    DYNAMIC,
    HEADS,
    SIZES,
    WIDTH,
    Block,
    exported_equal,
    inputs_of,
    spec_of,
)
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

import crossfuse
from crossfuse.export.capture.flex_attention import flex_as_sdpa

TABLE = torch.randn(HEADS, 129, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2, 2]])
SCORES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "distance": lambda s, b, h, q, k: s - 0.1 * (q - k).abs(),
    "alibi": lambda s, b, h, q, k: s + (k - q) * torch.exp2(-(h + 1) * 2.0),
    "table": lambda s, b, h, q, k: s + TABLE[h, q - k + 64],
    "scale": lambda s, b, h, q, k: 1 + s * 0.5,
    "by head": lambda s, b, h, q, k: s * (h + 1),
    "by key": lambda s, b, h, q, k: s / (1 + 0.1 * k),
    "by both": lambda s, b, h, q, k: s * (q - k),
    "hidden": lambda s, b, h, q, k: torch.where(q >= k, s, -math.inf),
    "hidden here": lambda s, b, h, q, k: torch.where(q < k, float("-inf"), s),
    "filled": lambda s, b, h, q, k: torch.where(q >= k, s, -2.0),
    "capped": lambda s, b, h, q, k: 5 * torch.tanh(s / 5),
}
MASKS: dict[str, Callable[..., Any]] = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q - k).abs() < 3,
    "by head": lambda b, h, q, k: (q >= k) | (h > 1),
    "documents": lambda b, h, q, k: DOCUMENTS[b, q] == DOCUMENTS[b, k],
    "nothing": lambda b, h, q, k: k < 0,
}


def eager(*args: Any, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> Any:
    """As PyTorch computes it, without its compiler."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return flex_attention(*args, **kwargs)


def operands(key_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, HEADS, 6, 8), (2, key_heads, 7, 8), (2, key_heads, 7, 5)
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return q, k, v


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_modified_as_pytorch_does(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for heads in (HEADS, 2):
        given = {"score_mod": SCORES[score], "enable_gqa": heads != HEADS, "scale": 0.3}
        expected = eager(*operands(heads), monkeypatch=monkeypatch, **given)
        with flex_as_sdpa():
            got = flex_attention(*operands(heads), **given)
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_those_of_pytorch(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(call: Callable[..., Any], **extra: Any) -> Tensor:
        blocks = create_block_mask(MASKS[mask], 2, HEADS, 6, 7, device="cpu")
        result = call(*operands(), score_mod=SCORES["alibi"], block_mask=blocks, **extra)
        return result  # type: ignore[no-any-return]

    expected = run(eager, monkeypatch=monkeypatch)
    with flex_as_sdpa():
        got = run(flex_attention)
    assert torch.allclose(got, expected, atol=1e-12)
    assert mask != "nothing" or not got.any()


def test_logarithms_of_sums_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"score_mod": SCORES["alibi"], "return_aux": flex.AuxRequest(lse=True)}
    expected = eager(*operands(), monkeypatch=monkeypatch, **asked)[1].lse
    with flex_as_sdpa():
        got = flex_attention(*operands(), **asked)[1].lse
    assert torch.allclose(got, expected, atol=1e-12)


def by_distance(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return s - 0.1 * (q - k).abs()


class Masked(Block):
    """A mask that an input says, and a bias that a parameter holds."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(HEADS))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return mask[b, k] > 0

        def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q - k).abs() < 4

        blocks = create_block_mask(
            and_masks(seen, near), x.shape[0], None, x.shape[1], y.shape[1], device="cpu"
        )
        q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
        out = flex_attention(
            q, k, v, lambda s, b, h, i, j: s + self.slopes[h] * (i - j), block_mask=blocks
        )
        return self.o(out.transpose(1, 2).flatten(2))


@pytest.mark.slow
def test_a_model_of_it_is_fused(tmp_path: Path) -> None:
    def masked(batch: int, queries: int, keys: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(batch, keys, generator=generator) > 0.3
        mask[:, 0] = True
        return inputs_of(batch, queries, keys, seed) | {"mask": mask.long()}

    spec = spec_of(
        Masked(),
        inputs=masked(2, 3, 6, 0),
        dynamic=DYNAMIC | {"mask": {0: "batch", 1: "keys"}},
    )
    points = [masked(*sizes, seed=i + 1) for i, sizes in enumerate(SIZES)]
    exported_equal(spec, tmp_path / "b", points=points)


@pytest.mark.slow
@pytest.mark.parametrize("score", [name for name in SCORES if name not in ("filled", "by both")])
def test_modified_scores_are_exported(score: str, tmp_path: Path) -> None:
    module = Block(lambda q, k, v: flex_attention(q, k, v, score_mod=SCORES[score]))
    if score == "capped":
        with pytest.raises(crossfuse.FusionError, match="go through Tanh"):
            crossfuse.export(spec_of(module), tmp_path / "b")
        return
    exported_equal(spec_of(module), tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "window", "by head"])
def test_masked_scores_are_exported(mask: str, tmp_path: Path) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        blocks = create_block_mask(MASKS[mask], None, HEADS, q.shape[2], k.shape[2], device="cpu")
        return flex_attention(q, k, v, score_mod=by_distance, block_mask=blocks)

    exported_equal(spec_of(Block(attend)), tmp_path / "b")


@pytest.mark.slow
def test_fewer_key_heads_and_a_compiled_call_are_exported(tmp_path: Path) -> None:
    compiled = torch.compile(flex_attention)

    class Grouped(Block):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.v = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            q = self.heads(self.q(x))
            k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (self.k(y), self.v(y)))
            out = compiled(q, k, v, score_mod=by_distance, enable_gqa=True)
            return self.o(out.transpose(1, 2).flatten(2))

    exported_equal(spec_of(Grouped()), tmp_path / "b")
