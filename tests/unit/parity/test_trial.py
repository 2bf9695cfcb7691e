"""A stranger's bundle ends, stalls or fills a child process, and not the one that asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import crossfuse
from crossfuse import BundleError
from crossfuse.bundle.store import Bundle, entry_of, open_bundle
from crossfuse.bundle.trust import TRUST, trust
from crossfuse.parity.trial import TrialLimits, require_tried


@pytest.fixture(autouse=True)
def _nobody_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST)
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "cache"))


def with_graph(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """The bundle, its graph changed and its hashes made to fit."""
    graph, file = bundle / "model.ort-cpu.onnx", bundle / "manifest.json"
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())
    manifest = json.loads(file.read_text())
    entry = entry_of(graph)
    manifest["files"][graph.name] = {"size": entry.size, "sha256": entry.sha256}
    file.write_text(json.dumps(manifest))
    return open_bundle(bundle)


def endless(model: onnx.ModelProto) -> None:
    """A loop of 2^62 turns before the first output."""
    one = helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["s", "s"], ["t"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, []),
        ],
    )
    model.graph.initializer.extend(
        [one, yes, helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])]
    )
    loop = helper.make_node("Loop", ["turns", "yes", "zero"], ["spun"], body=body)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if output == name else output for output in node.output]
    model.graph.node.extend([loop, helper.make_node("Add", ["before", "spun"], [name])])


def vast(model: onnx.ModelProto) -> None:
    """A constant of 400 GB, which the optimizer makes."""
    model.graph.initializer.append(
        helper.make_tensor("vast_shape", TensorProto.INT64, [1], [100_000_000_000])
    )
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if output == name else output for output in node.output]
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["vast_shape"], ["vast"]),
            helper.make_node("ReduceMax", ["vast"], ["most"], keepdims=0),
            helper.make_node("Add", ["before", "most"], [name]),
        ]
    )


def test_what_never_ends_is_ended(bundle_copy: Path) -> None:
    bundle = with_graph(bundle_copy, endless)
    start = time.monotonic()
    with pytest.raises(BundleError, match=r"gave no answer within 4 s|SIGXCPU"):
        require_tried(bundle, "ort-cpu", limits=TrialLimits(seconds=4))
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_what_takes_all_memory_is_refused(bundle_copy: Path) -> None:
    bundle = with_graph(bundle_copy, vast)
    with pytest.raises(BundleError, match=r"memory|alloc|can't load"):
        require_tried(bundle, "ort-cpu", limits=TrialLimits(memory=2 << 30))


def test_what_ends_the_process_is_told(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a child that dies as a kernel that divides by 0 lets it."""
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGFPE)"
    monkeypatch.setattr("crossfuse.parity.trial.COMMAND", ("-c", dies))
    with pytest.raises(BundleError, match="ended the process that it was tried in.*SIGFPE"):
        crossfuse.verify(bundle_copy, "ort-cpu")


def test_what_is_refused_is_refused_in_its_own_words(bundle_copy: Path) -> None:
    data = bytearray((bundle_copy / "weights.bin").read_bytes())
    data[3] ^= 1
    (bundle_copy / "weights.bin").write_bytes(data)
    with pytest.raises(BundleError, match=r"was changed.*Copy it again"):
        require_tried(open_bundle(bundle_copy), "ort-cpu")


def test_what_passed_or_was_written_here_is_not_tried_again(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(bundle_copy)
    require_tried(bundle, "ort-cpu")
    monkeypatch.setattr("crossfuse.parity.trial.COMMAND", ("-c", "raise SystemExit(3)"))
    require_tried(bundle, "ort-cpu")
    with pytest.raises(BundleError, match="exit status 3"):
        require_tried(bundle, "onnx")
    trust(bundle)
    require_tried(bundle, "onnx")
    other = with_graph(bundle_copy, endless)
    with pytest.raises(BundleError, match="exit status 3"):
        require_tried(other, "ort-cpu")
    monkeypatch.setenv(TRUST, "1")
    require_tried(other, "ort-cpu")
