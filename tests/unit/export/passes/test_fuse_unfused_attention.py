"""Attention written out by hand, from the mathematics: every usual form becomes one operator and
keeps its numbers.

The truth is the eager module in float64 (the parity gate of `crossfuse.export`); look-alikes must
be left alone, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import FusionError, ModelSpec
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.export.fuse import fuse
from crossfuse.export.passes.fuse_unfused_attention import FuseUnfusedAttentionPass
from crossfuse.graph.attention_node import attentions
from onnx_building import Graph, normal
from small_graphs import applied, counts, fused, model_of, untouched

WIDTH, HEADS = 16, 4
SIZE = WIDTH // HEADS


class Written(nn.Module):
    """Projections, then one way of writing attention out, then a projection."""

    def __init__(self, how: Callable[..., Tensor], key_width: int = WIDTH) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, key_width),
            nn.Linear(WIDTH, key_width),
        )
        self.out = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(HEADS, 72, 72))
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.how(self, self.q(x), self.k(y), self.v(y), mask > 0))


def heads(t: Tensor, count: int = HEADS) -> Tensor:
    return t.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


FORMS: dict[str, Callable[..., Tensor]] = {}


def form(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    FORMS[function.__name__] = function
    return function


@form
def division(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT / math.sqrt(SIZE)).softmax(-1) @ heads(v))


@form
def scale_on_the_queries(m, q, k, v, mask):
    return merged((heads(q * SIZE**-0.5) @ heads(k).mT).softmax(-1) @ heads(v))


@form
def scale_on_the_keys(m, q, k, v, mask):
    return merged((heads(q) @ (heads(k).mT * SIZE**-0.5)).softmax(-1) @ heads(v))


@form
def additive_mask(m, q, k, v, mask):
    added = (1 - mask[:, None, None, :].to(q.dtype)) * torch.finfo(torch.float32).min
    return merged((heads(q) @ heads(k).mT / 2 + added).softmax(-1) @ heads(v))


@form
def where_mask(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    return merged(torch.where(mask[:, None, None, :], scores, -torch.inf).softmax(-1) @ heads(v))


@form
def masked_fill(m, q, k, v, mask):
    scores = (heads(q) @ heads(k).mT / 2).masked_fill(~mask[:, None, None, :], float("-inf"))
    return merged(scores.softmax(-1) @ heads(v))


@form
def finite_fill(m, q, k, v, mask):
    scores = (heads(q) @ heads(k).mT / 2).masked_fill(~mask[:, None, None, :], -1e9)
    return merged(scores.softmax(-1) @ heads(v))


@form
def small_fill_with_rows_without_keys(m, q, k, v, mask):
    """Rows that see nothing average the values: a fill of −10⁴ is far above what vanishes beside
    scores in float32."""
    seen = mask[:, None, None, :] & (torch.arange(q.shape[1]) > 0)[:, None]
    scores = (heads(q) @ heads(k).mT / 2).masked_fill(~seen, -1e4)
    return merged(scores.softmax(-1) @ heads(v))


@form
def fill_before_the_scale(m, q, k, v, mask):
    scores = (heads(q) @ heads(k).mT).masked_fill(~mask[:, None, None, :], -1e9)
    return merged((scores / 2).softmax(-1) @ heads(v))


@form
def bias_before_the_scale(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT + m.table[:, : q.shape[1], : k.shape[1]]
    return merged((scores * 0.5).softmax(-1) @ heads(v))


@form
def two_masks(m, q, k, v, mask):
    causal = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(2)
    scores = (heads(q) @ heads(k).mT / 2).masked_fill(~causal, -torch.inf)
    return merged(torch.where(mask[:, None, None, :], scores, -torch.inf).softmax(-1) @ heads(v))


@form
def float32_island(m, q, k, v, mask):
    scores = (heads(q) @ heads(k).mT / 2).to(torch.float32)
    return merged(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ heads(v))


@form
def subtracted_maximum(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    return merged((scores - scores.amax(-1, keepdim=True)).softmax(-1) @ heads(v))


@form
def clamped_far_out(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    return merged((scores - scores.max()).clamp(-50000, 50000).softmax(-1) @ heads(v))


@form
def relative_bias(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2 + m.table[:, : q.shape[1], : k.shape[1]]
    return merged(scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1) @ heads(v))


@form
def bias_made_of_queries(m, q, k, v, mask):
    """Relative positions by a product of the queries with a table."""
    q = heads(q)
    positions = q @ m.table[:, :SIZE, : k.shape[1]]
    return merged((q @ heads(k).mT / 2 + positions).softmax(-1) @ heads(v))


@form
def cosine_similarity(m, q, k, v, mask):
    q, k = F.normalize(heads(q), dim=-1), F.normalize(heads(k), dim=-1)
    return merged((q @ k.mT * m.temperature.exp()).softmax(-1) @ heads(v))


@form
def temperature_per_head(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT / m.temperature).softmax(-1) @ heads(v))


@form
def query_norm(m, q, k, v, mask):
    q, k = F.rms_norm(heads(q), (SIZE,)), F.rms_norm(heads(k), (SIZE,))
    return merged((q @ k.mT).softmax(-1) @ heads(v))


@form
def one_head(m, q, k, v, mask):
    return (q @ k.mT / 4).softmax(-1) @ v


@form
def merged_baddbmm(m, q, k, v, mask):
    q, k, v = (heads(t).flatten(0, 1) for t in (q, k, v))
    added = (
        torch.where(mask, 0.0, -10000.0)
        .to(q.dtype)[:, None, None, :]
        .expand(-1, HEADS, q.shape[1], -1)
        .flatten(0, 1)
    )
    out = torch.baddbmm(added, q, k.mT, beta=1, alpha=SIZE**-0.5).softmax(-1).bmm(v)
    return merged(out.unflatten(0, (-1, HEADS)))


@form
def merged_heads_split_for_the_mask(m, q, k, v, mask):
    q, k, v = (heads(t).flatten(0, 1) for t in (q, k, v))
    scores = torch.bmm(q, k.mT).unflatten(0, (-1, HEADS)) + torch.where(mask, 0.0, -torch.inf)[
        :, None, None
    ].to(q.dtype)
    return merged(torch.bmm(scores.flatten(0, 1).softmax(-1), v).unflatten(0, (-1, HEADS)))


@form
def sequence_first(m, q, k, v, mask):
    """As in PyTorch's own module: [length, batch·heads, size]."""
    length, batch = q.shape[1], q.shape[0]
    q, k, v = (t.transpose(0, 1).reshape(t.shape[1], -1, SIZE).transpose(0, 1) for t in (q, k, v))
    out = (torch.bmm(q, k.mT) / 2).softmax(-1).bmm(v)
    return out.transpose(0, 1).reshape(length, batch, WIDTH).transpose(0, 1)


@form
def einsum(m, q, k, v, mask):
    q, k, v = (t.unflatten(-1, (HEADS, SIZE)) for t in (q, k, v))
    scores = torch.einsum("b i h d, b j h d -> b h i j", q, k) * SIZE**-0.5
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.finfo(scores.dtype).max)
    return torch.einsum("b h i j, b j h d -> b i h d", scores.softmax(-1), v).flatten(2)


@form
def einsum_in_another_order(m, q, k, v, mask):
    q, k, v = (t.unflatten(-1, (HEADS, SIZE)) for t in (q, k, v))
    weights = torch.einsum("blhd,bshd->blsh", q, k).div(2).softmax(2)
    return torch.einsum("blsh,bshd->blhd", weights, v).flatten(2)


@form
def transposed(m, q, k, v, mask):
    """K Qᵀ with the softmax over the keys' axis, then Vᵀ times it."""
    weights = (heads(k) @ heads(q).mT / 2).softmax(-2)
    return merged((heads(v).mT @ weights).mT)


@form
def grouped_queries(m, q, k, v, mask):
    """Two heads of keys, each for two heads of queries, on an axis of their own."""
    q = heads(q).unflatten(1, (2, 2))
    k, v = (heads(t[..., : WIDTH // 2], 2)[:, :, None] for t in (k, v))
    return merged(((q @ k.mT / 2).softmax(-1) @ v).flatten(1, 2))


@form
def repeated_heads(m, q, k, v, mask):
    def repeat(t):
        return (
            t[:, :, None]
            .expand(-1, -1, 2, -1, -1)
            .reshape(t.shape[0], HEADS, t.shape[2], t.shape[3])
        )

    k, v = (repeat(heads(t[..., : WIDTH // 2], 2)) for t in (k, v))
    return merged((heads(q) @ k.mT / 2).softmax(-1) @ v)


@form
def multi_query(m, q, k, v, mask):
    k, v = k[:, None, :, :SIZE], v[:, None, :, :SIZE]
    return merged((heads(q) @ k.mT / 2).softmax(-1) @ v)


@form
def dropout_in_eval_mode(m, q, k, v, mask):
    return merged(F.dropout((heads(q) @ heads(k).mT / 2).softmax(-1), 0.1, m.training) @ heads(v))


@form
def one_probability_two_values(m, q, k, v, mask):
    weights = (heads(q) @ heads(k).mT / 2).softmax(-1)
    return merged(weights @ heads(v)) + merged(weights @ heads(k))


@form
def shared_scores(m, q, k, v, mask):
    """Both directions from one product, as in bidirectional cross-attention."""
    scores = heads(q) @ heads(k).mT / 2
    there = scores.softmax(-1) @ heads(v)
    back = scores.mT.softmax(-1) @ heads(q)
    return merged(there) + merged(back).mean(1, keepdim=True)


@form
def masked_again_after_the_softmax(m, q, k, v, mask):
    """Rows without keys are 0."""
    hidden = ~mask[:, None, None, :] | (torch.arange(q.shape[1]) == 1)[:, None]
    scores = (heads(q) @ heads(k).mT / 2).masked_fill(hidden, -1e4)
    return merged(scores.softmax(-1).masked_fill(hidden, 0.0) @ heads(v))


@form
def masked_after_the_softmax_alone(m, q, k, v, mask):
    weights = (heads(q) @ heads(k).mT / 2).softmax(-1) * mask[:, None, None, :]
    return merged((weights * m.temperature) @ heads(v))


@form
def assigned_mask(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    scores[~mask[:, None, None, :].expand_as(scores)] = -torch.inf
    return merged(scores.softmax(-1) @ heads(v))


@form
def written_softmax(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * mask[:, None, None, :]
    return merged(weights / weights.sum(-1, keepdim=True) @ heads(v))


@form
def summed_products(m, q, k, v, mask):
    scores = (heads(q)[:, :, :, None] * heads(k)[:, :, None]).sum(-1) / 2
    weights = scores.masked_fill(mask[:, None, None, :] == 0, -1e9).softmax(-1)
    return merged((weights[..., None] * heads(v)[:, :, None]).sum(-2))


@form
def summed_merged_heads(m, q, k, v, mask):
    q, k, v = (heads(t).flatten(0, 1) for t in (q, k, v))
    scores = torch.sum(q.unsqueeze(2) * k.unsqueeze(1) * SIZE**-0.5, dim=3)
    weights = scores.softmax(-1) * mask[:, None].expand(-1, HEADS, -1).flatten(0, 1)[:, None]
    weights = weights / weights.sum(-1, keepdim=True)
    return merged((v.unsqueeze(1) * weights.unsqueeze(3)).sum(2).unflatten(0, (-1, HEADS)))


@form
def summed_scores_expanded(m, q, k, v, mask):
    q, k = heads(q)[:, :, :, None], heads(k)[:, :, None]
    q, k = torch.broadcast_tensors(q, k)
    scores = (q * k / 2).sum(-1) + (1 - mask[:, None, None, :].float()) * -1e9
    return merged(scores.softmax(-1) @ heads(v))


SITES = {"one_probability_two_values": 2, "shared_scores": 2}
ALONE = ("one_head", "summed_merged_heads")
"""Whose heads stand in the batch, if there are several."""
KV_HEADS = {"grouped_queries": 2, "repeated_heads": 2, "multi_query": 1} | dict.fromkeys(ALONE, 1)


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> object:
        return self.attention(x, y, mask)


def spec_of(module: nn.Module) -> ModelSpec:
    generator = torch.Generator().manual_seed(0)
    return ModelSpec(
        Net(module).eval(),
        {
            "x": torch.randn(2, 3, WIDTH, generator=generator),
            "y": torch.randn(2, 5, WIDTH, generator=generator),
            "mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "x": {0: "batch:1:8", 1: "length:1:64"},
            "y": {0: "batch", 1: "keys:1:64"},
            "mask": {0: "batch", 1: "keys"},
        },
    )


class Several(nn.Module):
    """Several ways on the same inputs, an output each: one export instead of many."""

    def __init__(self, ways: dict[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.ways = nn.ModuleDict({name: Written(how) for name, how in ways.items()})

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {f"of_{name}": way(x, y, mask) for name, way in self.ways.items()}


def export(module: nn.Module, path: Path, *, quick: bool = False) -> crossfuse.Bundle:
    return crossfuse.export(spec_of(module), path / "b", ["onnx", "ort-cpu"], quick=quick)


def check_form(name: str, site: str, rows: list[LedgerRow]) -> None:
    """The rows of the module at the site, which is written in this form."""
    fused = [(row.captured, all(row.fused.values())) for row in rows]
    assert fused == [("pattern", True)] * SITES.get(name, 1), name
    if name not in SITES:
        (row,) = rows
        assert (row.site, row.kind) == (site, "cross")
        assert row.num_heads == (1 if name in ALONE else HEADS), name
        assert row.kv_num_heads == KV_HEADS.get(name, HEADS), name


@pytest.mark.parametrize("part", range(4))
def test_written_out_attention_is_fused(tmp_path: Path, part: int) -> None:
    torch.manual_seed(0)
    names = list(FORMS)[part::4]
    bundle = export(Several({name: FORMS[name] for name in names}), tmp_path, quick=True)
    assert len(bundle.ledger) == sum(SITES.get(name, 1) for name in names)
    for name in names:
        site = f"attention.ways.{name}"
        check_form(name, site, [r for r in bundle.ledger if r.site.partition("#")[0] == site])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORMS))
def test_one_written_out_attention_is_fused(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    check_form(name, "attention", list(export(Written(FORMS[name]), tmp_path).ledger))


@pytest.mark.parametrize(
    "name",
    ["division", "merged_baddbmm", "einsum", "sequence_first", "repeated_heads", "where_mask"],
)
def test_nothing_of_the_written_form_is_left(name: str) -> None:
    """No softmax, and no more layout operators than the arithmetic needs: projections feed the
    operator directly."""
    torch.manual_seed(0)
    ops = [node.op_type for node in fuse(spec_of(Written(FORMS[name]))).model.graph]
    assert "Softmax" not in ops
    assert ops.count("MatMul") == 4
    assert ops.count("Transpose") == 0, ops
    assert "Expand" not in ops or name == "merged_baddbmm"


def test_scales_join() -> None:
    torch.manual_seed(0)
    for name in ("division", "scale_on_the_queries", "scale_on_the_keys"):
        model = fuse(spec_of(Written(FORMS[name]))).model
        (node,) = [n for n in model.graph if n.op_type == "FusedAttention"]
        assert node.attributes["scale"].as_float() == pytest.approx(0.5)
        assert not {"Mul", "Div"} & {n.op_type for n in model.graph}


# ── Look-alikes
# ────────────────────────────────────────────────────────────────────────────

LOOKALIKES: dict[str, tuple[Callable[..., Tensor], str | None]] = {}


def lookalike(reason: str | None) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def keep(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOOKALIKES[function.__name__] = (function, reason)
        return function

    return keep


@lookalike("another axis")
def softmax_over_the_queries(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT / 2).softmax(-2) @ heads(v))


@lookalike("another axis")
def softmax_over_the_heads(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT / 2).softmax(1) @ heads(v))


@lookalike("its scores are also used by")
def scores_used_again(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT / 2
    return merged(scores.softmax(-1) @ heads(v)) + scores.square().sum(-1).transpose(1, 2).mean(
        -1, keepdim=True
    )


@lookalike("attention probabilities are also used by")
def probabilities_used_again(m, q, k, v, mask):
    weights = (heads(q) @ heads(k).mT / 2).softmax(-1)
    return merged(weights @ heads(v)) + weights.amax((1, 3))[..., None]


@lookalike("go through Sub, which the fused operator does not have")
def differential(m, q, k, v, mask):
    scores = heads(q) @ heads(k).mT
    return merged((scores.softmax(-1) - 0.2 * (heads(q) @ heads(v).mT).softmax(-1)) @ heads(v))


@lookalike("not normalised by a softmax")
def sigmoid(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT / 2).sigmoid() @ heads(v))


@lookalike("scores go through|product with weights")
def talking_heads(m, q, k, v, mask):
    scores = torch.einsum("bhij,hg->bgij", heads(q) @ heads(k).mT / 2, m.table[:, :HEADS, 0])
    return merged(scores.softmax(-1) @ heads(v))


@lookalike("Tanh on the way to the softmax, a soft cap")
def capped(m, q, k, v, mask):
    return merged(((heads(q) @ heads(k).mT / 2).tanh() * 5).softmax(-1) @ heads(v))


@lookalike("limited by")
def clamped_nearby(m, q, k, v, mask):
    return merged((heads(q) @ heads(k).mT).clamp(-1, 1).softmax(-1) @ heads(v))


@lookalike("doesn't hide")
def fill_that_hides_nothing(m, q, k, v, mask):
    return merged(
        (heads(q) @ heads(k).mT / 2).masked_fill(~mask[:, None, None, :], -3.0).softmax(-1)
        @ heads(v)
    )


@lookalike("not masked alike")
def masked_by_row_after_the_softmax(m, q, k, v, mask):
    causal = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(2)
    return merged(((heads(q) @ heads(k).mT / 2).softmax(-1) * causal) @ heads(v))


@lookalike("replaced by 0.001 where masked")
def filled_with_a_number_after_the_softmax(m, q, k, v, mask):
    weights = (heads(q) @ heads(k).mT / 2).softmax(-1)
    return merged(weights.masked_fill(~mask[:, None, None, :], 1e-3) @ heads(v))


@lookalike("differs from key to key")
def scores_weighted_by_key(m, q, k, v, mask):
    return merged(((heads(q) @ heads(k).mT) * v.mean(-1)[:, None, None]).softmax(-1) @ heads(v))


@lookalike(None)
def linear_attention(m, q, k, v, mask):
    return merged((F.elu(heads(q)) + 1) @ ((F.elu(heads(k)) + 1).mT @ heads(v)))


@lookalike(None)
def efficient_attention(m, q, k, v, mask):
    """Softmax over features of the queries and over positions of the keys, apart: never a softmax
    of scores."""
    return merged(heads(q).softmax(-1) @ (heads(k).softmax(-2).mT @ heads(v)))


def unfused(module: nn.Module, path: Path) -> crossfuse.Bundle:
    bundle = crossfuse.export(spec_of(module), path / "b", allow_unfused=True)
    graph = onnx.load(bundle.path / bundle.manifest.fused_graph, load_external_data=False).graph
    assert "FusedAttention" not in [node.op_type for node in graph.node]
    assert bundle.manifest.targets["ort-cpu"].parity["passed"]
    return bundle


def test_lookalikes_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = unfused(Several({name: how for name, (how, _) in LOOKALIKES.items()}), tmp_path)
    reasons = {
        f"attention.ways.{name}": reason
        for name, (_, reason) in LOOKALIKES.items()
        if reason is not None
    }
    assert {row.site for row in bundle.ledger} == set(reasons)
    for site, reason in reasons.items():
        (row,) = (row for row in bundle.ledger if row.site == site)
        with pytest.raises(
            FusionError, match=f"1 of 1 attentions did not fuse: {site}: .*({reason})"
        ):
            Ledger((row,)).require_fused([])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LOOKALIKES))
def test_a_lookalike_is_left_alone(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    how, reason = LOOKALIKES[name]
    bundle = unfused(Written(how), tmp_path)
    if reason is None:
        assert bundle.ledger.rows == ()
        return
    with pytest.raises(
        FusionError, match=f"1 of 1 attentions did not fuse: attention: .*({reason})"
    ):
        bundle.ledger.require_fused([])


class Biased(nn.Module):
    """Attention whose keys are ``keys(self, y)``."""

    def __init__(self, keys: Callable[..., Tensor]) -> None:
        super().__init__()
        self.keys = keys
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.by_place = nn.Parameter(torch.randn(6, WIDTH))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        key = self.keys(self, y)
        value = key if self.keys is also_values else self.v(y)
        attended = F.scaled_dot_product_attention(
            heads(self.q(x)), heads(key), heads(value), attn_mask=mask[:, None] > 0
        )
        return {"out": merged(attended)} | ({"key": key} if self.keys is also_an_output else {})


def plain_keys(m: Biased, y: Tensor) -> Tensor:
    return m.k(y)


def bias_by_place(m: Biased, y: Tensor) -> Tensor:
    return y @ m.k.weight.T + m.by_place


def also_values(m: Biased, y: Tensor) -> Tensor:
    return m.k(y)


def also_an_output(m: Biased, y: Tensor) -> Tensor:
    return m.k(y)


@pytest.mark.parametrize(
    ("keys", "left"),
    [(plain_keys, 2), (bias_by_place, 3), (also_values, 2), (also_an_output, 3)],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_biases_of_keys_go(keys: Callable[..., Tensor], left: int, tmp_path: Path) -> None:
    """Where softmax doesn't see them; rows without keys are among the parity gate's inputs."""
    torch.manual_seed(0)
    mask = torch.ones(2, 5, 6, dtype=torch.int64)
    mask[0, 1:, 3:] = 0
    inputs = {"x": torch.randn(2, 5, WIDTH), "y": torch.randn(2, 6, WIDTH), "mask": mask}
    spec = ModelSpec(Biased(keys).eval(), inputs, {name: {0: "batch:1:8"} for name in inputs})
    graph = fuse(spec).model.graph
    assert sum(node.op_type == "Add" for node in graph) == left
    assert all(value.uses() for value in graph.initializers.values()), "an unused bias isn't kept"
    assert all(row.fused["ort-cpu"] for row in crossfuse.export(spec, tmp_path / "bundle").ledger)


# The pass alone, on small graphs


def written(g: Graph, q: str, k: str, v: str, axis: int = -1) -> str:
    """``softmax(q kᵀ / 2) v`` over four axes."""
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = g.op("Softmax", g.op("Mul", scores, g.weight(0.5, "float32")), axis=axis)
    return g.op("MatMul", weights, v)


def operands(g: Graph) -> tuple[str, str, str]:
    shapes = (("q", "L"), ("k", "S"), ("v", "S"))
    q, k, v = (g.input(name, ["B", 2, length, 4]) for name, length in shapes)
    return q, k, v


def test_two_attentions_in_a_row() -> None:
    """The second one's queries are the first one's result."""
    g = Graph()
    q, k, v = operands(g)
    g.op("Identity", written(g, written(g, q, k, v), k, v), outputs=["y"])
    g.output("y", ["B", 2, "L", 4])
    model = model_of(g)
    result = applied(FuseUnfusedAttentionPass(), model)
    assert result.modified
    assert not result.missed
    found = counts(model)
    assert found["FusedAttention"] == 2
    assert not {"Softmax", "MatMul"} & set(found)
    assert [(a.num_heads, a.scale, a.captured) for a in attentions(model.graph)] == [
        (2, 0.5, "pattern")
    ] * 2


def test_scores_that_are_an_output_stay() -> None:
    g = Graph()
    q, k, v = operands(g)
    g.op("Identity", written(g, q, k, v), outputs=["y"])
    (softmax,) = [node for node in g.nodes if node.op_type == "Softmax"]
    g.output("y", ["B", 2, "L", 4])
    g.output(softmax.output[0], ["B", 2, "L", "S"])
    (missed,) = untouched(FuseUnfusedAttentionPass(), model_of(g)).missed
    assert missed.reason == "its attention probabilities are an output of the model"


def test_a_softmax_over_the_queries_stays() -> None:
    g = Graph()
    q, k, v = operands(g)
    g.op("Identity", written(g, q, k, v, axis=2), outputs=["y"])
    g.output("y", ["B", 2, "L", 4])
    (missed,) = untouched(FuseUnfusedAttentionPass(), model_of(g)).missed
    assert "softmax is over another axis" in missed.reason


def test_a_softmax_over_weights_is_none_of_its_business() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 4])
    mixed = g.op("MatMul", x, g.op("Softmax", g.weight(normal(4, 4)), axis=-1))
    g.op("Identity", mixed, outputs=["y"])
    g.output("y", ["B", "L", 4])
    assert untouched(FuseUnfusedAttentionPass(), model_of(g)).missed == ()


def test_attentions_that_are_nodes_stay() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    out = fused(g, x, x, x)
    g.op("Identity", out, outputs=["y"])
    g.output("y", ["B", "L", 8])
    untouched(FuseUnfusedAttentionPass(), model_of(g, shapes={out: ["B", "L", 8]}))
