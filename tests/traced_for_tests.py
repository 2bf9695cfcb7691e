"""An attention block whose parts a test writes its own way, exported and compared with itself in
float64 at other sizes than the example's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.module_state import kept_state

__all__ = ["DYNAMIC", "HEADS", "SIZES", "WIDTH", "Block", "exported_equal", "inputs_of", "spec_of"]

WIDTH, HEADS = 32, 4
DYNAMIC = {"x": {0: "batch:1:8", 1: "queries:1:64"}, "y": {0: "batch", 1: "keys:1:64"}}
SIZES = ((1, 7, 1), (3, 1, 11), (2, 9, 20), (2, 5, 5))
"""Of batch, queries and keys: none is the example's."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Projections around an attention over [batch, heads, length, size]."""

    def __init__(self, attend: Attend = F.scaled_dot_product_attention) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attend = attend

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
        return self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))


def inputs_of(batch: int = 2, queries: int = 3, keys: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, queries, WIDTH, generator=generator),
        "y": torch.randn(batch, keys, WIDTH, generator=generator),
    }


def spec_of(module: nn.Module, **changes: object) -> ModelSpec:
    fields = {"inputs": inputs_of(), "dynamic": DYNAMIC} | changes
    return ModelSpec(module.eval(), **fields)  # type: ignore[arg-type]


def exported_equal(
    spec: ModelSpec,
    folder: Path,
    *,
    fused: int = 1,
    points: Iterable[dict[str, Tensor]] | None = None,
    truth: nn.Module | None = None,
) -> crossfuse.Bundle:
    """Export; every attention is fused, and results are those of the module in float64."""
    bundle = crossfuse.export(spec, folder)
    assert [row.fused["ort-cpu"] is not None for row in bundle.ledger] == [True] * fused
    module = (truth or spec.module).double()
    if points is None:
        points = [inputs_of(*sizes, seed=i + 1) for i, sizes in enumerate(SIZES)]
    with runtime.load(folder) as session:
        for inputs in points:
            wide = {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}
            with torch.no_grad(), without_fast_paths(), kept_state(module):
                expected = module(**wide)
            (got,) = session.run({name: t.numpy() for name, t in inputs.items()}).values()
            np.testing.assert_allclose(got, expected.detach().numpy(), atol=2e-5, rtol=0)
    return bundle
