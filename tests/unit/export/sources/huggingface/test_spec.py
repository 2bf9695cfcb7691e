"""From a model, or where it is, to a spec."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.spec import huggingface_spec

CONFIG = transformers.BartConfig(
    vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=17, decoder_ffn_dim=17, max_position_embeddings=20,
)  # fmt: skip


def model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.BartForConditionalGeneration(CONFIG).eval()


def test_everything_is_planned_where_nothing_is_given() -> None:
    spec = huggingface_spec(model())
    assert list(spec.inputs) == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert spec.context == ("input_ids", "attention_mask")
    assert (spec.decode, spec.decode_where_possible) == ("decoder_input_ids", True)
    assert spec.name == "BartForConditionalGeneration"
    again = huggingface_spec(model())
    assert all(torch.equal(spec.inputs[n], again.inputs[n]) for n in spec.inputs)
    assert spec.sample({**spec.example_sizes, "batch": 5}, 3)["input_ids"].shape[0] == 5


def test_what_is_given_stands() -> None:
    ids = torch.arange(4, 10).reshape(2, 3)
    given = {"input_ids": ids, "decoder_input_ids": ids}
    dynamic = {name: {0: "batch", 1: Dim("text", 2, 9)} for name in given}
    spec = huggingface_spec(model(), inputs=given, dynamic=dynamic, context=("input_ids",))
    assert torch.equal(spec.inputs["input_ids"], ids)
    assert (spec.context, spec.decode, spec.dims["text"]) == (
        ("input_ids",),
        None,
        Dim("text", 2, 9),
    )
    part = huggingface_spec(model(), context=(), decode="decoder_input_ids")
    assert (part.context, part.decode, part.decode_where_possible) == (
        (),
        "decoder_input_ids",
        False,
    )
    assert huggingface_spec(model(), context=()).decode is None


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path)
    spec, own = huggingface_spec(str(tmp_path)), huggingface_spec(made)
    assert spec.name == own.name
    with torch.no_grad():
        left, right = (s.module(**s.inputs)[0] for s in (spec, own))
    assert torch.equal(left, right)
