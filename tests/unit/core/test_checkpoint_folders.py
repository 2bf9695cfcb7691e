"""Checkpoints: what their folders may lead to, and weights that are missing, renamed, of another
shape, or left over."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import crossfuse
from coverage.cases import TEXT, VISION
from crossfuse import InputError
from crossfuse.api.sources import Source, SourceOptions
from crossfuse.cli import main
from crossfuse.export.sources.huggingface.load import load_model
from crossfuse.models.checkpoints import load_module
from unit.models.test_zoo import clip_model, saved

BERT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sequence classifier, and the same model without its head."""
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**BERT))
    folder = tmp_path_factory.mktemp("originals")
    model.save_pretrained(folder / "whole")
    model.bert.save_pretrained(folder / "base")
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "whole", tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> str:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def configure(folder: Path, **entries: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def sharded(folder: Path, name: str = SHARD) -> Path:
    """The folder's weights behind an index that says they are in a file of this name."""
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder / SHARD)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))
    return index


# What a checkpoint lacks


def test_a_base_checkpoint_is_no_classifier(originals: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"BertForSequenceClassification.*2 missing \(classifier.bias, classifier.weight\)",
    ):
        load_model(str(originals / "base"), "BertForSequenceClassification")
    loaded = load_model(
        str(originals / "base"), "BertForSequenceClassification", allow_missing=True
    )
    again = load_model(str(originals / "base"), "BertForSequenceClassification", allow_missing=True)
    assert loaded.missing == ("classifier.bias", "classifier.weight")
    assert torch.equal(loaded.module.classifier.weight, again.module.classifier.weight), (
        "random weights are seeded"
    )


def test_renamed_weights_are_named_on_both_sides(folder: Path) -> None:
    key = "bert.encoder.layer.0.attention.self.query.weight"
    source = change(folder, lambda t: t.update({"bert.encoder.layer.0.attn.q.weight": t.pop(key)}))
    with pytest.raises(
        InputError,
        match=rf"1 missing \({key}\); 1 that the model doesn't know \(bert.*attn.q.weight\)",
    ):
        load_model(source)


def test_weights_of_another_shape_are_named_with_both_shapes(folder: Path) -> None:
    source = change(folder, lambda t: t.update({"classifier.weight": torch.zeros(5, 32)}))
    with pytest.raises(
        InputError, match=r"1 in another shape \(classifier.weight \[5, 32\] for \[2, 32\]\)"
    ):
        load_model(source)
    assert load_model(source, allow_missing=True).missing == ("classifier.weight",)


def test_weights_left_over_are_reported_and_no_error(folder: Path) -> None:
    source = change(folder, lambda t: t.update({"bert.encoder.layer.7.extra": torch.zeros(3)}))
    assert load_model(source).left_over == ("bert.encoder.layer.7.extra",)


T5 = {"vocab_size": 99, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}


@pytest.mark.parametrize("make", [
    lambda: hf.T5Model(hf.T5Config(**T5)),
    lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
], ids=["T5", "BERT", "GPT-2", "CLIP"])  # fmt: skip
def test_tied_weights_and_buffers_are_not_missing(
    make: Callable[[], hf.PreTrainedModel], tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert (loaded.missing, loaded.left_over) == ((), ())


def test_random_weights_are_told_in_the_bundle(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [
        "export",
        f"hf:{originals / 'base'}",
        "--task",
        "BertForSequenceClassification",
        "-o",
        str(tmp_path / "b"),
    ]
    with pytest.raises(SystemExit) as stop:
        main(source)
    assert stop.value.code == 2
    assert "--allow-missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*source, "--allow-missing"])
    assert stop.value.code == 0
    assert (
        "2 weights are random, as the checkpoint lacks them: classifier.bias, classifier.weight"
        in capsys.readouterr().err
    )
    manifest = crossfuse.open_bundle(tmp_path / "b").manifest
    assert manifest.source["missing_weights"] == ["classifier.bias", "classifier.weight"]
    assert crossfuse.verify(
        tmp_path / "b", source=f"hf:{originals / 'base'}", task="BertForSequenceClassification"
    ).passed


def test_checkpoints_of_the_zoo(tmp_path: Path) -> None:
    folder = Path(saved(clip_model(98), tmp_path))
    change(
        folder,
        lambda t: t.update(
            {"visual_projection.weight": torch.zeros(3, 3), "text_model.more": torch.zeros(2)}
        ),
    )
    change(folder, lambda t: t.pop("logit_scale"))
    with pytest.raises(
        InputError,
        match=r"1 missing \(logit_scale\); 1 in another shape \(visual_projection.weight \[3, 3\]",
    ):
        load_module("clip", str(folder))
    loaded = load_module("clip", str(folder), allow_missing=True)
    assert loaded.missing == ("logit_scale", "visual_projection.weight")
    assert loaded.left_over == ("text_model.more",)
    options = SourceOptions(checkpoint=str(folder), allow_missing=True)
    spec = Source.of("clip", options).load()
    assert spec.about == {
        "missing_weights": list(loaded.missing),
        "left_over_weights": ["text_model.more"],
    }


# Where a folder may lead


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.file),)


INDEXED = [
    "../x.bin", "/etc/x.safetensors", "../x.safetensors", "sub/x.safetensors", "x.bin", "x.pt",
    "x.ckpt", "x.pth", "x.pkl", "..\\x.safetensors", "x.SAFETENSORS", "x.safetensors\0.bin",
    "C:x.safetensors", ".safetensors", "", 3, None, ["x"],
]  # fmt: skip


@pytest.mark.parametrize("name", INDEXED, ids=map(repr, INDEXED))
def test_an_index_names_plain_files_alone(name: object, folder: Path) -> None:
    index = sharded(folder)
    data = json.loads(index.read_text())
    data["weight_map"]["classifier.bias"] = name
    index.write_text(json.dumps(data))
    for load in (lambda: load_model(str(folder)), lambda: load_module("clip", str(folder))):
        with pytest.raises(InputError, match=r"the index names a file that can't be loaded"):
            load()


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "{}", "[" * 9999], ids=repr
)
def test_a_broken_index_is_refused(text: str, folder: Path) -> None:
    sharded(folder).write_text(text)
    with pytest.raises(InputError, match="index|JSON"):
        load_model(str(folder))


def test_a_pickle_is_not_read_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(InputError, match="no safetensors file, whatever its name says"):
        load_model(str(folder))
    assert not trap.exists()


def test_an_index_that_is_whole_loads(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")["classifier.weight"]
    sharded(folder)
    assert torch.equal(load_model(str(folder)).module.classifier.weight, expected)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", SHARD]
)
def test_links_stay_in_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    if "-" in name or "index" in name:
        sharded(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link that leads out of its folder"):
        load_model(str(folder))
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="a link to nothing"):
        load_model(str(folder))


def hub_cache(folder: Path, root: Path, name: str = "someone--thing") -> Path:
    """A hub's cache: files are links to blobs beside the snapshots."""
    repository = root / f"models--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for made in (snapshot, repository / "blobs", repository / "refs"):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / f"{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    return snapshot


def test_links_of_a_hubs_cache_load(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(folder, tmp_path / "hub")
    assert load_model(str(snapshot)).missing == ()
    (tmp_path / "linked").symlink_to(snapshot)
    assert load_model(str(tmp_path / "linked")).missing == ()
    (snapshot / "model.safetensors").unlink()
    other = tmp_path / "hub" / "models--someone--other" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_bytes(b"")
    (snapshot / "model.safetensors").symlink_to(other / "0")
    with pytest.raises(InputError, match="leads out"):
        load_model(str(snapshot))


def test_an_identifier_is_checked_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub_cache(
        Path(shutil.copytree(folder, tmp_path / "one file")), tmp_path / "hub", "someone--small"
    )
    index = sharded(folder)
    text = index.read_text()
    snapshot = hub_cache(folder, tmp_path / "hub")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("someone/small").missing == ()
    assert load_model("someone/thing").missing == ()
    (snapshot / index.name).resolve().write_text(text.replace(SHARD, "../x.bin"))
    with pytest.raises(InputError, match="the index names a file that can't be loaded"):
        load_model("someone/thing")


def test_other_models_are_not_read_in_addition(folder: Path) -> None:
    adapter = folder / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "../another"}')
    with pytest.raises(InputError, match="an adapter, which names another model"):
        load_model(str(folder))
    adapter.unlink()
    for name in (".metadata", "__0_0.distcp", "shard-00000-model-00001-of-00001.safetensors"):
        (folder / name).write_bytes(b"")
        with pytest.raises(InputError, match="a distributed checkpoint"):
            load_model(str(folder))
        (folder / name).unlink()
    assert load_model(str(folder)).missing == ()


ELSEWHERE: dict[str, dict[str, object]] = {
    "weights by name": {"transformers_weights": "../x.safetensors"},
    "pickled adapter": {"transformers_weights": "adapter_model.bin"},
    "index elsewhere": {"transformers_weights": "../model.safetensors.index.json"},
    "kernel of a hub": {"attn_implementation": "someone/kernel"},
    "kernel by revision": {"_attn_implementation": "someone/kernel@main:forward"},
    "kernel of a part": {
        "vision_config": {"attn_implementation": {"": "sdpa", "text": "someone/kernel"}}
    },
    "experts": {"experts_implementation": "someone/kernel"},
    "code of another repository": {"auto_map": {"AutoModel": "someone/else--modeling.Model"}},
    "code of a part": {"text_config": [{"auto_map": {"AutoModel": ["../x.Model", None]}}]},
}


@pytest.mark.parametrize("case", list(ELSEWHERE))
@pytest.mark.parametrize("trust", [False, True], ids=["untrusted", "trusted"])
def test_a_configuration_leads_nowhere_else(case: str, trust: bool, folder: Path) -> None:
    configure(folder, **ELSEWHERE[case])
    with pytest.raises(
        InputError, match="names weights that can't be loaded|asks for code of another repository"
    ):
        load_model(str(folder), trust_remote_code=trust)


def test_code_in_the_folder_is_not_run_without_trust(folder: Path, tmp_path: Path) -> None:
    """The library knows the model's type, so it needs none of the checkpoint's code."""
    configure(folder, auto_map={"AutoModel": "modeling_x.Model", "AutoConfig": "modeling_x.Config"})
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert type(load_model(str(folder)).module) is hf.BertForSequenceClassification
    assert not (tmp_path / "ran").exists()
