"""Questions on one image, where the image's tokens stand in front of the text's: a LLaVA-like
model, random weights.

A tower of 4 layers (width 256) over 336 × 336 pixels, 576 image tokens, a language model of 8
layers (width 512, 8 heads, rotary positions), and 4 questions of 20 tokens. Logits of the
questions' tokens.

    python benchmarks/prefix_reuse.py [--model llava] [--json FILE] [--rounds N]

``--model llava`` takes the architecture of `transformers` of the same sizes (a tower of CLIP, a
language model of Llama), exported with its first tokens as a prefix.

All in one run, in the same rounds; medians, and ratios round by round with their 95% intervals:

* ``crossfuse``: `session.query` on an encoded context: keys and values of the image's tokens are
  there in every layer.
* ``unsplit, tower cached``: the same language model as one graph of the same target; the image's
  tokens are kept by hand and repeated for the questions.
* ``eager, tower cached``: PyTorch, with the image's tokens kept by hand.
* ``crossfuse, encoding``: a new image each time: encode, then ask all questions.
* ``unsplit, encoding``: a new image each time: the tower once, then the unsplit language model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

PIXELS, PATCH, TOWER, WIDTH, LAYERS, HEADS, VOCABULARY = 336, 14, 256, 512, 8, 8, 4096
IMAGE_TOKENS = (PIXELS // PATCH) ** 2
QUESTIONS, TOKENS = 4, 20


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of ``[B, H, N, D]``."""
    size = x.shape[-1]
    rates = 10000 ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a normalization."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, W]`` → ``[B, N, W]``."""
        batch, count, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.causal:
            q, k = rotated(q), rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.down(F.silu(self.up(self.between(x))))


class Vision(nn.Module):
    """Pixels → image tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, TOWER, PATCH, PATCH)
        self.layers = nn.ModuleList(Layer(TOWER, 4, causal=False) for _ in range(4))
        self.projector = nn.Sequential(nn.Linear(TOWER, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, 336, 336]`` → ``[B, 576, 512]``."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.projector(x)


class Language(nn.Module):
    """Image tokens in front of a text → logits of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, HEADS, causal=True) for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """``[B, 576, 512]`` and ``[B, T]`` → ``[B, T, V]``."""
        x = torch.cat([image_tokens, self.embed(input_ids)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, image_tokens.shape[1] :]))


class Model(nn.Module):
    """The whole."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.language = Vision(), Language()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """``[B, 3, 336, 336]`` and ``[B, T]`` → ``[B, T, V]``."""
        return self.language(self.vision(pixel_values), input_ids)


@dataclass(frozen=True)
class Case:
    """A model in its parts, and as a whole that is split.

    Attributes:
        vision, language: in eager: pixels → image tokens; these and ids → logits of the ids.
        parts: their specs, by name.
        whole: the spec of both.
        given: what else an encoding takes.
        feeds: image tokens and ids as the language model's inputs.
    """

    vision: Callable[[Tensor], Tensor]
    language: Callable[[Tensor, Tensor], Tensor]
    parts: Mapping[str, ModelSpec]
    whole: ModelSpec
    given: Mapping[str, np.ndarray]
    feeds: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


IMAGE_AXES, TEXT_AXES = {0: "batch"}, {0: "batch", 1: "text:1:128"}


def like_llava() -> Case:
    """The model that is written here."""
    model = Model().eval().requires_grad_(False)
    pixels = {"pixel_values": torch.randn(1, 3, PIXELS, PIXELS)}
    ids = {"input_ids": torch.randint(0, VOCABULARY, (1, TOKENS))}
    tokens = {"image_tokens": torch.randn(1, IMAGE_TOKENS, WIDTH)}
    text, image = {"input_ids": TEXT_AXES}, {"pixel_values": IMAGE_AXES}
    parts = {
        "language": ModelSpec(model.language, tokens | ids, text | {"image_tokens": IMAGE_AXES}),
        "vision": ModelSpec(model.vision, pixels, image),
    }
    whole = ModelSpec(model, pixels | ids, image | text, context=("pixel_values",))

    def feeds(states: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
        return {"image_tokens": states, "input_ids": text}

    return Case(model.vision, model.language, parts, whole, {}, feeds)


class Features(nn.Module):
    """Pixels → image tokens, of LLaVA of `transformers`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[B, 3, 336, 336]`` → ``[B, 576, 512]``."""
        return self.projector(self.tower(pixel_values).last_hidden_state[:, 1:])


def llava() -> Case:
    """LLaVA of `transformers`: the first tokens are placeholders, of an image each."""
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=TOWER, intermediate_size=4 * TOWER, num_hidden_layers=4, num_attention_heads=4,
        image_size=PIXELS, patch_size=PATCH,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=IMAGE_TOKENS + 128,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=VOCABULARY - 1,
        vision_feature_layer=-1,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    features = Features(model.model).eval()
    causal = transformers.LlamaForCausalLM(text).eval().requires_grad_(False)
    causal.model, causal.lm_head = model.model.language_model, model.lm_head
    table = causal.model.embed_tokens.weight.numpy()
    pixels = {"pixel_values": torch.randn(1, 3, PIXELS, PIXELS)}
    places = torch.full((1, IMAGE_TOKENS), VOCABULARY - 1)
    ids = torch.cat([places, torch.randint(0, VOCABULARY - 1, (1, TOKENS))], 1)
    whole = crossfuse.huggingface_spec(
        model,
        inputs={"input_ids": ids, **pixels},
        dynamic={
            "input_ids": {0: "batch", 1: f"text:{IMAGE_TOKENS + 1}:{IMAGE_TOKENS + 128}"},
            "pixel_values": IMAGE_AXES,
        },
        context=("pixel_values",),
        prefix="placeholders",
    )
    states = torch.randn(1, IMAGE_TOKENS + TOKENS, WIDTH)
    parts = {
        "language": crossfuse.huggingface_spec(
            causal,
            inputs={"inputs_embeds": states, "logits_to_keep": TOKENS},
            dynamic={"inputs_embeds": IMAGE_AXES},
        ),
        "vision": ModelSpec(features, pixels, {"pixel_values": IMAGE_AXES}),
    }

    def language(tokens: Tensor, ids: Tensor) -> Tensor:
        embedded = torch.cat([tokens, causal.model.embed_tokens(ids)], 1)
        return causal(inputs_embeds=embedded, logits_to_keep=TOKENS).logits

    def feeds(states: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
        return {"inputs_embeds": np.concatenate([states, table[text]], 1)}

    given = {"prefix_input_ids": places.numpy()}
    return Case(features, language, parts, whole, given, feeds)


CASES = {"own": like_llava, "llava": llava}


def export_all(case: Case, folder: Path) -> None:
    """The split bundle, and the parts as bundles in one piece."""
    bundle = crossfuse.export(case.whole, folder / "split", ("ort-cpu",), quick=True)
    assert bundle.manifest.prefix is not None
    assert len(bundle.manifest.prefix.attentions) == LAYERS
    for name, spec in case.parts.items():
        crossfuse.export(spec, folder / name, ("ort-cpu",), quick=True)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(CASES), default="own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        torch.manual_seed(0)
        case = CASES[options.model]()
        export_all(case, Path(name))
        split, language, vision = (
            runtime.load(Path(name) / part, "ort-cpu") for part in ("split", "language", "vision")
        )
        pixels = torch.randn(1, 3, PIXELS, PIXELS)
        ids = torch.randint(0, VOCABULARY - 1, (QUESTIONS, TOKENS))
        image, text = pixels.numpy(), ids.numpy()
        tokens = case.vision(pixels).expand(QUESTIONS, -1, -1).contiguous()
        shown = {"pixel_values": image, **case.given}
        context = split.encode(shown)
        output = "logits" if options.model == "llava" else split.outputs[0].name

        def unsplit(states: np.ndarray) -> np.ndarray:
            return next(iter(language.run(case.feeds(states, text)).values()))

        def unsplit_encoding() -> np.ndarray:
            (found,) = vision.run(pixel_values=image).values()
            return unsplit(np.repeat(found, QUESTIONS, 0))

        ways: dict[str, Callable[[], Any]] = {
            "crossfuse": lambda: split.query(context, input_ids=text)[output],
            "unsplit, tower cached": lambda: unsplit(tokens.numpy()),
            "eager, tower cached": lambda: case.language(tokens, ids),
            "crossfuse, encoding": lambda: split.query(split.encode(shown), input_ids=text)[output],
            "unsplit, encoding": unsplit_encoding,
        }
        expected = ways["eager, tower cached"]().numpy()
        errors = {way: float(np.abs(run() - expected).max()) for way, run in ways.items()}
        taken = sample(ways, Plan(rounds=options.rounds))
    rounds = {way: taken[way].rounds for way in ways}
    pairs = {
        "unsplit, tower cached / crossfuse": ("unsplit, tower cached", "crossfuse"),
        "eager, tower cached / crossfuse": ("eager, tower cached", "crossfuse"),
        "unsplit, encoding / crossfuse, encoding": ("unsplit, encoding", "crossfuse, encoding"),
    }
    result = {
        "model": options.model,
        "questions": QUESTIONS,
        "image_tokens": IMAGE_TOKENS,
        "text_tokens": TOKENS,
        "context_mb": round(context.nbytes / 1e6, 2),
        "median_ms": {
            way: round(summarize(times).median.value * 1e3, 2) for way, times in rounds.items()
        },
        "ratio": {
            words: [round(end, 3) for end in paired_ratio(rounds[one], rounds[other]).to_json()]
            for words, (one, other) in pairs.items()
        },
        "largest_difference_from_eager": errors,
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
