"""What was written on this machine, remembered in the user's cache: bundles by their manifest, and
engines by their content.

An engine is a program. One that was not built here is opened only where its user says so; who
trusts all that they open sets ``CROSSFUSE_TRUST_BUNDLES=1``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from crossfuse.bundle.store import Bundle
from crossfuse.core.files import user_cache
from crossfuse.errors import Advice, BundleError, Said

__all__ = [
    "TRUST",
    "is_trusted",
    "mark_of",
    "remember",
    "require_own_engine",
    "trust",
    "trusts_all",
]

TRUST = "CROSSFUSE_TRUST_BUNDLES"


def trusts_all() -> bool:
    """The user trusts all bundles."""
    return os.environ.get(TRUST) == "1"


def trust(bundle: Bundle, built: Iterable[str] | None = None, old: Bundle | None = None) -> Bundle:
    """Remember what was written here. Gives the bundle.

    Args:
        bundle: that was written.
        built: its targets that were built here; all where omitted.
        old: the bundle that it took others from: of these, those that were trusted stay so.
    """
    names = set(bundle.targets if built is None else built)
    for name in names:
        for file in _engines(bundle, name):
            remember(_mark_of_engine(bundle, file))
    if old is not None:
        names |= {name for name in old.targets if is_trusted(old, name)} & set(bundle.targets)
    for name in names:
        remember(mark_of(bundle, name))
    return bundle


def is_trusted(bundle: Bundle, target: str) -> bool:
    """The target was built here, into a bundle of this very manifest."""
    return mark_of(bundle, target).exists()


def require_own_engine(bundle: Bundle, target: str) -> None:
    """Refuse an engine that was not built on this machine.

    Raises:
        BundleError: it was not, and the user doesn't trust all bundles.
    """
    if trusts_all():
        return
    for file in _engines(bundle, target):
        if not _mark_of_engine(bundle, file).exists():
            command = f"`crossfuse build {bundle.path} --target {target}`"
            raise BundleError(
                "the engine was not built on this machine, and an engine is a program",
                where=bundle.path / file,
                do=Advice(
                    "Build it here with {}, or use {} if you trust who built it",
                    Said(command, f"crossfuse.build({str(bundle.path)!r}, {target!r})"),
                    Said("--trust-engines", "SessionOptions(trust_engines=True)"),
                ),
            )


def mark_of(bundle: Bundle, about: str) -> Path:
    """Where something about a bundle is remembered."""
    text = bundle.manifest.dumps() + about
    return _marks() / hashlib.sha256(text.encode()).hexdigest()


def remember(mark: Path) -> None:
    """Make a mark, where the cache can be written."""
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _marks() -> Path:
    return user_cache() / "tried"


def _engines(bundle: Bundle, target: str) -> list[str]:
    """Files of a target that are engines; none of one whose graphs an engine compiles itself."""
    entry = bundle.manifest.targets.get(target)
    if entry is None or entry.engine is None:
        return []
    return sorted(entry.stages.values())


def _mark_of_engine(bundle: Bundle, file: str) -> Path:
    entry = bundle.manifest.files.get(file)
    return _marks() / f"engine-{'' if entry is None else entry.sha256}"
