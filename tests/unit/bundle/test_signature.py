"""A signature holds for the bundle that was signed, whole, and for nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed")

from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from crossfuse.bundle.signature import require_signed, sign_bundle, signature_of
from crossfuse.bundle.store import Bundle, entry_of, open_bundle
from crossfuse.errors import BundleError, InputError
from signing_keys import keys

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(OLD, tmp_path / "b"))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_was_signed_is_taken(bundle: Bundle, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """Beside files of the user's that nobody signed; the library's own check agrees."""
    private, public = keys(tmp_path, password="open", curve=curve)
    (bundle.path / "notes.md").write_text("mine")
    (bundle.path / ".git").mkdir()
    place = signature_of(bundle.path)
    assert place == tmp_path / "b.sig"
    sign_bundle(bundle, private, place, "open")
    require_signed(bundle, public, place)
    (bundle.path / "notes.md").write_text("changed")
    require_signed(open_bundle(bundle.path), public, place)
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(bundle.path, place)


def test_whatever_was_changed_is_told(bundle: Bundle, tmp_path: Path) -> None:
    """Also where the manifest's hashes were made to fit, as an attacker would."""
    private, public = keys(tmp_path)
    place = tmp_path / "s"
    sign_bundle(bundle, private, place)
    manifest = bundle.path / "manifest.json"
    for name in ("weights.bin", "reference.npz", "query.ort-cpu.onnx"):
        before, text = (bundle.path / name).read_bytes(), manifest.read_text()
        (bundle.path / name).write_bytes(before + b"x")
        data = json.loads(text)
        entry = entry_of(bundle.path / name)
        data["files"][name] = {"size": entry.size, "sha256": entry.sha256}
        manifest.write_text(json.dumps(data))
        with pytest.raises(BundleError, match="not what the key's owner signed"):
            require_signed(open_bundle(bundle.path), public, place)
        (bundle.path / name).write_bytes(before)
        manifest.write_text(text)
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BundleError, match="not what the key's owner signed"):
        require_signed(open_bundle(bundle.path), public, place)


def test_signatures_of_others_and_none(bundle: Bundle, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    _, other = keys(tmp_path, "other")
    place = tmp_path / "s"
    with pytest.raises(BundleError, match="signature can't be read: No such file"):
        require_signed(bundle, public, place)
    sign_bundle(bundle, private, place)
    with pytest.raises(BundleError, match="not what the key's owner signed"):
        require_signed(bundle, other, place)
    for damage in (b"", b"{}", place.read_bytes()[:-9], b"\xff" * 9, b"[1]"):
        place.write_bytes(damage)
        with pytest.raises(BundleError, match="not what the key's owner signed"):
            require_signed(bundle, public, place)


@pytest.mark.parametrize("left_out", ["manifest.json", "weights.bin"])
def test_a_signature_over_less_says_nothing_about_the_rest(
    bundle: Bundle, tmp_path: Path, left_out: str
) -> None:
    """Of the right key, and in itself right."""
    private, public = keys(tmp_path)
    place = tmp_path / "s"
    hashes = hashing.Config().set_ignored_paths(paths=[left_out])
    signer = signing.Config().use_elliptic_key_signer(private_key=private)
    signer.set_hashing_config(hashes).sign(bundle.path, place)
    with pytest.raises(BundleError, match=rf"only a part of the bundle.*{left_out}"):
        require_signed(bundle, public, place)


def test_links_are_signed_as_what_they_lead_to(bundle: Bundle, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    place = tmp_path / "s"
    sign_bundle(bundle, private, place)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in bundle.path.iterdir():
        (linked / file.name).symlink_to(file)
    require_signed(open_bundle(linked), public, place)
    sign_bundle(open_bundle(linked), private, place)
    require_signed(bundle, public, place)


def test_what_can_not_be_signed(bundle: Bundle, tmp_path: Path) -> None:
    private, public = keys(tmp_path, password="open")
    with pytest.raises(InputError, match="private key can't be read"):
        sign_bundle(bundle, private, tmp_path / "s", "wrong")
    with pytest.raises(InputError, match="private key can't be read"):
        sign_bundle(bundle, public, tmp_path / "s")
    with pytest.raises(InputError, match="folder doesn't exist"):
        sign_bundle(bundle, private, tmp_path / "none" / "s", "open")
    (bundle.path / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="wrong size"):
        sign_bundle(bundle, private, tmp_path / "s", "open")
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match=r"public key can't be read.*P-256"):
        require_signed(bundle, tmp_path / "none", tmp_path / "s")
