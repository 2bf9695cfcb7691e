"""Vision-language models of `transformers` whose first tokens are inputs of the context: what is
computed once per image, and that the numbers are those of eager PyTorch on the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from typer.testing import CliRunner

import crossfuse
from coverage.shrink import tiny_model
from crossfuse import InputError, runtime
from crossfuse.cli import app
from processor_checkpoints import save_checkpoint

pytestmark = pytest.mark.slow

IMAGE, TOKENS, LAYERS = 4, 7, 2
VISION: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
TEXT: Mapping[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GEMMA: Mapping[str, Any] = {**TEXT, "head_dim": 8}


def llava() -> nn.Module:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT), image_token_index=IMAGE,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def mistral() -> nn.Module:
    """LLaVA with a window of attention in its text."""
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=transformers.MistralConfig(**TEXT, sliding_window=5), image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def paligemma() -> nn.Module:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(
            **VISION, projection_dim=32, vision_use_head=False
        ),
        text_config=transformers.GemmaConfig(**GEMMA), image_token_index=IMAGE, projection_dim=32,
        hidden_size=32,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config)


def gemma3() -> nn.Module:
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(
            **GEMMA, sliding_window=16, layer_types=["full_attention", "sliding_attention"]
        ),
        mm_tokens_per_image=4, image_token_id=IMAGE, boi_token_index=5, eoi_token_index=6,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


@dataclass(frozen=True)
class Member:
    """A model, and of how many tokens keys are computed once; None where of none, for a reason.

    Attributes:
        kinds: ``token_type_ids`` of the first tokens and of the rest, where it takes them.
    """

    make: Callable[[], nn.Module]
    rows: int | None = TOKENS
    reason: str = ""
    kinds: tuple[tuple[int, ...], int] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


BESIDE = "no causal mask is known to hide it"
SEEN = (0, 0, 1, 1, 1, 1, 0)
MEMBERS = {
    "llava": Member(llava),
    "a window": Member(mistral),
    "gemma3": Member(gemma3, kinds=(SEEN, 0)),
    "paligemma, answers": Member(paligemma, kinds=((0,) * TOKENS, 1)),
    "paligemma, questions": Member(paligemma, None, BESIDE, ((0,) * TOKENS, 0)),
}
FIRST = torch.tensor([[1, 5, 4, 4, 4, 4, 9], [0, 1, 4, 4, 4, 4, 6]])


def inputs_of(member: Member, rest: Tensor) -> dict[str, Tensor]:
    """A row of the first tokens for each of the rest."""
    ids = torch.cat([FIRST[torch.arange(len(rest)) * 2 // len(rest)], rest], 1)
    made = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if member.kinds is not None:
        first, last = member.kinds
        made["token_type_ids"] = torch.tensor([*first, *[last] * rest.shape[1]]).repeat(len(ids), 1)
    return made


@pytest.mark.parametrize("name", list(MEMBERS))
def test_questions_on_images_equal_eager(name: str, tmp_path: Path) -> None:
    member = MEMBERS[name]
    torch.manual_seed(0)
    model = member.make().eval()
    rest = torch.randint(7, 60, (2, 6))
    rest[1, -2:] = 0
    inputs = inputs_of(member, rest)
    dynamic: dict[str, Any] = {n: {0: "batch", 1: "text:8:60"} for n in inputs}
    images = torch.randn(2, 3, 16, 16)
    questions = torch.randint(7, 60, (6, 5))
    questions[0, 3:] = 0
    whole = inputs_of(member, questions)
    with torch.no_grad():
        expected = model(**whole, pixel_values=images.repeat_interleave(3, 0)).logits[:, TOKENS:]
    spec = crossfuse.huggingface_spec(
        model,
        inputs={**inputs, "pixel_values": images},
        dynamic={**dynamic, "pixel_values": {0: "batch"}},
        context=("pixel_values",),
        prefix=TOKENS,
    )
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=True)
    found = bundle.manifest.prefix
    assert found is not None
    assert found.rows == member.rows
    assert member.reason in found.reason
    assert len(found.attentions) == (0 if member.rows is None else LAYERS)
    context = {f"prefix_{n}": t[::3, :TOKENS].numpy() for n, t in whole.items()}
    query = {n: whole[n][:, TOKENS:].numpy() for n in ("input_ids", "attention_mask")}
    with runtime.load(bundle.path, "ort-cpu") as session:
        encoded = session.encode({**context, "pixel_values": images.numpy()})
        got = session.query(encoded, query)["logits"]
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-5, rtol=0)
        wrong = query["input_ids"].copy()
        wrong[4, 1] = IMAGE
        with pytest.raises(InputError, match=r"input_ids\[4\]"):
            session.query(encoded, {**query, "input_ids": wrong})
        few = {**context, "prefix_input_ids": np.where(FIRST.numpy() == IMAGE, 9, FIRST.numpy())}
        with pytest.raises(InputError, match="the placeholder 4 another number of times"):
            session.encode({**few, "pixel_values": images.numpy()})


@pytest.mark.parametrize(
    "name", ["idefics3", "internvl", "llava_next", "qwen2_5_vl", "qwen2_vl", "smolvlm"]
)
def test_planned_inputs_are_given_in_two_parts(name: str, tmp_path: Path) -> None:
    """Other ways of putting images into a text: grids, positions of three axes, crops."""
    spec = crossfuse.huggingface_spec(tiny_model(name), prefix="placeholders")
    bundle = crossfuse.export(spec, tmp_path / "bundle", ["ort-cpu"], quick=True)
    found = bundle.manifest.prefix
    assert found is not None
    assert (found.reason, len(found.attentions)) == ("", LAYERS)
    assert found.rows == spec.inputs["prefix_input_ids"].shape[1]


def test_a_checkpoint_is_told_why_and_how(tmp_path: Path) -> None:
    """Without a prefix its placeholders are the reason; with one, none is left."""
    folder, out = save_checkpoint("llava", tmp_path / "llava"), str(tmp_path / "bundle")
    command = ["export", f"hf:{folder}", "-o", out, "--quick"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = crossfuse.open_bundle(out).manifest.prefix
    assert found is not None
    assert "is computed from the queries (Where, by input_ids)" in found.reason
    assert "no prefix reuse" in CliRunner().invoke(app, ["inspect", out]).output
    done = CliRunner().invoke(app, [*command, "--prefix", "placeholders"])
    assert done.exit_code == 0, done.output
    manifest = crossfuse.open_bundle(out).manifest
    assert manifest.prefix is not None
    assert len(manifest.prefix.attentions) == LAYERS
    assert manifest.source["prefix"] == "placeholders"
    assert "prefix reuse: of the context's" in CliRunner().invoke(app, ["inspect", out]).output
