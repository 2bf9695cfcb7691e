"""Which class a checkpoint becomes, and that its weights are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.load import load_model

CONFIG = transformers.BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=17
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[transformers.PreTrainedModel, Path]:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(CONFIG)
    folder = tmp_path_factory.mktemp("bert")
    model.half().save_pretrained(folder)
    return model, folder


def test_the_class_that_the_configuration_names_in_float32(
    saved: tuple[transformers.PreTrainedModel, Path],
) -> None:
    found = load_model(str(saved[1]))
    assert type(found.module).__name__ == "BertForMaskedLM"
    assert (found.missing, found.left_over) == ((), ())
    assert not found.module.training
    for name, parameter in found.module.named_parameters():
        assert (parameter.dtype, parameter.requires_grad) == (torch.float32, False)
        assert torch.equal(parameter, saved[0].get_parameter(name).float())


@pytest.mark.parametrize(
    ("task", "kind"), [("fill-mask", "BertForMaskedLM"), ("BertModel", "BertModel")]
)
def test_a_task_or_a_class(
    saved: tuple[transformers.PreTrainedModel, Path], task: str, kind: str
) -> None:
    found = load_model(str(saved[1]), task, allow_missing=True)
    assert type(found.module).__name__ == kind
    assert bool(found.left_over) == (kind == "BertModel")


def test_what_can_not_be_loaded(
    saved: tuple[transformers.PreTrainedModel, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no class of this model does the task: got 'translation'"):
        load_model(str(saved[1]), "translation")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    config = json.loads((saved[1] / "config.json").read_text())
    (renamed / "config.json").write_text(json.dumps(config | {"architectures": ["BertForTea"]}))
    (renamed / "model.safetensors").write_bytes((saved[1] / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="no such class: got BertForTea"):
        load_model(str(renamed))
    # The library's own class for the type is another model than the one that the code makes.
    own = {"architectures": ["BertForTea"], "auto_map": {"AutoModel": "tea.BertForTea"}}
    (renamed / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(InputError, match="its own code, which does not run") as raised:
        load_model(str(renamed))
    assert "trust_remote_code=True" in str(raised.value)


def test_missing_weights_are_named_or_the_same_each_time(
    saved: tuple[transformers.PreTrainedModel, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((saved[1] / "config.json").read_text())
    weights = load_file(saved[1] / "model.safetensors")
    lost = "bert.encoder.layer.0.output.dense.weight"
    weights.pop(lost)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=lost):
        load_model(str(tmp_path))
    made = [load_model(str(tmp_path), allow_missing=True) for _ in range(2)]
    assert made[0].missing == (lost,)
    first, second = (m.module.get_parameter(lost) for m in made)
    assert torch.equal(first, second)
    assert first.std() > 0
