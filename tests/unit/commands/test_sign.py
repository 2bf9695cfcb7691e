"""`crossfuse sign`, and `verify --public-key` of what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed")

from crossfuse.cli import main
from crossfuse.commands.sign import sign
from signing_keys import keys

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def test_a_signed_bundle_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys(tmp_path, password="sesame")
    (tmp_path / "password").write_text("sesame\n")
    bundle = Path(shutil.copytree(OLD, tmp_path / "b"))
    sign(bundle, private, password_file=tmp_path / "password", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"signature": str(tmp_path / "b.sig")}
    words = ["verify", str(bundle), "--target", "ort-cpu", "--public-key", str(public)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    (tmp_path / "b.sig").write_text("{}")
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "not what the key's owner signed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words[:4], "--signature", str(tmp_path / "b.sig")])
    assert "--public-key" in capsys.readouterr().err
