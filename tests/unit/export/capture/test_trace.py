"""Capture of modules that don't call the operator, and attentions that can't be captured: named,
with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import Dim, FusionError, InputError, ModelSpec, runtime
from crossfuse.core.ledger import LedgerRow
from crossfuse.export.capture.census import census
from crossfuse.export.fuse import fuse

WIDTH, HEADS = 16, 4


class Block(nn.Module):
    """Cross-attention by SDPA, in one of its ways of being called."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        if self.how == "headless":
            return F.scaled_dot_product_attention(
                self.q(x), self.k(y), self.v(y), mask[:, None, :] > 0
            )
        q, k, v = (
            f(t).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        options: dict = {}
        if self.how == "bool mask":
            options["attn_mask"] = mask[:, None, None, :] > 0
        elif self.how == "float mask":
            options["attn_mask"] = torch.where(mask[:, None, None, :] > 0, 0.0, -torch.inf)
        elif self.how == "2-D mask":
            options["attn_mask"] = torch.ones(x.shape[1], y.shape[1], dtype=torch.bool).tril(1)
        elif self.how == "causal":
            options["is_causal"] = True
        elif self.how == "scaled":
            options["scale"] = 0.7
        elif self.how == "grouped heads":
            k, v, options["enable_gqa"] = k[:, ::2], v[:, ::2], True
        elif self.how == "one query batch":
            q = q[:1]
        elif self.how == "wider values":
            v = torch.cat([v, v * 2], -1)
        elif self.how == "multi-query":
            k, v = k[:, :1], v[:, :1]
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


WAYS = [
    "plain",
    "bool mask",
    "float mask",
    "2-D mask",
    "causal",
    "scaled",
    "grouped heads",
    "headless",
    "one query batch",
    "wider values",
    "multi-query",
]


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> object:
        return self.attention(x, y, mask)


def spec_of(module: nn.Module) -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(
        Net(module).eval(),
        {
            "x": torch.randn(2, 3, WIDTH),
            "y": torch.randn(2, 5, WIDTH),
            "mask": torch.tensor([[1.0] * 5, [1, 1, 0, 0, 0]]),
        },
        {
            "x": {0: "batch:1:8", 1: "length:1:64"},
            "y": {0: "batch", 1: "keys:1:64"},
            "mask": {0: "batch", 1: "keys"},
        },
    )


class AllWays(nn.Module):
    """All ways on the same inputs, an output each: one export instead of many."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(way) for way in WAYS)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {f"of_{i}": block(x, y, mask) for i, block in enumerate(self.blocks)}


def check_way(way: str, row: LedgerRow) -> None:
    assert (row.kind, row.captured) == ("cross", "sdpa"), way
    kv_heads = {"grouped heads": 2, "headless": 1, "multi-query": 1}.get(way, HEADS)
    assert row.kv_num_heads == kv_heads, way
    assert all(row.fused.values()), way


def test_sdpa_is_captured(tmp_path: Path) -> None:
    bundle = crossfuse.export(spec_of(AllWays()), tmp_path / "b", ["ort-cpu"])
    rows = {row.site: row for row in bundle.ledger}
    assert set(rows) == {f"attention.blocks.{i}" for i in range(len(WAYS))}
    for i, way in enumerate(WAYS):
        check_way(way, rows[f"attention.blocks.{i}"])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_one_sdpa_is_captured(tmp_path: Path, way: str) -> None:
    bundle = crossfuse.export(spec_of(Block(way)), tmp_path / "b", ["ort-cpu"])
    (row,) = bundle.ledger
    assert row.site == "attention"
    check_way(way, row)


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return self.mha(x, y, y, key_padding_mask=mask == 0, need_weights=False)[0]


def test_torchs_module_is_captured(tmp_path: Path) -> None:
    bundle = crossfuse.export(spec_of(TorchAttention()), tmp_path / "b")
    assert [(r.site, r.kind, r.fused) for r in bundle.ledger] == [
        ("attention.mha", "cross", {"ort-cpu": "Attention"})
    ]


def test_torchs_encoder_layer_with_its_fast_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True).eval()
    spec = ModelSpec(
        layer, {"src": torch.randn(2, 5, WIDTH)}, {"src": {0: "batch:1:8", 1: "length:1:32"}}
    )
    assert [s.module for s in census(spec.module, dict(spec.inputs))] == ["self_attn"]
    (row,) = crossfuse.export(spec, tmp_path / "b").ledger
    assert (row.site, row.kind, row.fused) == (
        "self_attn",
        "self",
        {"ort-cpu": "MultiHeadAttention"},
    )


class Shared(nn.Module):
    """One module called twice: two sites."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block("plain")

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return self.block(self.block(x, y, mask), y, mask)


def test_shared_module_has_two_sites(tmp_path: Path) -> None:
    bundle = crossfuse.export(spec_of(Shared()), tmp_path / "b")
    assert [row.site for row in bundle.ledger] == ["attention.block", "attention.block#2"]


def test_equal_attentions_stay_apart_and_what_prepares_them_merges(tmp_path: Path) -> None:
    class Twice(Shared):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return self.block(x, y, mask) + 2 * self.block(x, y, mask)

    graph = fuse(spec_of(Twice()))
    assert [row.captured for row in graph.ledger] == ["sdpa", "sdpa"]
    ops = [node.op_type for node in graph.model.graph]
    assert ops.count("FusedAttention") == 2
    assert ops.count("MatMul") == 3
    assert crossfuse.export(spec_of(Twice()), tmp_path / "b").ledger.counts("ort-cpu") == {
        "cross": 2
    }


class Positions(nn.Module):
    """A table of 16 position embeddings limits the length, whether the spec says so or not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH)
        self.block = Block("plain")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.table.weight[: x.shape[1]]
        return self.block(x, y, y)


def test_a_dimension_without_maximum_gets_the_models_limit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, 9, WIDTH), "y": torch.randn(1, 5, WIDTH)}
    dynamic = {"x": {0: "batch", 1: "length"}, "y": {0: "batch", 1: "keys"}}
    spec = ModelSpec(Positions().eval(), inputs, dynamic)
    bundle = crossfuse.export(spec, tmp_path / "b")
    dims = bundle.manifest.dims
    assert (dims["length"].max, dims["batch"].max, dims["keys"].max) == (16, None, None)
    assert crossfuse.verify(bundle.path, source=spec).passed
    with runtime.load(bundle.path) as session:
        long = {"x": np.ones((3, 16, WIDTH), "f4"), "y": np.ones((3, 40, WIDTH), "f4")}
        assert session.run(**long)["output"].shape == (3, 16, WIDTH)
        with pytest.raises(InputError, match="'length' is outside its range.*got 17.*at most 16"):
            session.run(**(long | {"x": np.ones((3, 17, WIDTH), "f4")}))
    stated = ModelSpec(
        spec.module, inputs, {"x": {0: "batch", 1: "length:1:20"}, "y": dynamic["y"]}
    )
    with pytest.raises(InputError, match="can't trace the model.*length"):
        crossfuse.export(stated, tmp_path / "c")


class Pixels(nn.Module):
    """Patches of an image are the keys; its tokens, given beside it, the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)

    def forward(self, image: Tensor, tokens: Tensor, doubled: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.patches(image).flatten(2).transpose(1, 2)
        # Of no size that the tracer could prove: every third is another way to the same.
        if image.shape[2] % 3 == 0:
            keys = keys * 1.0
        mixed = F.scaled_dot_product_attention(tokens + keys, keys, keys)
        return mixed, doubled.unflatten(1, (-1, 2)).sum(2)


def test_axes_that_are_multiples_of_a_dimension(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(
        Pixels(),
        {
            "image": torch.randn(2, 3, 16, 8),
            "tokens": torch.randn(2, 8, 8),
            "doubled": torch.randn(2, 6),
        },
        {
            "image": {0: "batch", 2: "4*height:1:9"},
            "tokens": {0: "batch", 1: "2*height"},
            "doubled": {0: "batch", 1: "2*pairs"},
        },
    )
    bundle = crossfuse.export(spec, tmp_path / "b", quick=True)
    inputs = {tensor.name: tensor.shape for tensor in bundle.manifest.stages["model"].inputs}
    assert inputs["image"] == ("batch", 3, "4*height", 8)
    assert inputs["doubled"] == ("batch", "2*pairs")
    assert bundle.manifest.dims["height"] == Dim("height", 1, 9)
    with runtime.load(bundle.path) as session:
        for height in (1, 3, 6, 9):
            given = spec.sample({"batch": 3, "height": height, "pairs": 5}, seed=height)
            got = session.run({name: tensor.numpy() for name, tensor in given.items()})
            for result, expected in zip(got.values(), spec.call(given), strict=True):
                np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-5)
        given["tokens"] = given["tokens"][:, :16]
        with pytest.raises(InputError, match="disagree about dimension 'height'"):
            session.run({name: tensor.numpy() for name, tensor in given.items()})


class Tied(nn.Module):
    """One module under two names, as in models that share weights across layers."""

    def __init__(self) -> None:
        super().__init__()
        block = Block("plain")
        self.layers = nn.ModuleList([block, block])

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, y, mask)
        return x


def test_module_under_two_names(tmp_path: Path) -> None:
    rows = crossfuse.export(spec_of(Tied()), tmp_path / "b").ledger
    assert len({row.site for row in rows}) == len(rows) == 2
    assert all(row.captured for row in rows)


class ByHand(nn.Module):
    """Attention written out, in variants that no fused operator computes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = Block("plain")
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> object:
        x = self.first(x, y, mask)
        scores = self.q(x) @ self.k(y).mT / WIDTH**0.5
        if self.how == "entmax":
            ordered = scores.sort(-1, descending=True).values
            threshold = (ordered.cumsum(-1) - 1) / torch.arange(1, y.shape[1] + 1)
            weights = (scores - threshold.amax(-1, keepdim=True)).clamp(min=0)
        elif self.how == "sigmoid":
            weights = scores.sigmoid()
        else:
            weights = scores.softmax(-1)
        out = weights @ y
        return (out, weights) if self.how == "probabilities" else out


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("entmax", "not normalised by a softmax"),
        ("sigmoid", "not normalised by a softmax"),
        ("probabilities", "probabilities are an output"),
    ],
)
def test_unfusable_attention_fails_by_name(tmp_path: Path, how: str, reason: str) -> None:
    with pytest.raises(FusionError, match=f"1 of 2 attentions did not fuse: attention: .*{reason}"):
        crossfuse.export(spec_of(ByHand(how)), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    bundle = crossfuse.export(spec_of(ByHand(how)), tmp_path / "b", allow_unfused=True)
    fused, unfused = bundle.ledger
    assert fused.fused == {"ort-cpu": "Attention"}
    assert (unfused.site, unfused.captured, unfused.fused) == ("attention", None, {"ort-cpu": None})
    assert reason in unfused.reasons["capture"]
    assert bundle.manifest.targets["ort-cpu"].parity["passed"]


def test_dropout_is_refused() -> None:
    class Dropping(Block):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            q, k = self.q(x)[:, None], self.k(y)[:, None]
            return F.scaled_dot_product_attention(q, k, k, dropout_p=0.5)[:, 0]

    with pytest.raises(
        InputError, match=r"drops attention weights at random.*dropout_p=0.5.*eval mode"
    ):
        fuse(spec_of(Dropping("plain")))


class Lookalike(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mixing = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        if self.how == "linear attention":
            return F.elu(x) @ (F.elu(y).mT @ y)
        if self.how == "learned mixing":
            return (self.mixing.softmax(-1) @ y.mT).mT
        if self.how == "classifier":
            return self.head(self.head(y).softmax(-1))
        return self.head(F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT @ x).relu()


@pytest.mark.parametrize(
    "how", ["linear attention", "learned mixing", "classifier", "similarities"]
)
def test_lookalikes_are_no_attentions(how: str) -> None:
    spec = spec_of(Lookalike(how))
    assert census(spec.module, dict(spec.inputs)) == []
    assert fuse(spec).ledger.rows == ()


def test_mixed_heads_do_not_hide_an_attention() -> None:
    class TalkingHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(HEADS, HEADS)

        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            q, k = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (x, y))
            scores = self.mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return (scores.softmax(-1) @ k).transpose(1, 2).flatten(2)

    (row,) = fuse(spec_of(TalkingHeads())).ledger
    assert row.captured is None


def test_census_counts_without_the_passes() -> None:
    spec = spec_of(ByHand("softmax"))
    forms = [(s.module, s.form) for s in census(spec.module, dict(spec.inputs))]
    assert forms == [("attention.first", "sdpa"), ("attention", "products")]


class Detector(nn.Module):
    """DETR's shape: learned queries, one model input, decoder layers that look at the encoder's
    tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.encoder = Block("plain")
        self.selfs, self.crosses = (
            nn.ModuleList(Block("plain") for _ in range(2)) for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        memory = y + self.encoder(y, y, mask)
        states = self.queries.expand(y.shape[0], -1, -1)
        for own, cross in zip(self.selfs, self.crosses, strict=True):
            states = states + own(states, states, mask)
            states = states + cross(states, memory, mask)
        return states + x.mean() * 0


def test_kinds_with_one_input_and_learned_queries() -> None:
    ledger = fuse(spec_of(Detector())).ledger
    kinds = {row.site.removeprefix("attention."): row.kind for row in ledger}
    assert kinds == {
        "encoder": "self",
        "selfs.0": "self",
        "crosses.0": "cross",
        "selfs.1": "self",
        "crosses.1": "cross",
    }


def test_layout_changes_cancel() -> None:
    """From 4-D heads: projections feed the attention directly, no transpose is left around it."""
    model = fuse(spec_of(Block("bool mask"))).model
    ops = [node.op_type for node in model.graph]
    assert ops.count("FusedAttention") == 1
    assert "Transpose" not in ops
    assert "Reshape" not in ops


def test_exported_graph_keeps_no_paths_of_the_user() -> None:
    model = fuse(spec_of(Block("plain"))).model
    keys = {key for node in model.graph for key in node.metadata_props}
    assert keys == {"crossfuse.module", "crossfuse.site"}


@pytest.mark.parametrize(
    "returns",
    [lambda t: t, lambda t: (t, t + 1), lambda t: {"a": t, "b": [t, {"c": t + 1}]}],
    ids=["tensor", "tuple", "nested"],
)
def test_outputs_are_named(tmp_path: Path, returns: object) -> None:
    class Wrapped(Block):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> object:
            return returns(super().forward(x, y, mask))  # type: ignore[operator]

    spec = spec_of(Wrapped("plain"))
    bundle = crossfuse.export(spec, tmp_path / "b")
    names = [t.name for t in bundle.manifest.stages["model"].outputs]
    assert names in (["output"], ["output_0", "output_1"], ["a", "b_0", "b_1_c"])
    with runtime.load(bundle.path) as session, torch.no_grad():
        got = session.run(**{k: v.numpy() for k, v in spec.inputs.items()})
        flat = torch.utils._pytree.tree_leaves(spec.module(**spec.inputs))
    for name, tensor in zip(names, flat, strict=True):
        np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-5)


def test_models_that_cannot_be_traced_or_run() -> None:
    class Branching(Block):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return x if x.sum() > 0 else y

    with pytest.raises(InputError, match="can't trace the model"):
        fuse(spec_of(Branching("plain")))

    class Fixed(Block):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return x.reshape(-1, 3, WIDTH)[:, : x.shape[1]]

    with pytest.raises(InputError, match="can't trace the model|the eager model fails"):
        fuse(spec_of(Fixed("plain")))


def test_a_fixed_axis_that_a_dynamic_one_meets_is_named() -> None:
    class Levels(Block):
        def forward(self, x: Tensor, levels: list[Tensor], mask: Tensor) -> Tensor:
            return super().forward(x, torch.cat(levels, 1), mask)

    y = torch.randn(2, 5, WIDTH)
    inputs = {
        "x": torch.randn(2, 3, WIDTH),
        "levels": [y[:, :1], y[:, 1:]],
        "mask": torch.ones(2, 5),
    }
    spec = ModelSpec(Levels("plain").eval(), inputs, {"x": {0: "batch:1:8", 1: "n:1:64"}})
    with pytest.raises(InputError, match=r"fixed \(levels\.0:0, levels\.1:0, mask:0\)"):
        fuse(spec)


def test_spec_mistakes() -> None:
    inputs = {"x": torch.randn(2, 3)}
    module = nn.Linear(3, 3)
    with pytest.raises(InputError, match="dynamic names an input"):
        ModelSpec(module, inputs, {"y": {0: "batch"}})
    with pytest.raises(InputError, match="context names an input"):
        ModelSpec(module, inputs, context=("y",))
    with pytest.raises(InputError, match="axis doesn't exist"):
        ModelSpec(module, inputs, {"x": {2: "batch"}})
    with pytest.raises(InputError, match="two sizes"):
        ModelSpec(module, inputs, {"x": {0: "n", 1: "n"}})
    with pytest.raises(InputError, match="outside its range"):
        ModelSpec(module, inputs, {"x": {0: "n:4:8"}})
    with pytest.raises(InputError, match="two ranges"):
        ModelSpec(module, {"x": torch.randn(2, 2)}, {"x": {0: "n:1:8", 1: "n:1:9"}})
    with pytest.raises(InputError, match="can't be read"):
        ModelSpec(module, inputs, {"x": {0: "n:one"}})
