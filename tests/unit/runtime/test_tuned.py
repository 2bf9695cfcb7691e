"""The record of the fastest target: for one machine and one content, and never more than advice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.runtime import tuned
from crossfuse.runtime.tuned import (
    chosen_target,
    forget,
    machine,
    processor,
    remember,
    tuned_target,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "cache"))


def test_a_session_takes_what_was_recorded(openvino_bundle: Path) -> None:
    bundle = open_bundle(openvino_bundle)
    assert tuned_target(bundle.manifest) is None
    assert chosen_target(bundle) == "ort-cpu"
    record = remember(bundle.manifest, "openvino", {"measured": [1, 2]})
    about = json.loads(record.read_text())
    assert (about["target"], about["machine"]) == ("openvino", machine())
    assert tuned_target(bundle.manifest) == chosen_target(bundle) == "openvino"
    with runtime.load(openvino_bundle) as session:
        assert session.target == "openvino"
    with runtime.load(openvino_bundle, "ort-cpu") as session:
        assert session.target == "ort-cpu", "what is named is taken"
    assert forget(bundle.manifest)
    assert not forget(bundle.manifest)
    assert chosen_target(bundle) == "ort-cpu"


def test_it_holds_for_this_bundle_and_this_machine(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(openvino_bundle).manifest
    remember(manifest, "openvino", {})
    assert tuned_target(replace(manifest, name="other")) is None
    here = machine()
    for changed in ({"cores": 999}, {"processor": "another"}, {"openvino": "2030.1"}):
        monkeypatch.setattr(tuned, "machine", lambda changed=changed: here | changed)
        assert tuned_target(manifest) is None
    monkeypatch.setattr(tuned, "machine", lambda: here)
    assert tuned_target(manifest) == "openvino"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"target": "nobody"}', '{"target": ["openvino"]}', '{"target": "onnx"}', "{"],
)
def test_a_record_that_says_nothing_useful_is_passed_over(
    content: str, openvino_bundle: Path
) -> None:
    bundle = open_bundle(openvino_bundle)
    remember(bundle.manifest, "openvino", {}).write_text(content)
    assert tuned_target(bundle.manifest) is None
    assert chosen_target(bundle) == "ort-cpu"


def test_a_target_that_is_gone_from_here_is_not_taken(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(openvino_bundle)
    remember(bundle.manifest, "openvino", {})
    monkeypatch.setattr("crossfuse.core.target.is_installed", lambda name: name != "openvino")
    assert chosen_target(bundle) == "ort-cpu"


def test_the_machine_is_told_by_what_decides() -> None:
    found = machine()
    assert found["processor"] == processor()
    assert found["cores"] >= 1
    assert {"gpus", "openvino", "crossfuse"} <= set(found)
