"""Modules as their authors write them: keys repeated as often as a size says, weights that are made
of weights, forwards behind decorators. Each is fused and equal to float64 at other sizes than the
example's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.traced_for_tests import WIDTH, Block, exported_equal, spec_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def each_key_for_each_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query i sees the copies i of all keys, as text that follows images sees the last one's."""
    queries, keys = q.shape[2], k.shape[2]
    k, v = (t.repeat_interleave(queries, dim=2) for t in (k, v))
    of_query = torch.arange(queries).repeat(keys)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(
        torch.arange(queries)[:, None] != of_query, -torch.finfo(q.dtype).max
    )
    return scores.softmax(-1) @ v


def times_of_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys of several images: each query sees those of its own image and the ones before."""
    images = q.shape[2]
    k, v = (t.repeat_interleave(images, dim=-2) for t in (k, v))
    time = torch.arange(images).repeat_interleave(v.shape[2] // images)
    seen = time <= torch.arange(images)[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@pytest.mark.slow
@pytest.mark.parametrize("attend", [each_key_for_each_query, times_of_keys])
def test_repeated_as_often_as_a_size_says(attend: Callable[..., Tensor], tmp_path: Path) -> None:
    exported_equal(spec_of(Block(attend)), tmp_path / "b")


class Mixed(Block):
    """Tokens are changed by matrices made of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        turned = torch.matrix_exp(self.mixing - self.mixing.T)
        orthogonal, triangular = torch.linalg.qr(self.mixing)
        return super().forward(
            x @ torch.linalg.inv(self.mixing) @ turned, y @ orthogonal + y @ triangular / 4
        )


def parametrized() -> Block:
    block = Block()
    parametrizations.orthogonal(block.q, orthogonal_map="cayley")
    parametrizations.orthogonal(block.k, orthogonal_map="householder")
    parametrizations.orthogonal(block.v, use_trivialization=False)
    parametrizations.spectral_norm(parametrizations.weight_norm(block.o))
    return block


@pytest.mark.slow
@pytest.mark.parametrize("make", [Mixed, parametrized])
def test_weights_made_of_weights(make: Callable[[], Block], tmp_path: Path) -> None:
    exported_equal(spec_of(make()), tmp_path / "b")


def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **kwargs)

    return call


class Wrapped(Block):
    @decorated
    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs)


@pytest.mark.slow
def test_a_forward_behind_decorators(tmp_path: Path) -> None:
    exported_equal(spec_of(Wrapped()), tmp_path / "b")
