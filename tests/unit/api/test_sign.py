"""`crossfuse.sign`: where the signature goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed")

from crossfuse.api.sign import sign
from crossfuse.bundle.signature import require_signed
from crossfuse.bundle.store import open_bundle
from crossfuse.errors import BundleError
from signing_keys import keys

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def test_signatures_go_where_they_are_told(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    bundle = Path(shutil.copytree(OLD, tmp_path / "b"))
    assert sign(bundle, private) == tmp_path / "b.sig"
    assert sign(open_bundle(bundle), str(private), str(tmp_path / "other")) == tmp_path / "other"
    for name in ("b.sig", "other"):
        require_signed(open_bundle(bundle), public, tmp_path / name)
    with pytest.raises(BundleError, match="there is no bundle"):
        sign(tmp_path / "none", private)
