"""`crossfuse package` and `serve`: what their options become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossfuse import BundleError, InputError
from crossfuse.cli import main
from crossfuse.commands.serve import package, serve

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def test_a_repository_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package(OLD, tmp_path / "models", name="mine", cache_mb=7, merge=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "repository": str(tmp_path / "models"),
        "models": ["mine"],
    }
    config = (tmp_path / "models" / "mine" / "config.pbtxt").read_text()
    for text in ("cache_mb", '"7"', "merge", '"false"', '"ort-cpu"'):
        assert text in config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("package {} -o out --for ray", "unknown platform (--for): got 'ray', expected triton"),
        ("serve {} --log-format xml", "unknown log format (--log-format): got 'xml'"),
    ],
)
def test_closed_sets(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.format(OLD).split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_config_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    pytest.importorskip("ray.serve", reason="ray is not installed")
    serve(OLD, name="mine", replicas=3, port=8123, emit_config=tmp_path / "c.yaml", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"config": str(tmp_path / "c.yaml")}
    text = (tmp_path / "c.yaml").read_text()
    assert yaml.safe_load(text)
    for expected in ("mine", "8123", str(OLD.resolve())):
        assert expected in text


def test_what_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fit into a URL"):
        serve(OLD, name="a/b", emit_config=tmp_path / "c.yaml")
    with pytest.raises(InputError, match=r"no sequences side by side \(--slots\): got 4"):
        serve(OLD, slots=4, emit_config=tmp_path / "c.yaml")
    with pytest.raises(BundleError, match="there is no bundle"):
        serve(tmp_path / "none")
