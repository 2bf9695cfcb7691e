"""What signature a bundle has to have, and who asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crossfuse.bundle.store import open_bundle
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.signed import Signed

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def test_without_a_key_nothing_is_required(tmp_path: Path) -> None:
    nothing = Signed.of(OLD, None, None)
    nothing.require(open_bundle(OLD))
    assert nothing.options(None) is None
    with pytest.raises(InputError, match=r"says nothing without the key.*public_key"):
        Signed.of(OLD, None, tmp_path / "s")


def test_a_signature_lies_beside_the_folder(tmp_path: Path) -> None:
    for bundle in (OLD, open_bundle(OLD)):
        signed = Signed.of(bundle, "key.pub", None)
        assert signed.signature == OLD.parent / "bundle-0.1.0.sig"
    assert Signed.of(OLD, "key.pub", "x").signature == Path("x").absolute()
    strict = SessionOptions(trust_engines=False, threads=3)
    assert Signed.of(OLD, "key.pub", None).options(strict) == SessionOptions(threads=3)


def test_servers_and_checks_require_it(tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    import crossfuse
    from crossfuse.serve.load_engine import EngineOptions, open_engine, ready_target
    from signing_keys import keys

    private, public = keys(tmp_path)
    bundle = Path(shutil.copytree(OLD, tmp_path / "b"))
    options = EngineOptions("ort-cpu", public_key=str(public))
    opens = [
        lambda: ready_target(open_bundle(bundle), options),
        lambda: open_engine(bundle, options),
        lambda: crossfuse.verify(bundle, "ort-cpu", public_key=public),
    ]
    for work in opens:
        with pytest.raises(BundleError, match="signature can't be read"):
            work()
    crossfuse.sign(bundle, private)
    for work in opens:
        work()
