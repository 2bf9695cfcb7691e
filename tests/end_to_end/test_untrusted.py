"""What a bundle says is data: none of it is imported, fetched or opened as a path outside of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crossfuse
from crossfuse import BundleError, InputError
from crossfuse.api.sources import Source
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.cli import main
from crossfuse.models.registry import SIZES, zoo_spec
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.measure.coldstart import cold_start
from crossfuse.profiling.measure.inputs import inputs_at
from crossfuse.profiling.measure.sampling import Plan

FAST = Plan(rounds=3, seconds=0.001)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module and a file that write a mark when they are executed; the mark."""
    mark = tmp_path / "executed"
    code = (
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef make(): raise RuntimeError\n"
    )
    (tmp_path / "trap_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("trap_module", None)


def again(source: Any, about: dict[str, Any], **options: Any) -> Any:
    return Source.of_bundle(about, source, **options).load()


def says(bundle: Path, **source: Any) -> Path:
    """The bundle, with another source in its manifest."""
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": source}))
    return bundle


@pytest.mark.parametrize("kind", ["factory", "zoo", "huggingface", "onnx", "spec", "anything"])
@pytest.mark.parametrize(
    "name",
    ["trap_module:make", "{folder}/trap_module.py:make", "hf:{folder}", "hf:a/b", "x.onnx", ""],
)
def test_no_source_of_a_manifest_is_loaded(
    bundle_copy: Path, trap: Path, kind: str, name: str
) -> None:
    bundle = says(bundle_copy, kind=kind, name=name.format(folder=trap.parent))
    with pytest.raises(InputError, match="source="):
        crossfuse.profile(bundle, against=["eager"], plan=FAST, cold_starts=0, trace=False)
    assert not trap.exists()


def test_a_zoo_name_is_taken_whatever_else_is_said(trap: Path) -> None:
    """Size and seed are data; a checkpoint or a task would be a path or a class."""
    made = again(None, {"kind": "zoo", "name": "cross_modal_attention", "size": "tiny", "seed": 3})
    expected = zoo_spec("cross_modal_attention", "tiny", 3)
    for (name, ours), theirs in zip(
        made.module.state_dict().items(), expected.module.state_dict().values(), strict=True
    ):
        assert ours.equal(theirs), name
    about = {"kind": "zoo", "name": "clip", "checkpoint": str(trap.parent)}
    for source in (None, "clip"):
        with pytest.raises(InputError, match="checkpoint="):
            again(source, about)
    with pytest.raises(InputError, match="task="):
        again("hf:somewhere", {"kind": "huggingface", "name": "hf:somewhere", "task": "AutoModel"})
    # Of a source that the caller names, the manifest says nothing that matters.
    assert again(expected, about) is expected
    for size, seed in (("huge", 0), ("tiny", "0"), ("tiny", True), (["tiny"], 0), ({}, None)):
        with pytest.raises(InputError, match="size or seed"):
            again(None, {"kind": "zoo", "name": "clip", "size": size, "seed": seed})
    for name in ("checkpoints", "registry", "../clip", "clip.clip", "os", ["clip"], None, 3):
        with pytest.raises(InputError, match="source="):
            again(None, {"kind": "zoo", "name": name})
    assert not trap.exists()


def test_a_checkpoint_that_the_caller_names_is_loaded(tmp_path: Path) -> None:
    about = {"kind": "zoo", "name": "clip", "checkpoint": "/nowhere"}
    with pytest.raises(InputError, match=str(tmp_path)):
        again(None, about, checkpoint=str(tmp_path))


def test_commands_ask_for_the_source(
    bundle_copy: Path,
    trap: Path,
    capsys: pytest.CaptureFixture[str],
    zoo_bundle: Callable[[str], Bundle],
) -> None:
    says(bundle_copy, kind="factory", name="trap_module:make")
    with pytest.raises(SystemExit) as end:
        main(["profile", str(bundle_copy), "--against", "eager", "--cold-starts", "0"])
    assert end.value.code == 2
    assert "--source SOURCE" in capsys.readouterr().err
    assert not trap.exists()
    says(bundle_copy, kind="zoo", name="cross_modal_attention", checkpoint=str(trap.parent))
    with pytest.raises(SystemExit) as end:
        main(
            ["verify", str(bundle_copy), "--target", "ort-cpu", "--source", "cross_modal_attention"]
        )
    assert end.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err
    for command in (
        ["inspect"],
        ["verify", "--target", "ort-cpu"],
        ["verify", "--target", "ort-cpu", "--bisect"],
    ):
        says(bundle_copy, kind="factory", name="trap_module:make", checkpoint="x", task="y")
        with pytest.raises(SystemExit) as end:
            main([command[0], str(bundle_copy), *command[1:]])
        assert not end.value.code
    assert not trap.exists()


@pytest.mark.parametrize(
    "source",
    [
        {"size": "huge"},
        {"size": 3},
        {"size": ["tiny"]},
        {"seed": "1"},
        {"seed": 1.5},
        {"seed": True},
        {"seed": -1},
        {"seed": 10**30},
        {"name": ["clip"]},
        {"kind": 1},
        {"checkpoint": {}},
        {"task": 0},
    ],
)
def test_fields_of_the_source_have_types(bundle_copy: Path, source: dict[str, Any]) -> None:
    says(bundle_copy, **({"kind": "zoo", "name": "clip"} | source))
    with pytest.raises(BundleError, match=next(iter(source))):
        open_bundle(bundle_copy)


def test_sizes_are_those_of_the_zoo(bundle_copy: Path) -> None:
    for size in SIZES:
        assert (
            open_bundle(says(bundle_copy, kind="zoo", name="clip", size=size)).manifest.source[
                "size"
            ]
            == size
        )


@pytest.mark.parametrize(
    "digest",
    ["../../../../x", "/etc/passwd", "a/b", "..", "a\0b", "é", "a b", "0A" * 32, "zz" * 32],
)
def test_an_engines_digest_names_no_path(bundle_copy: Path, digest: str) -> None:
    """It becomes part of a file's name in the user's cache."""
    file = bundle_copy / "manifest.json"
    manifest = json.loads(file.read_text())
    about = {
        "library": "l",
        "version": "1",
        "compute_capabilities": [],
        "profiles": [],
        "lean": False,
    }
    for request, good in (("", True), ("0a" * 32, True), (digest, False)):
        manifest["targets"]["ort-cpu"]["engine"] = about | {"request": request}
        file.write_text(json.dumps(manifest))
        if good:
            open_bundle(bundle_copy)
            continue
        with pytest.raises(BundleError, match="request"):
            open_bundle(bundle_copy)


def test_processes_import_nothing_from_the_working_folder(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks at a stranger's bundle from within its folder, where files called as modules
    may lie."""
    bundle = zoo_bundle("cross_modal_attention")
    mark = tmp_path / "executed"
    for module in ("numpy", "json", "onnxruntime", "crossfuse", "resource"):
        (tmp_path / f"{module}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    known = load_reference(bundle.path / "reference.npz").points[0].inputs
    inputs = inputs_at(bundle.manifest.stages["model"].inputs, known, bundle.manifest.example)
    assert cold_start(bundle.path, "ort-cpu", inputs, runs=1).total > 0
    assert not mark.exists()


def test_marks_of_a_job_are_data(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from crossfuse.serve.bulk.job import Job
    from crossfuse.serve.bulk.rows import Shard

    shard = Shard(0, ("a.npz",))
    mark = tmp_path / ".shards" / "000000.json"
    mark.parent.mkdir()
    for text in (
        "",
        "[]",
        "{}",
        "3",
        '{"failed": 3}',
        '{"failed": [1]}',
        "[" * 100_000,
        '{"rows": 1}',
    ):
        mark.write_text(text)
        with pytest.raises(InputError, match="mark"):
            Job(tmp_path).collect_failures([shard])
    mark.write_text('{"rows": 1, "failed": {"a\\u001b[2J": "b\\nc"}}')
    assert Job(tmp_path).collect_failures([shard]) == 1
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert line.isprintable()
