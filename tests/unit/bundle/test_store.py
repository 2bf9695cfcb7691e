"""Bundles: damaged, unsafe and newer ones are refused with a reason; writes are atomic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import crossfuse
from crossfuse import BundleError, CheckError, InputError, ModelSpec, runtime
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle


def edit(bundle: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest as an attacker would."""
    file = bundle / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def link_elsewhere(path: Path) -> None:
    """To a file outside of the bundle that has the right size, and another content."""
    target = path.parent.parent / "elsewhere"
    shutil.copy(path, target)
    flip_byte(target)
    path.unlink()
    path.symlink_to(target)


def link_to_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, "there is no bundle"),
    "missing manifest": (lambda b: (b / "manifest.json").unlink(), "there is no bundle"),
    "missing graph": (
        lambda b: (b / "model.ort-cpu.onnx").unlink(),
        "file of the bundle is missing",
    ),
    "missing weights": (lambda b: (b / "weights.bin").unlink(), "file of the bundle is missing"),
    "flipped byte in weights": (lambda b: flip_byte(b / "weights.bin"), "was changed"),
    "flipped byte in graph": (lambda b: flip_byte(b / "model.ort-cpu.onnx"), "was changed"),
    "flipped byte in another target": (lambda b: flip_byte(b / "model.onnx"), "was changed"),
    "flipped byte in the reference": (lambda b: flip_byte(b / "reference.npz"), "was changed"),
    "truncated weights": (lambda b: truncate(b / "weights.bin"), "wrong size"),
    "weights are a link to others": (lambda b: link_elsewhere(b / "weights.bin"), "was changed"),
    "manifest is a link to a folder": (
        lambda b: link_to_folder(b / "manifest.json"),
        "there is no bundle",
    ),
    "not JSON": (lambda b: truncate(b / "manifest.json"), "not valid JSON"),
    "not UTF-8": (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe{"), "can't be read"),
    "deep JSON": (lambda b: (b / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
    "not an object": (lambda b: (b / "manifest.json").write_text("[]"), "manifest is invalid"),
    "NaN": (
        lambda b: edit(b, lambda m: m["source"].update(seed=float("nan"))),
        "NaN is not allowed",
    ),
    "infinity": (
        lambda b: edit(b, lambda m: m["source"].update(seed=float("inf"))),
        "Infinity is not allowed",
    ),
    "newer schema": (
        lambda b: edit(b, lambda m: m.update(schema_version=2)),
        "written by a newer crossfuse",
    ),
    "no schema version": (
        lambda b: edit(b, lambda m: m.pop("schema_version")),
        "schema_version.*got 'nothing'",
    ),
    "absolute path": (
        lambda b: edit(b, lambda m: m["targets"]["ort-cpu"]["stages"].update(model="/etc/passwd")),
        "outside the bundle",
    ),
    "parent path": (
        lambda b: edit(b, lambda m: m["files"].update({"../x": m["files"]["weights.bin"]})),
        "outside the bundle",
    ),
    "path in files of a target": (
        lambda b: edit(b, lambda m: m["targets"]["ort-cpu"].update(files=["a/../../x"])),
        "outside the bundle",
    ),
    "unlisted file": (
        lambda b: edit(b, lambda m: m["files"].pop("weights.bin")),
        "doesn't list a file",
    ),
    "wrong type": (lambda b: edit(b, lambda m: m.update(name=3)), "name.*got 3, expected str"),
    "negative size": (
        lambda b: edit(b, lambda m: m["files"]["weights.bin"].update(size=-1)),
        r"files\.weights\.bin\.size.*0 or more",
    ),
    "bool as size": (
        lambda b: edit(b, lambda m: m["files"]["weights.bin"].update(size=True)),
        "expected int",
    ),
    "bad digest": (
        lambda b: edit(b, lambda m: m["files"]["weights.bin"].update(sha256="0")),
        "64 hexadecimal",
    ),
    "bad dtype": (
        lambda b: edit(b, lambda m: m["stages"]["model"]["inputs"][0].update(dtype="object")),
        r"stages\.model\.inputs\[0\]\.dtype.*got 'object', expected float16",
    ),
    "bad dimension": (
        lambda b: edit(b, lambda m: m["dims"]["batch"].update(min=9, max=3)),
        "range is empty",
    ),
    "other inputs": (
        lambda b: edit(b, lambda m: m["stages"]["model"]["inputs"][0].update(name="other")),
        "not the manifest's",
    ),
    "unknown stage": (
        lambda b: edit(b, lambda m: m["targets"]["ort-cpu"].update(stages={"x": "model.onnx"})),
        "stage",
    ),
    "absent target": (lambda b: edit(b, lambda m: m["targets"].pop("ort-cpu")), "no such target"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_bundles_are_refused(bundle_copy: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(bundle_copy)
    with pytest.raises(BundleError, match=message):
        runtime.load(bundle_copy, "ort-cpu")


@pytest.mark.parametrize(
    "damage", ["flipped byte in weights", "absolute path", "newer schema", "missing folder"]
)
def test_command_line_refuses_them_in_one_paragraph(
    bundle_copy: Path, damage: str, tmp_path: Path
) -> None:
    DAMAGE[damage][0](bundle_copy)
    np.savez(tmp_path / "in.npz", a=np.ones(1))
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "run",
        str(bundle_copy),
        "--input",
        str(tmp_path / "in.npz"),
    ]
    command += ["--target", "ort-cpu", "--output", str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_damaged_weights_are_refused_before_the_engine_sees_them(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the engine parsed an unverified bundle")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    flip_byte(bundle_copy / "weights.bin")
    with pytest.raises(BundleError, match="was changed"):
        runtime.load(bundle_copy, "ort-cpu")


def test_graph_with_weights_outside_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    """A crafted graph, with a manifest to match, that reads a file beside the bundle."""
    import onnx

    from crossfuse.bundle.store import entry_of

    (tmp_path / "secret").write_bytes((bundle_copy / "weights.bin").read_bytes())
    for name in ("model.ort-cpu.onnx", "fused.onnx"):
        model = onnx.load(bundle_copy / name, load_external_data=False)
        for tensor in model.graph.initializer:
            for item in tensor.external_data:
                if item.key == "location":
                    item.value = "../secret"
        (bundle_copy / name).write_bytes(model.SerializeToString())
        entry = entry_of(bundle_copy / name)
        edit(
            bundle_copy,
            lambda m, n=name, e=entry: m["files"].update({n: {"size": e.size, "sha256": e.sha256}}),
        )
    with pytest.raises(BundleError, match="nothing outside the bundle is read"):
        runtime.load(bundle_copy, "ort-cpu")
    with pytest.raises(BundleError, match="nothing outside the bundle is read"):
        crossfuse.build(bundle_copy, "onnx")


@pytest.mark.parametrize("name", ["cross_modal_attention", "qformer", "dalle"])
def test_manifest_follows_its_schema(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    schema = json.loads(files("crossfuse.bundle").joinpath("manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads((zoo_bundle(name).path / "manifest.json").read_text())
    jsonschema.validate(data, schema)
    again = open_bundle(zoo_bundle(name).path).manifest
    assert json.loads(again.dumps()) == data


@pytest.mark.parametrize("key", ["name", "files", "targets", "ledger", "stages"])
def test_schema_and_reader_agree_about_what_is_required(bundle_copy: Path, key: str) -> None:
    schema = json.loads(files("crossfuse.bundle").joinpath("manifest.schema.json").read_text())
    edit(bundle_copy, lambda m: m.pop(key))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads((bundle_copy / "manifest.json").read_text()), schema)
    with pytest.raises(BundleError, match=key):
        open_bundle(bundle_copy)


def test_build_adds_and_replaces_targets(bundle_copy: Path) -> None:
    weights = (bundle_copy / "weights.bin").read_bytes()
    edit(bundle_copy, lambda m: m["targets"].pop("onnx"))
    bundle = crossfuse.build(bundle_copy, "onnx")
    assert set(bundle.targets) == {"ort-cpu", "ort-cuda", "onnx"}
    assert crossfuse.build(bundle_copy, "ort-cpu").ledger.counts("ort-cpu") == {"cross": 1}
    assert (bundle_copy / "weights.bin").read_bytes() == weights
    assert all(crossfuse.verify(bundle_copy, t).passed for t in ("onnx", "ort-cpu"))
    assert not list(bundle_copy.parent.glob(".*"))


def test_verify_against_the_source_with_new_inputs(bundle_copy: Path) -> None:
    assert crossfuse.verify(bundle_copy, source="cross_modal_attention", seed=1234).passed


def test_verify_finds_a_changed_model(bundle_copy: Path) -> None:
    """Weights of another seed, hashes to match: the numbers differ, so parity fails."""
    other = crossfuse.export(
        "cross_modal_attention", bundle_copy.parent / "other", size="tiny", seed=1
    )
    shutil.copy(other.path / "weights.bin", bundle_copy / "weights.bin")
    entry = other.manifest.files["weights.bin"]
    edit(
        bundle_copy,
        lambda m: m["files"].update({"weights.bin": {"size": entry.size, "sha256": entry.sha256}}),
    )
    report = crossfuse.verify(bundle_copy, "ort-cpu")
    assert not report.passed
    with pytest.raises(CheckError):
        report.require_passed()


def test_failed_export_leaves_the_old_bundle(bundle_copy: Path) -> None:
    before = {p.name: p.read_bytes() for p in bundle_copy.iterdir()}
    with pytest.raises(InputError):
        crossfuse.export("nonsense", bundle_copy)
    with pytest.raises(InputError, match="unknown target"):
        crossfuse.export("clip", bundle_copy, ["ort-tpu"])
    with pytest.raises(InputError, match="can't be built in this precision"):
        crossfuse.export("clip", bundle_copy, precision="fp12")
    assert {p.name: p.read_bytes() for p in bundle_copy.iterdir()} == before
    assert [p.name for p in bundle_copy.parent.iterdir()] == ["bundle"]


def test_export_replaces_a_bundle_but_nothing_else(bundle_copy: Path, tmp_path: Path) -> None:
    assert crossfuse.export("cross_modal_attention", bundle_copy, size="tiny").targets == (
        "ort-cpu",
    )
    precious = tmp_path / "documents"
    precious.mkdir()
    (precious / "letter").write_text("dear")
    with pytest.raises(InputError, match="not a bundle"):
        crossfuse.export("cross_modal_attention", precious, size="tiny")
    with pytest.raises(InputError, match="not a folder"):
        crossfuse.export("cross_modal_attention", precious / "letter", size="tiny")
    assert (precious / "letter").read_text() == "dear"


def test_unwritable_output(tmp_path: Path) -> None:
    for parent in ("/proc/nowhere", "/dev/null"):
        with pytest.raises(InputError, match="can't be written"):
            crossfuse.export("cross_modal_attention", f"{parent}/bundle", size="tiny")


def test_abandoned_folders_are_removed_and_living_ones_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".b.partial-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    with write_bundle(tmp_path / "b") as living:
        assert not dead.exists()
        with write_bundle(tmp_path / "b"):
            assert living.folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_session_outlives_the_replacement_of_its_bundle(bundle_copy: Path) -> None:
    session = runtime.load(bundle_copy, "ort-cpu")
    inputs = dict(
        a=np.ones((1, 2, 32), "f4"), b=np.ones((1, 3, 24), "f4"), b_mask=np.ones((1, 3), "i8")
    )
    before = session.run(**inputs)["fused"]
    crossfuse.export("cross_modal_attention", bundle_copy, size="tiny", seed=5)
    np.testing.assert_array_equal(session.run(**inputs)["fused"], before)
    assert not np.array_equal(runtime.load(bundle_copy).run(**inputs)["fused"], before)


@pytest.mark.slow
def test_weights_over_two_gigabytes(tmp_path: Path) -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(600_000, 1024)
            self.query = torch.nn.Linear(1024, 1024)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids)[:, None]
            return torch.nn.functional.scaled_dot_product_attention(self.query(x), x, x)[:, 0]

    torch.manual_seed(0)
    spec = ModelSpec(
        Wide().eval(),
        {"ids": torch.randint(0, 600_000, (2, 5))},
        {"ids": {0: "batch:1:4", 1: "length:1:64"}},
    )
    bundle = crossfuse.export(spec, tmp_path / "b", ["onnx", "ort-cpu"])
    assert bundle.manifest.files["weights.bin"].size > 2 << 30
    assert (
        sum(entry.size for entry in bundle.manifest.files.values())
        < 1.05 * bundle.manifest.files["weights.bin"].size
    )
    assert crossfuse.verify(bundle.path, "ort-cpu").passed


KILL = """
import os, random, shutil, signal, sys, time
import crossfuse
from crossfuse.api import export as pipeline
from crossfuse import runtime
import torch, onnxscript, onnx_ir, onnxruntime, transformers
import crossfuse.export.fuse, crossfuse.parity.eager
import crossfuse.targets.onnxruntime, crossfuse.targets.graph_files

kills, folder, old = int(sys.argv[1]), sys.argv[2], sys.argv[3]
path = os.path.join(folder, "bundle")
torch.set_num_threads(1)
random.seed(0)

def child():
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        crossfuse.export("cross_modal_attention", path, size="tiny", seed=2, quick=True)
        code = 0
    finally:
        os._exit(code)

begin = time.monotonic()
assert os.waitpid(child(), 0)[1] == 0
duration = time.monotonic() - begin
outcomes = []
for i in range(kills):
    shutil.rmtree(path, ignore_errors=True)
    if i % 2:
        shutil.copytree(old, path)
    pid = child()
    # The first two surely fall into the work; of the others every other pair into the last part,
    # where files change places.
    ends = (0.1, 0.6) if i < 2 else (0.0, 1.05) if i % 4 < 2 else (0.85, 1.05)
    time.sleep(random.uniform(*ends) * duration)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if os.path.exists(path):
        bundle = crossfuse.open_bundle(path)
        bundle.verified(bundle.manifest.files)
        outcomes.append("old" if bundle.manifest.source["seed"] == 0 else "new")
    else:
        assert i % 2 == 0, "the old bundle is gone"
        outcomes.append("none")
assert os.waitpid(child(), 0)[1] == 0
left = [n for n in os.listdir(folder) if n != "bundle"]
print(len(outcomes), sorted(set(outcomes)), left)
"""


@pytest.mark.slow
def test_a_manifest_takes_no_more_memory_than_it_has() -> None:
    old = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
    open_bundle(old)
    tracemalloc.start()
    open_bundle(old)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20, "not what the largest one would take"


def test_kill_leaves_the_old_bundle_or_none(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    kills = 40
    command = [
        sys.executable,
        "-c",
        KILL,
        str(kills),
        str(tmp_path),
        str(zoo_bundle("cross_modal_attention").path),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    count, rest = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert count == str(kills)
    assert "'none'" in rest
    assert "'old'" in rest
    assert rest.endswith("[]"), f"left behind: {rest}"
