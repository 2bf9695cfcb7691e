"""Modules that put tokens of a context in front of those of queries: bundles equal eager PyTorch,
whatever is computed once, and say what is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime

WIDTH, HEADS, WORDS, PATCHES = 32, 4, 50, 9


class Layer(nn.Module):
    """Grouped heads, rotary positions on request, and a feed-forward network."""

    def __init__(self, rotary: bool, groups: int) -> None:
        super().__init__()
        self.rotary, self.groups, self.size = rotary, groups, WIDTH // HEADS
        self.norm, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * groups * self.size)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def turned(self, x: Tensor) -> Tensor:
        rates = 100 ** (-torch.arange(0, self.size, 2, dtype=x.dtype) / self.size)
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rates
        left, right = x.chunk(2, -1)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return x * cos + torch.cat([-right, left], -1) * sin if self.rotary else x

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, count, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, count, HEADS, self.size).transpose(1, 2)
        k, v = self.kv(y).view(batch, count, 2, self.groups, self.size).permute(2, 0, 3, 1, 4)
        q, k = self.turned(q), self.turned(k)
        repeat = HEADS // self.groups
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, count, WIDTH))
        return x + self.down(F.silu(self.up(self.behind(x))))


class Answers(nn.Module):
    """An image, perhaps behind a prompt or learned tokens, in front of a text.

    Args:
        kind: how it is masked and where the image stands.
    """

    def __init__(self, kind: str = "", rotary: bool = False, groups: int = HEADS) -> None:
        super().__init__()
        self.kind = kind
        self.tower, self.projector = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, WIDTH)
        self.embed, self.learned = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(2, WIDTH))
        self.layers = nn.ModuleList(Layer(rotary, groups) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        image = self.projector(self.tower(pixel_values).flatten(2).transpose(1, 2))
        text = self.embed(input_ids)
        if self.kind == "placeholders":
            seen = (input_ids == 0).unsqueeze(-1)
            places = (input_ids == 0).long().cumsum(1).clamp(1, PATCHES) - 1
            x = torch.where(seen, image.gather(1, places[..., None].expand(-1, -1, WIDTH)), text)
        else:
            parts = [image, text]
            if prompt_ids is not None:
                parts.insert(0, self.embed(prompt_ids))
            if self.kind == "learned":
                parts.insert(0, self.learned.expand(image.shape[0], -1, -1))
            x = torch.cat(parts, 1)
        count = x.shape[1]
        before = count - input_ids.shape[1]
        mask = None
        rows, keys = torch.arange(count)[:, None], torch.arange(count)
        if attention_mask is not None:
            whole = torch.cat([attention_mask.new_ones(x.shape[0], before), attention_mask], 1)
            mask = (keys <= rows)[None, None] & whole[:, None, None].bool()
        if self.kind == "sees the prompt":
            mask = ((keys <= rows) | (keys < before + 2))[None, None]
        if self.kind == "sees itself":
            mask = ((keys <= rows) | (keys < before))[None, None]
        if self.kind == "low bias":
            mask = torch.zeros(count, count).masked_fill(keys > rows, -1e9)[None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x if self.kind == "all" else x[:, before:])


@dataclass(frozen=True)
class Member:
    """A module, with further inputs, and of how many tokens keys are computed once; None where of
    none, for a reason. Without one, no tokens of the context stand in front of others."""

    module: Any
    rows: int | None = PATCHES
    reason: str | None = ""
    more: tuple[str, ...] = ()


MEMBERS = {
    "plain": Member(lambda: Answers()),
    "rotary, grouped": Member(lambda: Answers(rotary=True, groups=2)),
    "text mask": Member(lambda: Answers(rotary=True), more=("attention_mask",)),
    "prompt": Member(lambda: Answers(rotary=True), PATCHES + 4, more=("prompt_ids",)),
    "learned": Member(lambda: Answers("learned"), PATCHES + 2),
    "all tokens": Member(lambda: Answers("all")),
    "low bias": Member(lambda: Answers("low bias")),
    "sees itself": Member(lambda: Answers("sees itself")),
    "sees the prompt": Member(lambda: Answers("sees the prompt"), None, "no causal mask is known"),
    "placeholders": Member(
        lambda: Answers("placeholders"), None, "computed from the queries (Where, by input_ids)"
    ),
}
QUICK = ("text mask",)


def spec_of(member: Member) -> ModelSpec:
    torch.manual_seed(0)
    module = member.module().eval()
    ids = torch.randint(0, WORDS, (2, 7))
    ids[:, :2] = 0
    inputs = {"pixel_values": torch.randn(2, 3, 12, 12), "input_ids": ids}
    dynamic: dict[str, Any] = {
        "pixel_values": {0: "batch"},
        "input_ids": {0: "batch", 1: "text:2:40"},
    }
    if "attention_mask" in member.more:
        inputs["attention_mask"] = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
        dynamic["attention_mask"] = {0: "batch", 1: "text"}
    if "prompt_ids" in member.more:
        inputs["prompt_ids"] = torch.randint(0, WORDS, (2, 4))
        dynamic["prompt_ids"] = {0: "batch"}
    context = tuple(name for name in inputs if name in ("pixel_values", "prompt_ids"))
    return ModelSpec(module, inputs, dynamic, context=context)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MEMBERS],
)
def test_questions_on_images_equal_eager(name: str, tmp_path: Path) -> None:
    member = MEMBERS[name]
    spec = spec_of(member)
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=name in QUICK)
    found = bundle.manifest.prefix
    if member.reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.rows == member.rows
        assert member.reason in found.reason
        assert len(found.attentions) == (0 if member.rows is None else 2)
    contexts, fan_out, words = 2, 3, 5
    inputs = spec.sample({"batch": contexts * fan_out, "text": words}, seed=3)
    own = {n: inputs[n][::fan_out].contiguous() for n in spec.context}
    repeated = {n: tensor.repeat_interleave(fan_out, 0) for n, tensor in own.items()}
    with torch.no_grad():
        (expected,) = spec.run(inputs | repeated).values()
    queries = {n: tensor.numpy() for n, tensor in inputs.items() if n not in spec.context}
    with runtime.load(bundle.path, "ort-cpu") as session:
        context = session.encode({n: tensor.numpy() for n, tensor in own.items()})
        (got,) = session.query(context, queries).values()
    np.testing.assert_allclose(got, expected.numpy(), atol=5e-5, rtol=0)


@pytest.mark.slow
def test_tokens_behind_an_image_are_decoded(tmp_path: Path) -> None:
    """Steps over an encoded image give the rows of the whole sequence."""
    torch.manual_seed(0)
    spec = spec_of(MEMBERS["rotary, grouped"])
    spec = ModelSpec(
        spec.module, spec.inputs, spec.dynamic, context=spec.context, decode="input_ids"
    )
    bundle = crossfuse.export(spec, tmp_path / "bundle")
    assert bundle.manifest.prefix is not None
    assert bundle.manifest.prefix.rows == PATCHES
    pixels, ids = torch.randn(2, 3, 12, 12), torch.randint(0, WORDS, (6, 5))
    with torch.no_grad():
        expected = spec.module(pixels.repeat_interleave(3, 0), ids).numpy()
    with runtime.load(bundle.path, "ort-cpu") as session:
        state = session.start(session.encode(pixel_values=pixels.numpy()), 6)
        for place in range(5):
            (got,) = session.step(state, ids[:, place].numpy()).values()
            np.testing.assert_allclose(got[:, 0], expected[:, place], atol=5e-5)
