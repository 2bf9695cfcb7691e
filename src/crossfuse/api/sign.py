"""A bundle signed with a key, so that others can tell who made it."""

from __future__ import annotations

from pathlib import Path

from crossfuse.bundle.signature import sign_bundle, signature_of
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.foreign import door

__all__ = ["sign"]


@door
def sign(
    path: str | Path | Bundle,
    key: str | Path,
    signature: str | Path | None = None,
    *,
    password: str | None = None,
) -> Path:
    """Sign a bundle as OpenSSF model signing does, with a key and without a network.

    Args:
        path: the bundle, or where it is.
        key: file of the private key, an elliptic curve's in PEM.
        signature: file to write; beside the bundle's folder, ``NAME.sig``, where omitted.
        password: of the key.

    Returns:
        where the signature is. `verify` and servers check it with the public key.

    Raises:
        BundleError: no bundle, or a damaged one.
        InputError: the key can't be read, or the signature not be written.
        PackageError: the library is not installed.
    """
    bundle = open_bundle(path)
    place = signature_of(bundle.path) if signature is None else Path(signature)
    sign_bundle(bundle, Path(key), place, password)
    return place
