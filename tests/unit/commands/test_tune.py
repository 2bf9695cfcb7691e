"""`crossfuse tune`: a table or JSON, a record, and exit code 1 where nothing passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossfuse.cli import main
from crossfuse.commands.tune import tune

QUICK = {"rounds": 3, "seconds": 0.001}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path))


def test_what_is_shown(openvino_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(openvino_bundle, target=["ort-cpu"], **QUICK)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "chosen: ort-cpu, recorded in " in out
    assert "(1.00×)" in out
    tune(openvino_bundle, forget=True)
    assert "the record was removed" in capsys.readouterr().out
    tune(openvino_bundle, forget=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"forgotten": False}


def test_where_nothing_passes(openvino_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", str(openvino_bundle), "--tolerance", "0", "--target", "openvino"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--rounds", "3", "--seconds", "0.001", "--json"])
    assert end.value.code == 1
    got = capsys.readouterr()
    data = json.loads(got.out)
    assert data["chosen"] is None
    assert "no target of the bundle passes here" in json.dumps(data["error"])
    assert "no target of the bundle passes here" in got.err
