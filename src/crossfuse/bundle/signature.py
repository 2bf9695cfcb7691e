"""Bundles signed with a key: OpenSSF model signing, without a network.

A signature is over the manifest and the files that it lists, as the library signs a model's folder,
so its own command checks it, too. It is read once and checked in a private folder that holds the
bundle's files alone; then the names in it have to be the bundle's: a signature that its author made
over less says nothing about the rest.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.staging import staged
from crossfuse.bundle.store import Bundle
from crossfuse.core.files import open_plain, read_at_most, require_writable, whole_file
from crossfuse.core.foreign import cause_of
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.core.requirements import needed
from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import BundleError, InputError

__all__ = ["require_signed", "sign_bundle", "signature_of"]

_LARGEST = 64 << 20
_KINDS = "an elliptic curve key in PEM: P-256, P-384 or P-521"


def signature_of(path: Path) -> Path:
    """Where a bundle's signature is, unless told: beside the folder."""
    folder = path.absolute()
    return folder.with_name(folder.name + ".sig")


def sign_bundle(bundle: Bundle, key: Path, signature: Path, password: str | None = None) -> None:
    """Sign a bundle's manifest and the files that it lists.

    Args:
        bundle: to sign; its files are verified first.
        key: private one, in PEM.
        signature: the file to write.
        password: of the key.

    Raises:
        BundleError: a file of the bundle is missing or was changed.
        InputError: the key can't be read, or the signature not be written.
        PackageError: the library is not installed.
    """
    with needed("model_signing", "a signature"):
        from model_signing import hashing, signing
    require_writable(signature)
    bundle.verified(bundle.manifest.files)
    ours = {MANIFEST, *bundle.manifest.files}
    others = [path.name for path in bundle.path.iterdir() if path.name not in ours]
    hashes = hashing.Config().set_ignored_paths(paths=others, ignore_git_paths=False)
    hashes.set_allow_symlinks(bundle.linked)
    secret = None if password is None else password.encode()
    with _key(key, "private"):
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    config.set_hashing_config(hashes)
    try:
        with whole_file(signature) as partial:
            config.sign(bundle.path, partial)
    except OSError as error:
        raise InputError(
            f"the signature can't be written: {reason_of(error)}",
            where=signature,
            do=help_for(error, writing=True),
        ) from error
    bundle.require_unreplaced()


def require_signed(bundle: Bundle, public_key: Path, signature: Path) -> None:
    """Refuse a bundle that the key's owner didn't sign as it is.

    Args:
        bundle: to check.
        public_key: in PEM.
        signature: the file.

    Raises:
        BundleError: no signature, one of another key or bundle, or one that covers less than the
            bundle.
        InputError: the key can't be read.
        PackageError: the library is not installed.
    """
    with needed("model_signing", "a signature"):
        from model_signing import verifying
    with _key(public_key, "public"):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    data = _read(signature)
    ours = {MANIFEST, *bundle.manifest.files}
    with scratch_folder() as scratch, staged(bundle) as plain:
        folder = scratch / "bundle"
        folder.mkdir()
        for name in ours:
            (plain.path / name).rename(folder / name)
        _require_its_manifest(folder / MANIFEST, bundle)
        (scratch / "signature").write_bytes(data)
        try:
            config.verify(folder, scratch / "signature")
            signed = _names(data)
        except Exception as error:
            raise BundleError(
                "the bundle is not what the key's owner signed",
                where=signature,
                got=cause_of(error),
                do="Get the bundle and its signature again from whoever signed it",
            ) from error
    if not ours <= signed:
        raise BundleError(
            "the signature covers only a part of the bundle",
            where=signature,
            got=f"nothing about {', '.join(sorted(ours - signed))}",
            do="Let its owner sign the whole bundle: crossfuse sign",
        )


def _require_its_manifest(file: Path, bundle: Bundle) -> None:
    """The manifest that is signed is the one that was opened."""
    try:
        found = Manifest.loads(file.read_text(encoding="utf-8"), str(bundle.path))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"the manifest can't be read: {cause_of(error)}", where=bundle.path
        ) from error
    if found != bundle.manifest:
        raise BundleError(
            "the bundle was replaced while it was read", where=bundle.path, do="Open it again"
        )


def _read(signature: Path) -> bytes:
    try:
        with open_plain(signature) as file:
            data = read_at_most(file, _LARGEST + 1)
    except OSError as error:
        raise BundleError(
            f"the bundle's signature can't be read: {reason_of(error)}",
            where=signature,
            do="Say where it is, or get the bundle from whoever signed it",
        ) from error
    if len(data) > _LARGEST:
        raise BundleError("the signature is too large to be one", where=signature)
    return data


def _names(data: bytes) -> set[str]:
    """Files that a signature, whose own check passed, is over."""
    envelope: Any = json.loads(data)["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {str(resource["name"]) for resource in statement["predicate"]["resources"]}


@contextmanager
def _key(path: Path, kind: str) -> Iterator[None]:
    """Around the reading of a key: the library raises anything."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the {kind} key can't be read: {cause_of(error)}", where=path, expected=_KINDS
        ) from error
