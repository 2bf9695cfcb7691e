"""Whose signature a bundle has to have before it is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from crossfuse.bundle.store import Bundle
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.options import SessionOptions

__all__ = ["Signed"]


@dataclass(frozen=True)
class Signed:
    """A public key and a signature, or neither: then nothing is required.

    Attributes:
        public_key: file of the key, in PEM.
        signature: file of the signature.
    """

    public_key: Path | None = None
    signature: Path | None = None

    @classmethod
    def of(
        cls,
        bundle: str | Path | Bundle,
        public_key: str | Path | None,
        signature: str | Path | None,
    ) -> Signed:
        """What is required of a bundle.

        Args:
            bundle: it, or where it is.
            public_key: file of the key, in PEM; None requires nothing.
            signature: file of the signature; beside the bundle's folder where omitted.

        Raises:
            InputError: a signature without a key, which would say nothing.
        """
        if public_key is None:
            if signature is None:
                return cls()
            raise InputError(
                "a signature says nothing without the key of whoever signed",
                where=signature,
                do=Advice("Give it, too: {}", Said("--public-key", "public_key=...")),
            )
        if signature is None:
            from crossfuse.bundle.signature import signature_of

            signature = signature_of(bundle.path if isinstance(bundle, Bundle) else Path(bundle))
        return cls(Path(public_key).absolute(), Path(signature).absolute())

    def require(self, bundle: Bundle) -> None:
        """Refuse a bundle that the key's owner didn't sign as it is.

        Raises:
            BundleError: it isn't signed, or not by that key, or not as it is.
            InputError: the key can't be read.
            PackageError: the library is not installed.
        """
        if self.public_key is not None and self.signature is not None:
            from crossfuse.bundle.signature import require_signed

            require_signed(bundle, self.public_key, self.signature)

    def options(self, options: SessionOptions | None) -> SessionOptions | None:
        """The session's: engines of a signed bundle are the signer's, who is trusted."""
        if self.public_key is None:
            return options
        return replace(options or SessionOptions(), trust_engines=True)
