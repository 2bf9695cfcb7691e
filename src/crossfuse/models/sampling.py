"""Seeded weights and inputs for the zoo: normal features, padded masks whose values matter, never
zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["features", "initialised", "padding", "tokens"]

M = TypeVar("M", bound=nn.Module)


def features(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal float32 of the given shape."""
    return torch.randn(*shape, generator=generator)


def tokens(generator: torch.Generator, vocabulary: int, *shape: int) -> Tensor:
    """Token ids in ``1 … vocabulary-1``, int64 of the given shape."""
    return torch.randint(1, vocabulary, shape, generator=generator)


def padding(generator: torch.Generator, batch: int, length: int) -> Tensor:
    """An attention mask ``[batch, length]``, int64: each row keeps a random prefix of at least one,
    the last of many all."""
    kept = torch.randint(1, length + 1, (batch,), generator=generator)
    if batch > 1:
        kept[-1] = length
    return (torch.arange(length) < kept[:, None]).long()


def initialised(build: Callable[[], M], seed: int) -> M:
    """Build a module with seeded weights, in eval mode.

    Norms and biases are perturbed so that none is idle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()
