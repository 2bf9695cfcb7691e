"""Columns that are joined to scores are sinks; what is no sink says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse.export.matching.attention_match import AttentionMatch, match_attention
from crossfuse.export.matching.axes import size_of
from crossfuse.export.matching.sinks import Sink
from crossfuse.export.matching.softmax_chain import Mismatch, active_values, find_softmax_chains
from equal_to_eager import worst_errors
from onnx_text import node_of, parse

INPUTS = """(float[b, 4, l, 8] q, float[b, 4, 8, s] k, float[b, 4, s, 6] v, float[b, 4, l, 2] two,
             float[b, 4, l, n] some, float[b, 1, l, s] bias, float[b, 4, 1, s] row)"""
CUT = "c = Slice(p, from, to, last)"


def match(body: str, **weights: object) -> AttentionMatch:
    """The only attention of a graph, ``o``."""
    text = f"{INPUTS} => (float[f, 1] y) {{ {body} z = Flatten(o) y = ReduceMax(z, last) }}"
    model = parse(text, last=[-1], **weights)
    (chain,) = find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))
    return match_attention(chain)


def joined(*parts: str, axis: int = -1, cut: str = CUT, **weights: object) -> AttentionMatch:
    body = f"""a = MatMul(q, k) w = Expand(sink, shape)
               j = Concat<axis = {axis}>({", ".join(parts)})
               p = Softmax(j) {cut} o = MatMul(c, v)"""
    given = {"from": [0], "to": [-1], "sink": np.ones((1, 4, 1, 1)), "shape": [1, 4, 1, 1]}
    return match(body, **given | weights)


def test_a_column_behind_the_scores() -> None:
    found = joined("a", "w")
    sink = found.sink
    assert isinstance(sink, Sink)
    assert (sink.count, sink.first, sink.before) == (1, False, 0)
    assert size_of(found.keys).dim == size_of(found.weighed).dim == "s"
    (term,) = sink.terms
    assert term.operand.value.name == "sink", "without the copies that the scores' shape needs"
    assert [size_of(axis).dim for axis in term.operand.axes] == [1, 4, 1, 1]


def test_columns_before_the_scores() -> None:
    sink = joined("two", "a", **{"from": [2], "to": [np.iinfo(np.int64).max]}).sink
    assert sink is not None
    assert (sink.count, sink.first) == (2, True)


def test_a_pad_is_a_sink_of_one_number() -> None:
    sink = match(
        f"""a = MatMul(q, k) d = Add(a, bias) j = Pad(d, pads, none, last) p = Softmax(j) {CUT}
            o = MatMul(c, v)""",
        pads=[0, 1],
        none=0.5,
        **{"from": [0], "to": [-1]},
    ).sink
    assert sink is not None
    assert (sink.logits, sink.count, sink.first, sink.before) == (0.5, 1, False, 1)


def test_a_factor_behind_multiplies_the_sink() -> None:
    found = match(
        f"""a = MatMul(q, k) j = Concat<axis = 3>(a, two) m = Mul(j, half) p = Softmax(m) {CUT}
            o = MatMul(c, v)""",
        half=0.5,
        **{"from": [0], "to": [-2]},
    )
    assert found.sink is not None
    assert (found.scale, found.sink.terms[0].factor) == (0.5, 0.5)


def test_sinks_with_values_are_summed_over() -> None:
    found = match(
        """a = MatMul(q, k) j = Concat<axis = -1>(a, two) p = Softmax(j)
           r = Slice(v, zero, two_, rows)
           u = Concat<axis = 2>(v, r) o = MatMul(p, u)""",
        zero=[0],
        two_=[2],
        rows=[2],
    )
    assert found.sink is not None
    assert found.weighed == tuple(found.sink.both)


@pytest.mark.parametrize(
    ("parts", "options", "reason"),
    [
        (("a", "w"), {"to": [-2]}, "other columns .* cut off than its sinks"),
        (("w", "a"), {}, "other columns .* cut off than its sinks"),
        (("a", "two"), {"from": [1]}, "other columns .* cut off than its sinks"),
        (("a", "some"), {}, "not with a known number of sinks"),
        (("a", "w", "two"), {}, "joined with several others"),
        (("row", "a"), {"axis": 2, "cut": "c = Identity(p)"}, "along another axis than the keys"),
    ],
)
def test_what_is_no_sink_says_why(parts: tuple[str, ...], options: dict, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        joined(*parts, **options)


def test_scores_that_are_shifted_first_are_refused() -> None:
    """A softmax doesn't see the shift, but the sink does."""
    for shift in ("m = ReduceMax<keepdims = 1>(a, last) d = Sub(a, m)", "d = Add(a, one)"):
        body = f"""a = MatMul(q, k) {shift} j = Concat<axis = 3>(d, two) p = Softmax(j) {CUT}
                   o = MatMul(c, v)"""
        with pytest.raises(Mismatch, match="shifted before others are joined"):
            match(body, one=1.0, **{"from": [0], "to": [-2]})


def test_probabilities_without_sinks_are_not_cut() -> None:
    with pytest.raises(Mismatch, match="a part of its attention probabilities is cut off"):
        match(
            f"a = MatMul(q, k) p = Softmax(a) {CUT} o = MatMul(c, v)", **{"from": [0], "to": [-1]}
        )


# ── As people write them: equal to eager, at other sizes, with rows that see no key
# ─────────────────────────────────────────────────────────────────────────────────

WIDTH, HEADS = 16, 4


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def merged(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


class Net(nn.Module):
    """Projections, scores, and one way of giving them sinks."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.sink = nn.Parameter(2 * torch.randn(1, HEADS, 1, 1))
        self.sinks = nn.Parameter(torch.randn(1, HEADS, 1, 3))
        self.rows = nn.Parameter(torch.randn(1, HEADS, 3, WIDTH // HEADS))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)), heads(self.k(y)), heads(self.v(y))
        return self.out(merged(self.how(self, q, k, v, mask[:, None, None] == 0)))


def beside(t: Tensor, scores: Tensor) -> Tensor:
    return t.expand(scores.shape[0], -1, scores.shape[2], -1)


def as_in_gpt_oss(m, q, k, v, hidden):
    lowest = torch.finfo(torch.float32).min
    scores = q @ k.mT / 2 + hidden.to(q.dtype) * lowest
    both = torch.cat([scores, beside(m.sink, scores)], -1)
    both = both - both.amax(-1, keepdim=True)
    return both.softmax(-1)[..., :-1] @ v


def three_first(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -torch.inf)
    return torch.cat([beside(m.sinks, scores), scores], -1).softmax(-1)[..., 3:] @ v


def off_by_one(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -1e4)
    return F.pad(scores, (0, 1)).softmax(-1)[..., :-1] @ v


def one_more_in_the_denominator(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -torch.inf)
    most = scores.amax(-1, keepdim=True).clamp(min=0)
    powers = (scores - most).exp()
    return powers / (powers.sum(-1, keepdim=True) + (-most).exp()) @ v


def sink_in_the_denominator(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -1e9)
    most = torch.maximum(scores.amax(-1, keepdim=True), m.sink)
    powers = (scores - most).exp()
    return powers / (powers.sum(-1, keepdim=True) + (m.sink - most).exp()) @ v


def gate_of_the_logsumexp(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -1e9)
    gate = (scores.logsumexp(-1, keepdim=True) - m.sink).sigmoid()
    return (scores.softmax(-1) @ v) * gate


def masked_behind(m, q, k, v, hidden):
    scores = q @ k.mT / 2
    both = torch.cat([scores, beside(m.sink, scores)], -1)
    return (both + F.pad(hidden * -1e9, (0, 1)).to(q.dtype)).softmax(-1)[..., :-1] @ v


def masked_again_behind(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -1e9)
    both = torch.cat([scores, beside(m.sink, scores)], -1).softmax(-1)
    return both[..., :-1].masked_fill(hidden, 0.0) @ v


def masked_again_beside_a_number(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -torch.inf)
    return (F.pad(scores, (0, 1)).softmax(-1)[..., :-1] * ~hidden) @ v


def with_values(m, q, k, v, hidden):
    scores = (q @ k.mT / 2).masked_fill(hidden, -torch.inf)
    both = torch.cat([scores, beside(m.sinks, scores)], -1).softmax(-1)
    return both @ torch.cat([v, m.rows.expand(v.shape[0], -1, -1, -1)], 2)


def registers_before_the_keys(m, q, k, v, hidden):
    """Keys and values of their own: no sinks, and nothing is to be done."""
    k, v = (torch.cat([m.rows.expand(t.shape[0], -1, -1, -1), t], 2) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~F.pad(hidden, (3, 0)))


FORMS = [
    *(as_in_gpt_oss, three_first, off_by_one, one_more_in_the_denominator),
    *(sink_in_the_denominator, gate_of_the_logsumexp, masked_behind, with_values),
    *(registers_before_the_keys, masked_again_behind, masked_again_beside_a_number),
]


def inputs(batch: int, length: int, keys: int, *shown: int) -> dict[str, Tensor]:
    """With the first few keys shown to each sample."""
    generator = torch.Generator().manual_seed(length)
    return {
        "x": torch.randn(batch, length, WIDTH, generator=generator),
        "y": torch.randn(batch, keys, WIDTH, generator=generator),
        "mask": (torch.arange(keys) < torch.tensor(shown)[:, None]).long(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", FORMS, ids=lambda how: how.__name__)
def test_sinks_are_equal_to_eager(tmp_path: Path, how: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    module = Net(how).eval()
    dynamic = {
        "x": {0: "batch:1:8", 1: "length:1:64"},
        "y": {0: "batch", 1: "keys:1:64"},
        "mask": {0: "batch", 1: "keys"},
    }
    spec = crossfuse.ModelSpec(module, inputs(2, 3, 5, 5, 2), dynamic, context=("y", "mask"))
    bundle = crossfuse.export(spec, tmp_path / "b", ["onnx", "ort-cpu"])
    assert [(row.kind, all(row.fused.values())) for row in bundle.ledger] == [("cross", True)]
    points = [inputs(1, 7, 4, 2), inputs(3, 1, 11, 11, 3, 6), inputs(2, 9, 20, 1, 13)]
    points += [inputs(2, 2, 6, 0, 4)]
    assert max(worst_errors(tmp_path / "b", module, points).values()) < 1e-5
