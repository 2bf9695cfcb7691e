"""Sinks that are keys of their own beside the keys of a context: repeated to the context's batch or
to the queries', in every form, with one and with several queries per context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from tests.context_products import context_products
from tests.traced_for_tests import HEADS, WIDTH, Block, inputs_of, spec_of
from torch import Tensor, nn

import crossfuse
from crossfuse import runtime

SINKS, SIZE = 3, WIDTH // HEADS
FAN_OUTS = ((1, 1, 7, 4), (2, 3, 1, 9), (1, 4, 5, 1), (3, 1, 4, 6))
"""Contexts, queries of each, tokens of a query and of a context."""

Make = Callable[["Sunk", Tensor, Tensor], Tensor]


class Sunk(Block):
    """Attention of x to y and to learned keys, which ``attend`` puts beside y's."""

    def __init__(self, attend_with: Make) -> None:
        super().__init__()
        self.with_sinks = attend_with
        self.keys, self.values = (nn.Parameter(torch.randn(1, HEADS, SINKS, SIZE)) for _ in "kv")
        self.tokens = nn.Parameter(torch.randn(1, SINKS, WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.o(self.with_sinks(self, x, y).transpose(1, 2).flatten(2))

    def projected(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))


def beside(repeated: Callable[[Tensor, Tensor, Tensor], Tensor], *, first: bool = True) -> Make:
    """Keys of y, and sinks that a function of (sinks, x, y) repeats to the batch."""

    def attend(m: Sunk, x: Tensor, y: Tensor) -> Tensor:
        q, *own = m.projected(x, y)
        sinks = (repeated(rows, x, y) for rows in (m.keys, m.values))
        k, v = (
            torch.cat([sink, t] if first else [t, sink], 2)
            for sink, t in zip(sinks, own, strict=True)
        )
        return F.scaled_dot_product_attention(q, k, v)

    return attend


def tokens_in_front(m: Sunk, x: Tensor, y: Tensor) -> Tensor:
    q, k, v = m.projected(x, torch.cat([m.tokens.repeat(x.shape[0], 1, 1), y], 1))
    return F.scaled_dot_product_attention(q, k, v)


FORMS: dict[str, Make] = {
    "repeated to the context": beside(lambda s, x, y: s.repeat(y.shape[0], 1, 1, 1)),
    "expanded, behind": beside(lambda s, x, y: s.expand(y.shape[0], -1, -1, -1), first=False),
    "repeated to the queries": beside(lambda s, x, y: s.repeat(x.shape[0], 1, 1, 1)),
    "interleaved": beside(lambda s, x, y: s.repeat_interleave(y.shape[0], 0)),
    "gathered": beside(lambda s, x, y: s[torch.zeros(y.shape[0], dtype=torch.long)]),
    "zeros": beside(lambda s, x, y: torch.zeros(y.shape[0], *s.shape[1:], dtype=s.dtype)),
    "tokens": tokens_in_front,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_sinks_beside_a_context(form: str, tmp_path: Path) -> None:
    spec = spec_of(Sunk(FORMS[form]), context=("y",))
    bundle = crossfuse.export(spec, tmp_path / "b", targets=["ort-cpu"])
    assert [row.fused["ort-cpu"] is not None for row in bundle.ledger] == [True]
    files = bundle.manifest.targets["ort-cpu"].stages
    graphs = {stage: ir.load(bundle.path / file) for stage, file in files.items()}
    frontier = {tensor.name for tensor in bundle.manifest.stages["context"].outputs}
    # Keys and values of y, whatever stands beside them.
    assert context_products(graphs["context"], {"y"}) == 2
    assert context_products(graphs["query"], frontier) == 0
    truth = spec.module.double()
    with runtime.load(tmp_path / "b") as session:
        for contexts, fan_out, queries, keys in FAN_OUTS:
            x = inputs_of(contexts * fan_out, queries, 1, seed=keys)["x"]
            y = inputs_of(contexts, 1, keys, seed=queries)["y"]
            (got,) = session.query(session.encode(y=y.numpy()), x=x.numpy()).values()
            with torch.no_grad():
                expected = truth(x.double(), y.double().repeat_interleave(fan_out, 0))
            np.testing.assert_allclose(got, expected.numpy(), atol=2e-5, rtol=0)
