"""Models whose attention joins blocks of a long text are exported with one attention a layer, and
equal to eager at any length, which changes how they attend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import crossfuse
from crossfuse import runtime

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 50, "block_size": 3, "num_random_blocks": 1, "max_position_embeddings": 64}


def bigbird(kind: str) -> transformers.PreTrainedModel:
    config = transformers.BigBirdConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=16,
        sep_token_id=None, is_decoder=kind == "decoder", **SIZES,
    )  # fmt: skip
    if kind == "full":
        config.attention_type = "original_full"
    return transformers.BigBirdForMaskedLM(config)


MEMBERS = ("sparse", "full", "decoder")


@pytest.mark.parametrize("kind", MEMBERS)
def test_texts_of_any_length(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bigbird(kind).eval()
    mask = torch.ones(2, 40).long()
    mask[1, 33:] = 0
    axes = {0: "batch", 1: "text:1:64"}
    spec = crossfuse.huggingface_spec(
        model,
        inputs={"input_ids": torch.randint(0, 50, (2, 40)), "attention_mask": mask},
        dynamic={"input_ids": axes, "attention_mask": axes},
    )
    bundle = crossfuse.export(spec, tmp_path / "b", ["ort-cpu"], quick=True)
    assert bundle.ledger.counts("ort-cpu") == {"self": 2}
    session = runtime.load(tmp_path / "b")
    for length in (7, 21, 22, 47):
        ids, seen = torch.randint(0, 50, (3, length)), torch.ones(3, length).long()
        seen[2, length - 2 :] = 0
        with torch.no_grad():
            expected = bigbird(kind).eval()
            expected.load_state_dict(model.state_dict())
            logits = expected(input_ids=ids, attention_mask=seen).logits
        made = session.run(input_ids=ids.numpy(), attention_mask=seen.numpy())["logits"]
        assert torch.allclose(torch.from_numpy(made), logits, atol=1e-4), length
