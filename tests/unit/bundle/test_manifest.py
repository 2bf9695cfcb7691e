"""Manifests of version 0.1.0 are read, and written again byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse.bundle.manifest import Decode, EngineInfo, Manifest, PrefixReuse, TargetEntry
from crossfuse.core.tensors import Dim
from crossfuse.errors import BundleError

MANIFESTS = sorted((Path(__file__).parent / "manifests").glob("*.json"))
"""As version 0.1.0 wrote them: exports of the tiny zoo, and one with every field."""

FULL = (Path(__file__).parent / "manifests" / "every_field.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_come_out_as_they_went_in(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert Manifest.loads(text, path.name).dumps() == text


def test_every_field_is_read() -> None:
    manifest = Manifest.loads(FULL, "m")
    assert manifest.dims["text.len"] == Dim("text.len", 2, 77)
    assert manifest.dims["batch"].max is None
    assert manifest.decode == Decode("ids", 77)
    assert manifest.generation == {"num_beams": 4, "eos_token_id": 2}
    assert manifest.with_queries == {"softmax": "Softmax runs along the batch"}
    assert [spec.name for spec in manifest.inputs] == ["x", "ids", "more"]
    assert manifest.inputs[1].range == (0, 98)
    assert manifest.inputs[2].range == (-3, None)
    assert manifest.targets["tensorrt-rtx"].engine == EngineInfo(
        "tensorrt_rtx", "1.7", ("8.9", "12.0"), ({"batch": (1, 2, 8)}, {}), True, "0ab9"
    )
    assert manifest.targets["tensorrt-rtx"].boundary == {"state:k": "float16"}
    assert manifest.source["extra"] == {"deep": [1, 2.5, None, True]}
    assert manifest.ledger[0].reasons == {"tensorrt": "why ünïcode"}
    assert manifest.files["w+1.bin"].size == 5 << 30


@pytest.mark.parametrize(
    "prefix", [PrefixReuse(576, ("layers.0", "layers.1")), PrefixReuse(None, (), "why"), None]
)
def test_prefix_reuse_is_kept(prefix: PrefixReuse | None) -> None:
    text = replace(Manifest.loads(FULL, "m"), prefix=prefix).dumps()
    assert Manifest.loads(text, "m").prefix == prefix
    assert ('"prefix"' in text) is (prefix is not None)


def changed(*path: Any, to: Any) -> str:
    data = json.loads(FULL)
    at = data
    for step in path[:-1]:
        at = at[step]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return json.dumps(data)


RTX = ("targets", "tensorrt-rtx")
BAD = {
    "dimension": (("dims", "batch", "min"), -1, r"range is empty.*m, dims\.batch"),
    "dimension's type": (("dims", "batch", "min"), "1", r"dims\.batch\.min\): got '1'"),
    "no least size": (("dims", "batch", "min"), None, r"dims\.batch\.min.*'nothing'"),
    "name": (("dims", "a b"), {"min": 1}, "identifier"),
    "size": (("stages", "query", "inputs", 0, "shape"), [-1], r"inputs\[0\]\.shape\[0\]"),
    "range": (("stages", "query", "inputs", 0, "range"), [3, 1], r"range.*the lowest index"),
    "ends": (("stages", "query", "inputs", 0, "range"), [3], r"range\): got a list of 1"),
    "kind": (("ledger", 0, "kind"), "both", r"ledger\[0\]\.kind.*self, cross, unknown"),
    "kernel": (("ledger", 0, "fused"), {"onnx": 1}, r"ledger\[0\]\.fused\.onnx"),
    "inputs": (("ledger", 0, "key_inputs"), None, r"ledger\[0\]\.key_inputs"),
    "profile": ((*RTX, "engine", "profiles", 0, "batch"), [1, 2], "smallest, typical and largest"),
    "least": ((*RTX, "engine", "profiles", 0, "batch", 0), 0, r"batch\[0\]\): got 0"),
    "lean": ((*RTX, "engine", "lean"), None, r"engine\.lean"),
    "request": ((*RTX, "engine", "request"), "../x", r"engine\.request.*a digest"),
    "boundary": ((*RTX, "boundary"), {"x": "float8"}, r"boundary\.x"),
    "stage's file": ((*RTX, "stages", "query"), "../q", "outside the bundle.*was not written by"),
    "graph": (("fused_graph",), "/etc/passwd", "fused_graph.*outside the bundle"),
    "reference": (("reference",), "a/b", "reference.*outside the bundle"),
    "file": (("files", ".hidden"), {"size": 1, "sha256": "0" * 64}, r"files\.\.hidden"),
    "decode": (("decode", "length"), 0, r"decode\.length\): got 0, expected 1 or more"),
    "missing weights": (("source", "missing_weights"), "a", r"source\.missing_weights"),
    "parity": ((*RTX, "parity"), {"passed": True}, r"parity\.target.*'nothing'"),
    "example": (("example", "batch"), 2.0, r"example\.batch\): got 2\.0"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_wrong_is_named_by_its_path(name: str) -> None:
    path, value, message = BAD[name]
    with pytest.raises(BundleError, match=message):
        Manifest.loads(changed(*path, to=value), "m")


def test_what_may_be_absent() -> None:
    data = json.loads(FULL)
    absent = ("example", "decode", "with_queries", "reference", "shared_batch", "later addition")
    for name in absent:
        data.pop(name, None)
    for name in ("kept", "boundary", "parity", "engine"):
        data["targets"]["ort-cpu"].pop(name)
    found = Manifest.loads(json.dumps(data | {"from the future": [1]}), "m")
    assert (found.example, found.decode, found.reference, found.shared_batch) == (
        {},
        None,
        None,
        None,
    )
    assert found.targets["ort-cpu"] == TargetEntry({}, (), "fp32", {})


def test_a_target_is_added_or_replaced() -> None:
    manifest = Manifest.loads(FULL, "m")
    entry = TargetEntry({"model": "m.onnx"}, ("m.onnx",), "fp16", {"onnx": "1.18"})
    assert list(manifest.with_target("onnx", entry).targets) == ["tensorrt-rtx", "ort-cpu", "onnx"]
    assert manifest.with_target("ort-cpu", entry).targets["ort-cpu"] is entry
    assert "onnx" not in manifest.targets


def test_no_nan_is_written() -> None:
    manifest = Manifest.loads(FULL, "m")
    with pytest.raises(ValueError, match="JSON"):
        replace(manifest, source={"share": float("nan")}).dumps()
    numbers = replace(manifest, source={"seed": np.int64(3)})
    assert Manifest.loads(numbers.dumps(), "m").source == {"seed": 3}
