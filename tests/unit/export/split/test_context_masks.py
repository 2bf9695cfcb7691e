"""Masks made of a context's padding, as people write them: for several queries per context, both
stages compute what eager PyTorch computes in float64 with each context repeated."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime
from crossfuse.core.target import require_target
from crossfuse.export.fuse import fuse
from crossfuse.export.split.assembly import Stages, assemble
from crossfuse.graph.attention_node import attentions
from crossfuse.targets.cpu_run import Runner, opened
from crossfuse.targets.registry import lower_stages

WIDTH, HEADS = 16, 4
LOWEST = torch.finfo(torch.float32).min


class Written(nn.Module):
    """Attention written out over ``y``, whose keys ``hidden`` [B, S] are not to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        return self.heads(self.q(x)) @ self.heads(self.k(y)).transpose(-1, -2) / 2

    def weighted(self, scores: Tensor, y: Tensor) -> Tensor:
        return (scores.softmax(-1) @ self.heads(self.v(y))).transpose(1, 2).flatten(2)

    def sdpa(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class KeyPadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        return self.attention(x, y, y, key_padding_mask=hidden, need_weights=False)[0]


class KeyPaddingAndBias(KeyPadding):
    """The bias of the places has no batch, so both are joined at ``[B·H, L, S]``."""

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        far = torch.arange(x.shape[1])[:, None] - torch.arange(y.shape[1])
        return self.attention(x, y, y, hidden, False, far.to(x.dtype) / 8)[0]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        for parameter in self.decoder.layers[1].parameters():
            # Copies of one layer would share their keys.
            parameter.data *= 1.1

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        return self.decoder(x, y, memory_key_padding_mask=hidden)


class SequencesFirst(nn.Module):
    """PyTorch's default: the batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32)

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        return self.layer(x, y, memory_key_padding_mask=hidden)


class ZerosFilled(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        bias = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, LOWEST)
        return self.weighted(self.scores(x, y) + bias[:, None, None], y)


class HeadsInTheBatch(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        bias = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, LOWEST)
        bias = bias.repeat_interleave(HEADS, 0)[:, None].expand(-1, x.shape[1], -1)
        q, k, v = (self.heads(t).flatten(0, 1) for t in (self.q(x), self.k(y), self.v(y)))
        out = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=0.5).softmax(-1) @ v
        return out.unflatten(0, (hidden.shape[0], HEADS)).transpose(1, 2).flatten(2)


class BiasBesideFill(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        scores = self.scores(x, y) + bias[:, None, None]
        return self.weighted(scores.masked_fill(hidden[:, None, None], -torch.inf), y)


class OneMinus(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        shown = (~hidden).to(x.dtype)
        return self.weighted(self.scores(x, y) + (1 - shown)[:, None, None] * LOWEST, y)


class Expanded(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        sizes = (x.shape[0], HEADS, x.shape[1], y.shape[1])
        return self.sdpa(x, y, ~hidden[:, None, None].expand(sizes))


class Repeated(Written):
    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        return self.sdpa(x, y, ~hidden[:, None, None].repeat(1, HEADS, x.shape[1], 1))


class OfTheQueriesShape(Written):
    """The mask meets ones of the queries' shape."""

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        ones = torch.ones_like(x[..., :1], dtype=torch.bool)
        return self.sdpa(x, y, ~(hidden[:, None] & ones)[:, None])


class Pooled(Written):
    """The mean of what is shown joins the queries, expanded to the size of the context's batch."""

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        shown = (~hidden).to(x.dtype)[..., None]
        mean = (y * shown).sum(1) / shown.sum(1).clamp(min=1)
        x = x + mean[:, None].expand(y.shape[0], x.shape[1], -1)
        return self.weighted(self.scores(x, y).masked_fill(hidden[:, None, None], LOWEST), y)


class Latents(KeyPadding):
    """Latents, as many as contexts, read the context; the queries read the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, WIDTH))
        self.second = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        latents = self.latents.expand(y.shape[0], -1, -1)
        z = self.attention(latents, y, y, hidden, need_weights=False)[0]
        return self.second(x, z, z, need_weights=False)[0]


MEMBERS: dict[str, type[nn.Module]] = {
    member.__name__: member
    for member in (
        *(KeyPaddingAndBias, Latents),
        *(KeyPadding, Decoder, SequencesFirst, ZerosFilled, HeadsInTheBatch, BiasBesideFill),
        *(OneMinus, Expanded, Repeated, OfTheQueriesShape, Pooled),
    )
}
HEADS_MERGED = "the batch is no axis of its own in its shape [4*batch, 1, ny]"
COUNTS = {"Decoder": 4, "SequencesFirst": 2, "Latents": 2}
QUICK = ("KeyPaddingAndBias", "Latents")
PARAMETERS = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MEMBERS]


def spec_of(name: str) -> ModelSpec:
    torch.manual_seed(0)
    module = MEMBERS[name]().eval()
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[0, 4:], hidden[1, 2:] = True, True
    inputs = {"x": torch.randn(2, 3, WIDTH), "y": torch.randn(2, 6, WIDTH), "hidden": hidden}
    dynamic = {
        "x": {0: "batch:1:16", 1: "nx:1:16"},
        "y": {0: "batch", 1: "ny:2:16"},
        "hidden": {0: "batch", 1: "ny"},
    }
    if name == "SequencesFirst":
        inputs |= {key: inputs[key].transpose(0, 1).contiguous() for key in "xy"}
        dynamic |= {key: {1 - axis: dim for axis, dim in dynamic[key].items()} for key in "xy"}
    if name == "BiasBesideFill":
        inputs["bias"], dynamic["bias"] = torch.randn(2, 6), dynamic["hidden"]
    return ModelSpec(module, inputs, dynamic, context=tuple(n for n in inputs if n != "x"))


def sample(spec: ModelSpec, contexts: int, fan_out: int) -> tuple[dict, dict, dict[str, Tensor]]:
    """Context inputs, query inputs, and eager's: at other sizes, with holes, and a context without
    any key to be seen."""
    torch.manual_seed(contexts * 10 + fan_out)
    sizes = {"batch": contexts, "nx": 5, "ny": 9}
    own, eager = {}, {}
    for name in spec.context:
        dims = spec.axes[name]
        shape = [sizes[dims[i]] if i in dims else n for i, n in enumerate(spec.inputs[name].shape)]
        own[name] = torch.randn(shape)
        if name == "hidden":
            own[name] = torch.rand(shape) < 0.5
            own[name][-1] = contexts > 1
        batch = next(axis for axis, dim in dims.items() if dim == "batch")
        eager[name] = own[name].repeat_interleave(fan_out, batch)
    shape = [contexts * fan_out, 5, WIDTH]
    if spec.axes["x"][0] == "nx":
        shape[:2] = shape[1::-1]
    queries = {"x": torch.randn(shape)}
    arrays = ({n: t.numpy() for n, t in given.items()} for given in (own, queries))
    return *arrays, {**eager, **queries}


@contextmanager
def running(stages: Stages) -> Iterator[Mapping[str, Runner]]:
    """The stages as the CPU's target executes them."""
    lowered = lower_stages(stages.graphs, require_target("ort-cpu"))
    with ExitStack() as stack:
        yield {name: stack.enter_context(opened(low.model)) for name, low in lowered.items()}


def truth(spec: ModelSpec, inputs: Mapping[str, Tensor]) -> np.ndarray:
    double = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    with torch.no_grad():
        return copy.deepcopy(spec.module).double()(**double).numpy()


@pytest.mark.parametrize("name", PARAMETERS)
def test_masks_of_the_context_are_split_off(name: str) -> None:
    spec = spec_of(name)
    graph = fuse(spec).model
    assert len(attentions(graph.graph)) == COUNTS.get(name, 1)
    stages = assemble(graph, spec.context, spec.dims, spec.example_sizes)
    assert set(stages.graphs) == {"context", "query"}
    assert stages.shared_batch == "batch"
    merged = [HEADS_MERGED] if name in ("KeyPaddingAndBias", "HeadsInTheBatch") else []
    assert [reason.partition(" (")[0] for reason in stages.with_queries.values()] == merged
    frontier = [value.name for value in stages.graphs["context"].graph.outputs]
    assert sum(n.endswith((".key", ".value")) for n in frontier) == {"Decoder": 4}.get(name, 2)
    with running(stages) as run:
        for contexts, fan_out in ((1, 1), (1, 5), (3, 1), (2, 4)):
            own, queries, eager = sample(spec, contexts, fan_out)
            handed = run["context"](own)
            (got,) = run["query"](queries | dict(zip(frontier, handed, strict=True)))
            expected = truth(spec, eager)
            defined = np.isfinite(expected)
            assert np.isfinite(got).all()
            assert defined.mean() > 0.4
            np.testing.assert_allclose(got[defined], expected[defined], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Decoder", "SequencesFirst", "BiasBesideFill"])
def test_bundles_pass_their_gates_and_answer_many_queries(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    bundle = crossfuse.export(spec, tmp_path / "b", ["onnx", "ort-cpu"])
    assert bundle.manifest.shared_batch == "batch"
    assert not bundle.manifest.with_queries
    with runtime.load(bundle.path, "ort-cpu") as session:
        own, queries, eager = sample(spec, 2, 3)
        context = session.encode(own)
        assert context.count == 2
        batch = 1 if name == "SequencesFirst" else 0
        (got,) = session.query(context, queries).values()
        expected = truth(spec, eager)
        defined = np.isfinite(expected)
        np.testing.assert_allclose(got[defined], expected[defined], atol=2e-5)
        some = {"x": np.take(queries["x"], range(3), batch)}
        (first,) = session.query(context.select([0]), some).values()
        np.testing.assert_allclose(first, np.take(got, range(3), batch), atol=2e-5)
