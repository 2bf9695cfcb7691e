"""A source's way: words → `Source` → spec → manifest → `Source`; its kind decided once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import crossfuse
from crossfuse import Dim, InputError, ModelSpec
from crossfuse.api import sources
from crossfuse.api.sources import Source, SourceOptions
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle
from crossfuse.cli import main
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.measure.sampling import Plan

NAME = "cross_modal_attention"
FAST = {"plan": Plan(rounds=3, seconds=0.001), "cold_starts": 0, "trace": False}
OPTIONS = SourceOptions(
    size="tiny",
    seed=3,
    trust_remote_code=True,
    context=("b", "b_mask"),
    dynamic={"b": {1: "keys:1:64"}, "b_mask": {1: Dim("keys", 1, 64)}, "a": {1: Dim("rows", 2)}},
    decode=None,
    drop_outputs=("context",),
    examples=(Path("secret.npz"),),
)

FACTORY = f"""
from crossfuse.models.registry import zoo_spec
def make(): return zoo_spec({NAME!r}, "tiny")
"""


def test_options_come_back_from_a_manifest() -> None:
    source = Source.of(NAME, OPTIONS)
    about = json.loads(json.dumps(source.to_manifest()))
    again = Source.of_bundle(about)
    assert (again.kind, again.name) == (source.kind, NAME)
    assert again.to_manifest() == about
    for option in fields(SourceOptions):
        here, there = (getattr(one.options, option.name) for one in (source, again))
        if option.name == "dynamic":
            assert there == {
                "b": {1: "keys:1:64"},
                "b_mask": {1: "keys:1:64"},
                "a": {1: "rows:2"},
            }
        elif option.name in ("trust_remote_code", "examples"):
            assert not there, f"{option.name} is never stored"
        else:
            assert here == there, option.name
    assert "secret" not in json.dumps(about)
    assert "trust" not in json.dumps(about)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("clip", {"seed": 2}, {"kind": "zoo", "size": "published", "seed": 2}),
        ("clip", {"checkpoint": "there"}, {"kind": "zoo", "checkpoint": "there"}),
        ("hf:a/b", {"task": "t", "seed": 4}, {"kind": "huggingface", "task": "t"}),
        ("m.onnx", {"size": "tiny"}, {"kind": "onnx"}),
        ("a.b:c", {"decode": "ids"}, {"kind": "factory", "decode": "ids"}),
    ],
)
def test_a_manifest_holds_what_matters_to_the_kind(
    source: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    about = Source.of(source, SourceOptions(**options)).to_manifest()
    assert about == {"name": source} | expected


def test_options_are_in_the_models_place() -> None:
    spec = Source.of(NAME, replace(OPTIONS, examples=())).load()
    assert spec.context == ("b", "b_mask")
    assert spec.axes["a"] == {0: "batch", 1: "rows"}
    assert spec.dims["keys"] == Dim("keys", 1, 64)
    assert spec.drop_outputs == ("context",)
    plain = Source.of(NAME, SourceOptions(size="tiny", seed=3))
    assert plain.load().context == zoo_spec(NAME, "tiny").context
    given = zoo_spec(NAME, "tiny")
    assert Source.of(given).load() is given
    # The sampler goes on being asked by its own names.
    made = spec.sample({"batch": 2, "rows": 5, "keys": 4}, seed=1)
    assert made["a"].shape[:2] == (2, 5)
    assert made["b_mask"].shape == (2, 4)


def test_decoding_that_is_asked_for_is_no_offer() -> None:
    spec = replace(zoo_spec("dalle", "tiny"), decode=None, decode_where_possible=True)
    name = next(n for n, t in spec.inputs.items() if t.dtype == torch.int64)
    changed = Source.of(spec, SourceOptions(decode=name)).load()
    assert (changed.decode, changed.decode_where_possible) == (name, False)
    assert Source.of(spec, SourceOptions(drop_outputs=("x",))).load().decode_where_possible


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": ("c",)}, "context names an input that doesn't exist: got 'c'"),
        ({"dynamic": {"c": {0: "n"}}}, "dynamic names an input that doesn't exist"),
        ({"dynamic": {"a": {7: "n"}}}, "dynamic axis doesn't exist"),
        ({"dynamic": {"a": {1: "n:x"}}}, "can't be read"),
        ({"decode": "c"}, "decode names an input that doesn't exist"),
    ],
)
def test_options_that_name_what_the_model_lacks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source.of(NAME, SourceOptions(size="tiny", **options)).load()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the kind was decided of, each time that it was."""
    found: list[object] = []
    real = sources.kind_of

    def counting(source: object) -> Any:
        found.append(source)
        return real(source)

    monkeypatch.setattr(sources, "kind_of", counting)
    return found


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    assert end.value.code == 0


@pytest.mark.slow
def test_the_kind_is_decided_once_per_command(
    decided: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with all options at once the bundle is verified and profiled against its model."""
    (tmp_path / "mine.py").write_text(FACTORY)
    bundle = tmp_path / "b"
    told = ["--context", "b", "--context", "b_mask", "--dynamic", "b:1=keys:1:64"]
    told += ["--dynamic", "b_mask:1=keys", "--drop-output", "context"]
    run("export", NAME, "--size", "tiny", "--quick", "-o", bundle, *told)
    assert decided == [NAME]
    manifest = crossfuse.open_bundle(bundle).manifest
    assert manifest.source == {
        "kind": "zoo",
        "name": NAME,
        "size": "tiny",
        "seed": 0,
        "context": ["b", "b_mask"],
        "dynamic": {"b": {"1": "keys:1:64"}, "b_mask": {"1": "keys"}},
        "drop_outputs": ["context"],
    }
    schema = Path(crossfuse.__file__).parent / "bundle" / "manifest.schema.json"
    jsonschema.validate(json.loads(manifest.dumps()), json.loads(schema.read_text()))
    for source in (NAME, f"{tmp_path / 'mine.py'}:make"):
        decided.clear()
        run("verify", bundle, "--source", source)
        assert decided == [source]
    decided.clear()
    run("verify", bundle)
    run("build", bundle, "--target", "onnx")
    assert decided == []
    rivals = ["--against", "eager,onnx", "--sweep", "keys=3,9", "--cold-starts", 0, "--no-trace"]
    capsys.readouterr()
    run("profile", bundle, *rivals, "--rounds", 3, "--seconds", 0.001, "--json")
    assert decided == [NAME]
    rows = json.loads(capsys.readouterr().out)["rows"]
    against = [row for row in rows if row["name"] in ("eager", "onnx")]
    assert len(against) == 4
    assert all(row["failure"] is None and row["error"] < 1e-5 for row in against)


@pytest.mark.parametrize("kind", ["zoo", "factory", "spec"])
def test_dropped_outputs_are_dropped_again(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    source: ModelSpec | str = {
        "zoo": NAME,
        "factory": f"{tmp_path / 'mine.py'}:make",
        "spec": zoo_spec(NAME, "tiny"),
    }[kind]
    bundle = crossfuse.export(
        source, tmp_path / "b", size="tiny", drop_outputs=["cont*"], quick=True
    )
    assert bundle.manifest.source["drop_outputs"] == ["cont*"]
    report = crossfuse.verify(bundle, source=source, seed=5)
    assert report.passed
    assert set(report.outputs) == {"fused"}
    told = None if kind == "zoo" else source
    report2 = crossfuse.profile(bundle, against=["eager"], source=told, **FAST)
    assert [row.failure for row in report2.rows] == [None] * len(report2.rows)


def test_what_a_manifest_may_say(zoo_bundle: Callable[[str], Bundle]) -> None:
    """Names and axes are data of their types; anything else is refused as the bundle is opened."""
    text = zoo_bundle(NAME).manifest.dumps()

    def loads(**source: Any) -> Manifest:
        data = json.loads(text)
        data["source"] |= source
        return Manifest.loads(json.dumps(data), "here")

    good = {"context": ["a"], "dynamic": {"a": {"0": "n:1:4"}}, "decode": "a", "drop_outputs": []}
    assert loads(**good).source["dynamic"] == {"a": {"0": "n:1:4"}}
    assert loads(context=None, dynamic=None, decode=None, drop_outputs=None)
    for key, value in (
        ("context", "a"),
        ("context", [1]),
        ("drop_outputs", {"a": "b"}),
        ("drop_outputs", [["a"]]),
        ("decode", ["a"]),
        ("decode", 3),
        ("dynamic", ["a"]),
        ("dynamic", {"a": "n"}),
        ("dynamic", {"a": {"x": "n"}}),
        ("dynamic", {"a": {"-1": "n"}}),
        ("dynamic", {"a": {"9" * 5000: "n"}}),
        ("dynamic", {"a": {"0": 3}}),
    ):
        with pytest.raises(crossfuse.BundleError, match="the manifest is invalid"):
            loads(**{key: value})


def test_another_model_than_the_bundles(tmp_path: Path) -> None:
    """Options of the manifest that the caller's model doesn't know are said plainly."""
    bundle = crossfuse.export(NAME, tmp_path / "b", size="tiny", context=["b", "b_mask"])
    other = ModelSpec(torch.nn.ReLU(), {"input": torch.ones(2, 3)})
    with pytest.raises(InputError, match="not the bundle's model: it has other inputs"):
        crossfuse.verify(bundle, source=other)
    with pytest.raises(InputError, match="context names an input that doesn't exist"):
        crossfuse.profile(bundle, against=["eager"], source=other, **FAST)
