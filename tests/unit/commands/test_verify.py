"""`crossfuse verify`: a failed check is exit code 1, with the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossfuse.cli import main
from crossfuse.commands.verify import verify

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
OTHER = "from crossfuse.models.registry import zoo_spec\n"
OTHER += "def make(): return zoo_spec('cross_modal_attention', 'tiny', seed=9)\n"


def test_what_passes(capsys: pytest.CaptureFixture[str]) -> None:
    verify(OLD, as_json=True)
    got = capsys.readouterr()
    report = json.loads(got.out)
    assert report["passed"] is True
    assert "error" not in report
    assert got.err == ""


def test_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    with pytest.raises(SystemExit) as end:
        main(["verify", str(OLD), "--source", f"{tmp_path / 'other.py'}:make", "--seed", "4"])
    assert end.value.code == 1
    got = capsys.readouterr()
    assert "failed at " in got.out
    assert "does not compute what the eager model computes" in got.err.splitlines()[-1]
