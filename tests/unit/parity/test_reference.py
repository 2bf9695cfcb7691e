"""What a bundle says about itself is no proof: whoever forges a reference set can renew the hashes,
too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import crossfuse
from crossfuse import BundleError
from crossfuse.bundle.store import Bundle, entry_of
from crossfuse.parity.policy import BELIEVED, EAGER_MULTIPLE
from crossfuse.parity.reference import ReferencePoint, ReferenceSet, load_reference
from crossfuse.parity.report import compare
from unit.parity.test_bisect import damaged, weights_of

NAME = "cross_modal_attention"
About = dict[str, Any]
Arrays = dict[str, np.ndarray]


def forged(path: Path, folder: Path, change: Callable[[About, Arrays], object]) -> Path:
    """A copy of a bundle with another reference set, hashes renewed."""
    copy = Path(shutil.copytree(path, folder / "forged"))
    arrays = dict(np.load(copy / "reference.npz"))
    about = json.loads(bytes(arrays.pop("about")))
    change(about, arrays)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(copy / "reference.npz", **arrays)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = entry_of(copy / "reference.npz")
    manifest["files"]["reference.npz"] = {"size": entry.size, "sha256": entry.sha256}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def weaker_by_a_tenth(model: ir.Model) -> None:
    value, _ = next(weights_of(model))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.9), name=value.name)


def every(key: str, value: Any) -> Callable[[About, Arrays], None]:
    def change(about: About, arrays: Arrays) -> None:
        for point in about["points"]:
            point[key] = dict.fromkeys(point["eager"], value) if key == "eager" else value

    return change


def without(part: str) -> Callable[[About, Arrays], None]:
    """One output or input left out everywhere."""

    def change(about: About, arrays: Arrays) -> None:
        name = next(key.split("/")[2] for key in arrays if key.startswith(f"0/{part}/"))
        for key in [key for key in arrays if key.endswith(f"/{part}/{name}")]:
            del arrays[key]
        for point in about["points"]:
            point["eager"].pop(name, None)

    return change


def only(count: int) -> Callable[[About, Arrays], None]:
    def change(about: About, arrays: Arrays) -> None:
        about["points"] = about["points"][:count]
        for key in [key for key in arrays if int(key.split("/")[0]) >= count]:
            del arrays[key]

    return change


def added(name: str) -> Callable[[About, Arrays], None]:
    def change(about: About, arrays: Arrays) -> None:
        for i, point in enumerate(about["points"]):
            arrays[f"{i}/outputs/{name}"] = np.ones(2)
            point["eager"][name] = 0.0

    return change


def turned_to(dtype: str) -> Callable[[About, Arrays], None]:
    def change(about: About, arrays: Arrays) -> None:
        for key in arrays:
            if "/outputs/" in key:
                arrays[key] = arrays[key].astype(dtype)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("outputs"), "outputs are not the graph's"),
        (without("inputs"), "inputs are not the graph's"),
        (added("other"), "outputs are not the graph's"),
        (only(0), "too few points.*got 0"),
        (only(1), "too few points.*got 1"),
        (every("kind", "tails"), "too few points.*got 0"),
        (every("kind", "skipped"), "can't be read"),
        (every("eager", float("nan")), "can't be read"),
        (every("eager", float("inf")), "can't be read"),
        (every("eager", -1.0), "can't be read"),
        (every("eager", True), "can't be read"),
        (every("eager", "1"), "can't be read"),
        (every("half", {"fp4": {}}), "can't be read"),
        (every("half", {"fp16": {"y": 1e999}}), "can't be read"),
        (every("sizes", {"batch": "x"}), "can't be read"),
        (every("seed", None), "can't be read"),
        (lambda about, arrays: about.update(dtype="float4"), "can't be read"),
        (lambda about, arrays: about.update(dtype=None), "can't be read"),
        (lambda about, arrays: about.update(points=3), "can't be read"),
        (lambda about, arrays: about["points"].pop(), "can't be read"),
        (turned_to("U3"), "can't be read"),
        (turned_to("complex128"), "can't be read"),
        (turned_to("int64"), "not the graph's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "change",
)
def test_forged_sets_are_refused(
    change: Callable[[About, Arrays], None],
    message: str,
    zoo_bundle: Callable[[str], Bundle],
    tmp_path: Path,
) -> None:
    path = forged(zoo_bundle(NAME).path, tmp_path, change)
    with pytest.raises(BundleError, match=message):
        crossfuse.verify(path, "ort-cpu")


@pytest.mark.parametrize("eager", [1e9, 1.0, 0.05])
def test_no_claimed_error_excuses_a_wrong_graph(
    eager: float, zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bad = damaged(zoo_bundle(NAME).path, tmp_path, "ort-cpu", "model", weaker_by_a_tenth)
    path = forged(bad, tmp_path, every("eager", eager))
    report = crossfuse.verify(path, "ort-cpu")
    assert not report.passed
    assert any("as far as believed" in output.tolerance_from for output in report.outputs.values())


def test_what_export_writes_passes_as_it_did(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    path = forged(zoo_bundle(NAME).path, tmp_path, lambda about, arrays: None)
    report = crossfuse.verify(path, "ort-cpu")
    assert report.passed
    stored = zoo_bundle(NAME).manifest.targets["ort-cpu"].parity
    assert stored is not None
    assert all(
        stored["outputs"][name]["tolerance"] == output.tolerance
        for name, output in report.outputs.items()
    )


@pytest.mark.parametrize("name", ["clip", "vilt", "dalle", "qformer"])
def test_honest_errors_are_far_below_what_is_believed(
    name: str, zoo_bundle: Callable[[str], Bundle]
) -> None:
    reference = load_reference(zoo_bundle(name).path / "reference.npz")
    for point in reference.points:
        for output, truth in point.outputs.items():
            if truth.dtype.kind == "f":
                assert point.eager[output] < 0.05 * BELIEVED["fp32"] * np.abs(truth).max()


def test_the_manifest_chooses_no_policy(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    for precision, message in (("fp8", "no parity policy"), ("", "no parity policy")):
        copy = Path(shutil.copytree(zoo_bundle(NAME).path, tmp_path / (precision or "none")))
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["targets"]["ort-cpu"]["precision"] = precision
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=message):
            crossfuse.verify(copy, "ort-cpu")
    copy = Path(shutil.copytree(zoo_bundle(NAME).path, tmp_path / "dropped"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["stages"]["model"]["outputs"].pop()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="are not the manifest's"):
        crossfuse.verify(copy, "ort-cpu")


def judge(eager: float, got: np.ndarray, truth: np.ndarray, **options: Any):
    point = ReferencePoint({"n": 1}, 0, {}, {"y": truth}, {"y": eager}, **options)
    return compare(
        lambda _: {"y": got}, ReferenceSet("float64", (point,)), target="t", executed_on="x"
    ).outputs["y"]


def test_belief_has_an_end() -> None:
    truth = np.array([1.0, -200.0])
    most = EAGER_MULTIPLE * BELIEVED["fp32"] * 200
    assert judge(1e9, truth, truth).tolerance == pytest.approx(most)
    assert not judge(1e9, truth + 1.01 * most, truth).passed
    whole = np.arange(100)
    assert judge(1.0, whole, whole).tolerance == pytest.approx(EAGER_MULTIPLE * 0.05)
    assert not judge(1.0, whole[::-1], whole).passed


def test_building_refuses_a_forged_set(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = forged(zoo_bundle(NAME).path, tmp_path, without("outputs"))
    with pytest.raises(BundleError, match="outputs are not the graph's"):
        crossfuse.build(path, "ort-cpu", precision="bf16")
