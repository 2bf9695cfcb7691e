"""Models of ``transformers`` in forms that no tracer follows, exported and compared with eager
PyTorch in float64 at lengths, batches and masks of the test's own choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tests.coverage.cases import SEQ2SEQ, T5, TEXT, perturbed
from tests.equal_to_eager import worst_errors
from torch import Tensor, nn

import crossfuse

Inputs = dict[str, Tensor]

LENGTHS = ((1, 7), (3, 12), (2, 21))
"""Of batch and text; no length is the example's."""

MIXTURE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 36, "max_position_embeddings": 64,
    "pad_token_id": 0, "num_experts_per_tok": 2, "num_local_experts": 4,
}  # fmt: skip
LONG: dict[str, Any] = T5 | {
    "local_radius": 3, "global_block_size": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}  # fmt: skip
NGRAM: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "num_buckets": 8,
    "relative_max_distance": 16,
}  # fmt: skip


def text(batch: int = 2, length: int = 13, *, padded: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(batch * length)
    mask = torch.ones(batch, length).long()
    if padded:
        mask[-1, length - length // 3 :] = 0
    return {
        "input_ids": torch.randint(3, 98, (batch, length), generator=generator),
        "attention_mask": mask,
    }


def translation(batch: int = 2, length: int = 13, *, padded: bool = True) -> Inputs:
    generator = torch.Generator().manual_seed(length)
    target = torch.randint(3, 98, (batch, length // 2 + 2), generator=generator)
    return text(batch, length, padded=padded) | {"decoder_input_ids": target}


def with_global(batch: int = 2, length: int = 13, *, padded: bool = True) -> Inputs:
    given = text(batch, length, padded=padded)
    chosen = torch.zeros(batch, length).long()
    chosen[:, 0] = 1
    return given | {"global_attention_mask": chosen}


def mixtral() -> nn.Module:
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**MIXTURE))
    model.set_experts_implementation("eager")
    return model


def jetmoe() -> nn.Module:
    return hf.JetMoeForCausalLM(
        hf.JetMoeConfig(**MIXTURE, kv_channels=8, activation_function="silu")
    )


def nllb_moe() -> nn.Module:
    experts = {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
    return hf.NllbMoeForConditionalGeneration(
        hf.NllbMoeConfig(**SEQ2SEQ, **experts, expert_capacity=64)
    )


def switch() -> nn.Module:
    sparse = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    return hf.SwitchTransformersForConditionalGeneration(
        hf.SwitchTransformersConfig(
            **T5, **sparse, num_decoder_layers=2, num_experts=4, expert_capacity=64
        )
    )


def longt5() -> nn.Module:
    return hf.LongT5ForConditionalGeneration(
        hf.LongT5Config(**LONG, encoder_attention_type="local")
    )


def pegasus_x() -> nn.Module:
    return hf.PegasusXForConditionalGeneration(
        hf.PegasusXConfig(**SEQ2SEQ, block_size=4, num_global_tokens=3)
    )


def longformer() -> nn.Module:
    limit = {"max_position_embeddings": 66}
    return hf.LongformerModel(hf.LongformerConfig(**TEXT | limit, attention_window=[4, 4]))


def led() -> nn.Module:
    limits = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
    return hf.LEDForConditionalGeneration(hf.LEDConfig(**SEQ2SEQ | limits, attention_window=[4, 4]))


def fsmt() -> nn.Module:
    words = {"langs": ["en", "de"], "src_vocab_size": 99, "tgt_vocab_size": 99}
    sizes = {name: value for name, value in SEQ2SEQ.items() if name != "vocab_size"}
    return hf.FSMTForConditionalGeneration(hf.FSMTConfig(**sizes, **words))


def aimv2_text() -> nn.Module:
    return hf.Aimv2TextModel(hf.Aimv2TextConfig(**TEXT, eos_token_id=98, pad_token_id=0))


def prophetnet() -> nn.Module:
    return hf.ProphetNetForConditionalGeneration(hf.ProphetNetConfig(**NGRAM, ngram=2))


def prophetnet_decoder_of_three() -> nn.Module:
    return hf.ProphetNetForConditionalGeneration(hf.ProphetNetConfig(**NGRAM, ngram=3))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Inputs], int]] = {
    "experts: Mixtral": (mixtral, text, 2),
    "experts: JetMoE": (jetmoe, text, 2),
    "experts: NLLB-MoE": (nllb_moe, translation, 6),
    "experts, parts that are converted: Switch Transformers": (switch, translation, 6),
    "blocks: LongT5": (longt5, translation, 6),
    "blocks: Pegasus-X": (pegasus_x, translation, 7),
    "windows, a branch on any: Longformer": (longformer, with_global, 4),
    "windows, a branch on any: LED": (led, translation, 8),
    "a branch on any: FSMT": (fsmt, translation, 6),
    "a mask left out: AIMv2": (aimv2_text, text, 2),
    "n-grams: ProphetNet": (prophetnet, translation, 8),
    "n-grams: ProphetNet of three": (prophetnet_decoder_of_three, translation, 8),
}
"""Kind and model → the model, its inputs, and how many attentions it has."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equals_eager(kind: str, tmp_path: Path) -> None:
    make, inputs, attentions = KINDS[kind]
    torch.manual_seed(0)
    model = perturbed(make())
    axes: dict[str, dict[int, str]] = {
        name: {0: "batch", 1: "target" if name.startswith("decoder") else "text"}
        for name in inputs()
    }
    spec = crossfuse.huggingface_spec(model, inputs=inputs(), dynamic=axes)
    bundle = crossfuse.export(spec, tmp_path / "bundle", targets=["ort-cpu"])
    assert len(bundle.ledger) == attentions
    points = [
        inputs(batch, length, padded=padded) for batch, length in LENGTHS for padded in (0, 1)
    ]
    # FSMT fills a float32 tensor with the lowest number of its own dtype.
    dtype = torch.float32 if make is fsmt else torch.float64
    for name, error in worst_errors(tmp_path / "bundle", model, points, dtype).items():
        assert error < 1e-4, name
