"""What crosses the boundary of two stages besides keys and values: outputs of the context alone,
and sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec, runtime

WIDTH, HEADS = 16, 4
DYNAMIC = {"x": {0: "batch:1:8", 1: "nx:1:16"}, "y": {0: "batch", 1: "ny:3:32"}}


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Cross(nn.Module):
    """Attention over pairs of rows of ``y``, which is also given back in several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def attend(self, x: Tensor, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            heads(self.q(x)), heads(self.k(pairs)), heads(self.v(pairs)), mask
        )


class OutputsOfTheContext(Cross):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        pairs = torch.cat([y, y.flip(1)], -1)
        states = self.k(pairs)
        return {
            "out": self.attend(x, pairs),
            "states": states,
            "apart": heads(states),
            "mean": states.mean(1),
            "own": y,
        }


class SizeOfTheContext(Cross):
    """A mask of half the length: the query stage needs a size that no key or value has."""

    def forward(self, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
        every = y[:, ::2]
        pairs = torch.cat([every, every.flip(1)], -1)
        shown = torch.arange((y.shape[1] + 1) // 2)[None] < lengths.clamp(1)[:, None]
        return self.attend(x, pairs, shown[:, None, None])


def test_outputs_of_the_context_alone_have_the_queries_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OutputsOfTheContext().eval()
    spec = ModelSpec(
        module,
        {"x": torch.randn(2, 3, WIDTH), "y": torch.randn(2, 6, WIDTH)},
        DYNAMIC,
        context=("y",),
    )
    bundle = crossfuse.export(spec, tmp_path / "b", ["onnx", "ort-cpu"])
    assert set(bundle.manifest.stages) == {"context", "query"}
    x, y = torch.randn(6, 5, WIDTH), torch.randn(2, 9, WIDTH)
    expected = module(x, y.repeat_interleave(3, 0))
    with runtime.load(bundle.path, "ort-cpu") as session:
        outputs = session.query(session.encode(y=y.numpy()), x=x.numpy())
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(outputs[name].copy()), value, atol=1e-5, rtol=1e-5
        )


def test_a_size_that_only_the_context_has_is_handed_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SizeOfTheContext().eval()
    inputs = {
        "x": torch.randn(2, 3, WIDTH),
        "y": torch.randn(2, 6, WIDTH),
        "lengths": torch.tensor([3, 1]),
    }
    dynamic = {**DYNAMIC, "lengths": {0: "batch"}}
    bundle = crossfuse.export(ModelSpec(module, inputs, dynamic, context=("y",)), tmp_path / "b")
    assert set(bundle.manifest.stages) == {"context", "query"}
    x, y, lengths = torch.randn(4, 5, WIDTH), torch.randn(2, 8, WIDTH), torch.tensor([1, 4, 2, 3])
    expected = module(x, y.repeat_interleave(2, 0), lengths)
    with runtime.load(bundle.path) as session:
        (got,) = session.query(
            session.encode(y=y.numpy()), x=x.numpy(), lengths=lengths.numpy()
        ).values()
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-5, rtol=1e-5)


class CountedPositions(nn.Module):
    """Positions count the tokens that are no padding, as fairseq's do: a step would need the count
    so far."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, WIDTH), nn.Embedding(40, WIDTH)
        self.own, self.cross = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2)
        )

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        shown = ids.ne(1).int()
        x = self.tokens(ids) + self.places((torch.cumsum(shown, 1) * shown).long())
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x = x + self.own(x, x, x, attn_mask=later, need_weights=False)[0]
        return x + self.cross(x, y, y, need_weights=False)[0]


def test_running_sums_are_not_decoded_step_by_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {"ids": torch.tensor([[5, 6, 1, 7], [8, 9, 2, 3]]), "y": torch.randn(2, 5, WIDTH)}
    dynamic = {"ids": {0: "batch:1:8", 1: "text:2:16"}, "y": {0: "batch", 1: "ny:1:16"}}
    spec = ModelSpec(CountedPositions().eval(), inputs, dynamic, context=("y",), decode="ids")
    with pytest.raises(
        InputError, match="step by step: CumSum makes what stands for a token of other tokens"
    ):
        crossfuse.export(spec, tmp_path / "b")
    bundle = crossfuse.export(replace(spec, decode_where_possible=True), tmp_path / "b")
    assert set(bundle.manifest.stages) == {"context", "query"}
