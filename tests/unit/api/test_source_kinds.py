"""Which kind a source is, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossfuse import InputError, ModelSpec
from crossfuse.api.source_kinds import SourceKind, kind_of
from crossfuse.models.registry import ZOO

KINDS = {
    "clip": SourceKind.ZOO,
    "cross_modal_attention": SourceKind.ZOO,
    "hf:folder": SourceKind.HUGGINGFACE,
    "hf:org/name": SourceKind.HUGGINGFACE,
    "hf:org/model.onnx": SourceKind.HUGGINGFACE,
    "hf:a:b": SourceKind.HUGGINGFACE,
    "diffusers:folder": SourceKind.DIFFUSERS,
    "diffusers:folder/vae/decoder": SourceKind.DIFFUSERS,
    "diffusers:a:b": SourceKind.DIFFUSERS,
    "model.onnx": SourceKind.ONNX,
    "a/b.onnx": SourceKind.ONNX,
    "C:\\a\\b.onnx": SourceKind.ONNX,
    "package.module:make": SourceKind.FACTORY,
    "file.py:make": SourceKind.FACTORY,
    "file.py": SourceKind.FACTORY,
    "clip:make": SourceKind.FACTORY,
}


@pytest.mark.parametrize("source", KINDS)
def test_kinds_of_text(source: str) -> None:
    assert kind_of(source) is KINDS[source]


def test_kinds_are_the_manifests_words() -> None:
    assert {kind.value for kind in SourceKind} == {
        "zoo", "huggingface", "diffusers", "onnx", "factory", "spec"
    }  # fmt: skip
    spec = ModelSpec(torch.nn.ReLU(), {"input": torch.ones(2)})
    assert kind_of(spec) is SourceKind.SPEC
    assert all(kind_of(name) is SourceKind.ZOO for name in ZOO)


def test_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("bundle").mkdir()
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text("{}")
    Path("bundle/manifest.json").write_text("{}")
    for source, advice in (
        ("cilp", "Did you mean 'clip'"),
        ("org/name", "named hf:org/name"),
        ("checkpoint", "named hf:checkpoint"),
        ("bundle", "folder with a bundle"),
        ("pipeline", "named diffusers:pipeline"),
        ("package.module", "package.module:factory"),
        ("something", "lists the zoo"),
        ("", "lists the zoo"),
        ("model.ONNX", "package.module:factory"),
    ):
        with pytest.raises(InputError, match=advice):
            kind_of(source)
    for source, message in (
        (torch.nn.ReLU(), "a module alone is no source"),
        (lambda: None, "a function is no source"),
        (Path("model.onnx"), "is a crossfuse.ModelSpec or a text: got "),
        (None, "got NoneType"),
        (b"clip", "got bytes"),
    ):
        with pytest.raises(InputError, match=message):
            kind_of(source)
