"""From graph files to a session, and from a bundle to the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse import runtime
from crossfuse.bundle.manifest import StageSpec
from crossfuse.bundle.store import Bundle
from crossfuse.core.target import TARGETS, Target
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.load import SessionSpec, load, open_session, with_dtypes
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import HostStage, StageRequest

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 3))
STATE = TensorSpec("state", "float32", ("batch", 3))
DIMS = {"batch": Dim("batch")}
OLD_BUNDLE = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


class Doubles(HostStage):
    def run(self, feeds: Any) -> list[Any]:
        return [2 * feeds[name] for name in self.boundary[0]]


def target_of(boundaries: dict[str, tuple[list[str], list[str]]]) -> Target:
    """Its openers answer with boundaries by file name, and keep what they were asked."""

    def opener(request: StageRequest) -> Doubles:
        asked.append(request)
        return Doubles("numpy", *boundaries[request.graph.name])

    asked: list[StageRequest] = []
    target = Target("doubles", "", lambda model: None, opener)
    object.__setattr__(target, "asked", asked)
    return target


def test_a_session_over_files_that_the_caller_vouches_for() -> None:
    target = target_of({"m": (["x"], ["y"])})
    spec = SessionSpec({"model": StageSpec((X,), (Y,))}, DIMS)
    options = SessionOptions(threads=2)
    with open_session(target, {"model": Path("m")}, spec, options) as session:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(session.run(x=x)["y"], 2 * x)
        assert (session.target, session.provider) == ("doubles", "numpy")
    (request,) = target.asked  # type: ignore[attr-defined]
    assert (request.options, request.alone, request.engine) == (options, True, None)


def test_stages_of_several_are_told_so() -> None:
    target = target_of({"c": (["x"], ["state"]), "q": (["state"], ["y"])})
    stages = {"context": StageSpec((X,), (STATE,)), "query": StageSpec((STATE,), (Y,))}
    graphs = {"context": Path("c"), "query": Path("q")}
    with open_session(target, graphs, SessionSpec(stages, DIMS), SessionOptions()) as session:
        assert session.split
    assert [request.alone for request in target.asked] == [False, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("opened", [("context",), ["query"], {"query", "context"}, None])
def test_only_the_stages_that_are_asked_for_are_opened(opened: Any) -> None:
    target = target_of({"c": (["x"], ["state"]), "q": (["state"], ["y"])})
    stages = {"context": StageSpec((X,), (STATE,)), "query": StageSpec((STATE,), (Y,))}
    graphs = {"context": Path("c"), "query": Path("q")}
    spec = SessionSpec(stages, DIMS, opened=opened, owner="one bundle")
    x = np.ones((2, 3), np.float32)
    with open_session(target, graphs, spec, SessionOptions()) as session:
        asked = {request.graph.name[0] for request in target.asked}  # type: ignore[attr-defined]
        assert asked == {name[0] for name in opened or stages}
        if len(asked) == 2:
            np.testing.assert_array_equal(session.run(x=x)["y"], 4 * x)
            return
        with pytest.raises(
            InputError, match=r"opened without the stage '(query|context)'.*stages="
        ):
            session.run(x=x)
    whole = open_session(
        target, graphs, SessionSpec(stages, DIMS, owner="one bundle"), SessionOptions()
    )
    with open_session(target, graphs, spec, SessionOptions()) as session, whole:
        context = (session if opened == ("context",) else whole).encode(x=x)
        other = whole if opened == ("context",) else session
        np.testing.assert_array_equal(other.query(context)["y"], 4 * x)


@pytest.mark.parametrize("has_step", [False, True])
@pytest.mark.parametrize("tokens", ["nothing", "0"])
def test_what_decodes_has_rows_of_tokens(tmp_path: Path, has_step: bool, tokens: str) -> None:
    bundle = Path(shutil.copytree(OLD_BUNDLE, tmp_path / "b"))
    about = json.loads((bundle / "manifest.json").read_text())
    query = about["stages"]["query"]
    first = query["inputs"][0]
    first["shape"] = [*first["shape"], 1, 1]
    about["decode"] = {"tokens": first["name"] if tokens == "0" else tokens, "length": 4}
    if has_step:
        about["stages"]["step"] = query
        for entry in about["targets"].values():
            entry["stages"]["step"] = entry["stages"]["query"]
    (bundle / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(BundleError, match="decodes by an input"):
        load(bundle, "ort-cpu")


@pytest.mark.parametrize("stages", ["context", [], ["qury"], ["model", "step"]])
def test_stages_that_are_none_are_refused(bundle_copy: Path, stages: Any) -> None:
    with pytest.raises(InputError, match="stage"):
        load(bundle_copy, stages=stages)


@pytest.mark.parametrize(
    "boundary", [(["x"], ["z"]), (["y"], ["x"]), (["x", "z"], ["y"]), ([], ["y"])]
)
def test_a_graph_with_another_boundary_is_refused(boundary: tuple[list[str], list[str]]) -> None:
    spec = SessionSpec({"model": StageSpec((X,), (Y,))}, DIMS)
    with pytest.raises(BundleError, match=r"not the manifest's \(model\)"):
        open_session(target_of({"m": boundary}), {"model": Path("m")}, spec, SessionOptions())


def test_dtypes_of_a_precision_replace_the_manifest_s() -> None:
    stages = {"context": StageSpec((X,), (STATE,), 7), "query": StageSpec((STATE,), (Y,))}
    half = with_dtypes(stages, {"state": "float16", "y": "float16"})
    assert [t.dtype for t in half["context"].inputs + half["context"].outputs] == [
        "float32",
        "float16",
    ]
    assert half["query"].inputs[0].dtype == half["query"].outputs[0].dtype == "float16"
    assert (half["context"].flops, half["query"].inputs[0].shape) == (7, ("batch", 3))
    assert stages["query"].inputs[0].dtype == "float32"
    assert with_dtypes(stages, {}) == stages


def test_a_target_that_nobody_provides_is_refused_by_name(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(zoo_bundle("cross_modal_attention").path, tmp_path / "b"))
    manifest = path / "manifest.json"
    text = manifest.read_text()
    assert "theirs" not in TARGETS
    manifest.write_text(text.replace('"ort-cuda": {', '"theirs": {"package": "their-package",'))
    with pytest.raises(BundleError, match=r"'theirs', expected package 'their-package'"):
        load(path, "theirs")
    with load(path) as session:
        assert session.target == "ort-cpu"
    manifest.write_text(text.replace('"ort-cuda": {', '"theirs": {"package": 3,'))
    with pytest.raises(BundleError, match=r"package\): got 3, expected str"):
        load(path)


def test_contexts_of_equal_bundles_are_interchangeable(
    tmp_path: Path, zoo_bundle: Callable[[str], Bundle]
) -> None:
    bundle = zoo_bundle("cross_modal_attention")
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    owners = []
    for path, target in ((bundle.path, "ort-cpu"), (copy, "ort-cpu"), (copy, "onnx")):
        with runtime.load(path, target) as session:
            owners.append(session.owner)
    assert owners[0] == owners[1] != owners[2]


def test_a_fork_is_refused_and_closes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of({"m": (["x"], ["y"])})
    spec = SessionSpec({"model": StageSpec((X,), (Y,))}, DIMS)
    session = open_session(target, {"model": Path("m")}, spec, SessionOptions())
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    with pytest.raises(InputError, match="opened before this process was forked"):
        session.run(x=np.ones((1, 3), np.float32))
    session.close()
