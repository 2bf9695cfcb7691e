"""What was written here is remembered; an engine that wasn't is a stranger's program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossfuse import BundleError, runtime
from crossfuse.bundle.manifest import EngineInfo
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.trust import TRUST, is_trusted, require_own_engine, trust
from crossfuse.cli import main
from crossfuse.parity.trial import require_tried
from crossfuse.serve.load_engine import EngineOptions, ready_target

TARGET = "ort-cpu"
ENGINE = EngineInfo("tensorrt_rtx", "1.7", ("8.9",), ())
STRICT = runtime.SessionOptions(trust_engines=False)


@pytest.fixture(autouse=True)
def _nobody_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST)
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def of_engines(bundle_copy: Path) -> Bundle:
    """A bundle whose target says that its files are engines."""
    bundle = open_bundle(bundle_copy)
    entry = replace(bundle.manifest.targets[TARGET], engine=ENGINE)
    manifest = replace(bundle.manifest, targets={**bundle.manifest.targets, TARGET: entry})
    (bundle_copy / "manifest.json").write_text(manifest.dumps())
    return open_bundle(bundle_copy)


@pytest.mark.parametrize(
    "opens",
    [
        lambda bundle: runtime.load(bundle, TARGET, STRICT),
        lambda bundle: require_tried(bundle, TARGET, STRICT),
        lambda bundle: ready_target(bundle, EngineOptions(TARGET, trust_engines=False)),
        lambda bundle: require_own_engine(bundle, TARGET),
    ],
)
def test_engines_of_strangers_are_refused(
    of_engines: Bundle, opens: Callable[[Bundle], object]
) -> None:
    with pytest.raises(BundleError, match=r"not built on this machine.*trust_engines=True"):
        opens(of_engines)
    trust(of_engines)
    require_own_engine(of_engines, TARGET)


@pytest.mark.parametrize(
    "words",
    [
        "run {} --input {}/reference.npz",
        "verify {}",
        "profile {}",
        "map {} --input {} -o {}-out",
        "serve {}",
    ],
)
def test_commands_open_them_only_where_they_are_told_to(
    of_engines: Bundle, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(*[of_engines.path] * 3) for word in words.split()]
    with pytest.raises(SystemExit) as end:
        main([*given, "--target", TARGET])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "not built on this machine" in said
    assert "--trust-engines" in said


def test_an_engine_is_known_by_its_content(of_engines: Bundle, tmp_path: Path) -> None:
    """In whatever bundle it comes; another one in its place isn't."""
    trust(of_engines)
    other = replace(of_engines.manifest, name="renamed")
    require_own_engine(Bundle(of_engines.path, other), TARGET)
    (file,) = set(of_engines.manifest.targets[TARGET].stages.values())
    entry = replace(of_engines.manifest.files[file], sha256="00" * 32)
    changed = replace(of_engines.manifest, files={**of_engines.manifest.files, file: entry})
    with pytest.raises(BundleError, match="not built on this machine"):
        require_own_engine(Bundle(of_engines.path, changed), TARGET)


def test_a_target_built_into_a_strangers_bundle_makes_no_engine_of_theirs_ours(
    of_engines: Bundle,
) -> None:
    trust(of_engines, ["onnx"], of_engines)
    assert not is_trusted(of_engines, TARGET)
    with pytest.raises(BundleError, match="not built on this machine"):
        require_own_engine(of_engines, TARGET)
    trust(of_engines, [TARGET])
    assert is_trusted(of_engines, TARGET)
    renamed = Bundle(of_engines.path, replace(of_engines.manifest, name="renamed"))
    trust(renamed, ["onnx"], of_engines)
    assert is_trusted(renamed, TARGET), "what was trusted stays so"


def test_graphs_are_not_engines(bundle_copy: Path) -> None:
    require_own_engine(open_bundle(bundle_copy), TARGET)
    runtime.load(bundle_copy, TARGET, STRICT).close()
