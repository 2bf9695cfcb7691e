"""One bundle, the old or the new one, while others replace it; and plain files for engines where a
bundle's are links.

A bundle is hashed by path and opened by path later. Whoever replaces it in between would have an
engine read files of two bundles. So its folder's identity is looked at before and after, and what
was read of two is read again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from crossfuse.bundle.manifest import MANIFEST
from crossfuse.bundle.store import Bundle, check_name, open_bundle
from crossfuse.core.files import open_plain
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import BundleError, CrossfuseError

__all__ = ["plain_files", "staged", "unreplaced"]

T = TypeVar("T")

_IN_PLACE = 3
"""Tries before a bundle is taken aside and read there."""
_TRIES = 200


def unreplaced(path: str | Path | Bundle, work: Callable[[Bundle], T], copied: bool = False) -> T:
    """What ``work`` gives for one bundle, whole: where it failed because another took the place,
    it is done again on that one.

    Args:
        path: the bundle's folder, opened here; or the open bundle, which is not opened again.
        work: reads files of the bundle. It ends with `Bundle.require_unreplaced` where it has them
            opened by path. Its bundle's files are plain.
        copied: where files are staged, they are no hard links, which ONNX's readers refuse.

    Raises:
        BundleError: no bundle, or one that is replaced again and again.
    """
    if isinstance(path, Bundle):
        with plain_files(path, copied) as bundle:
            return work(bundle)
    attempt = 0
    while True:
        bundle = open_bundle(path)
        with _pinned(bundle) as whole:
            try:
                if not whole:
                    bundle.require_unreplaced()
                opens = plain_files if attempt < _IN_PLACE else staged
                with opens(bundle, copied) as plain:
                    return work(plain)
            except (CrossfuseError, OSError):
                if not bundle.replaced or attempt >= _TRIES:
                    raise
        attempt += 1


@contextmanager
def plain_files(bundle: Bundle, copied: bool = False) -> Iterator[Bundle]:
    """The bundle itself where all its files are plain, and `staged` where some are links."""
    if not bundle.linked:
        yield bundle
        return
    with staged(bundle, copied) as plain:
        yield plain


@contextmanager
def staged(bundle: Bundle, copied: bool = False) -> Iterator[Bundle]:
    """The same bundle in a private folder, all its files and the manifest plain: hard links to what
    the bundle's names lead to, or copies where there are none to be had. Nothing is verified yet.

    Args:
        bundle: to stage.
        copied: no hard links.

    Raises:
        BundleError: a file is missing, no plain file, or of another size; or there is no room.
    """
    with scratch_folder() as folder:
        with ExitStack() as stack:
            for file, opened in _open_all(bundle, stack).items():
                if copied or not _hard_linked(opened, folder / file):
                    _copy(opened, folder / file, bundle.path / file)
        yield Bundle(folder, bundle.manifest)


def _open_all(bundle: Bundle, stack: ExitStack) -> dict[str, BufferedReader]:
    """All files, opened at once and by the folder's descriptor: of one bundle."""
    opened = {}
    try:
        folder = os.open(bundle.path, os.O_RDONLY)
        stack.callback(os.close, folder)
        for name, entry in bundle.manifest.files.items():
            file = stack.enter_context(open_plain(check_name(name, bundle.path), folder))
            if os.fstat(file.fileno()).st_size != entry.size:
                raise BundleError(
                    "a file of the bundle has the wrong size",
                    where=bundle.path / name,
                    expected=f"{entry.size} bytes",
                    do="It was truncated or changed: copy it again, or export again",
                )
            opened[name] = file
        opened[MANIFEST] = stack.enter_context(open_plain(MANIFEST, folder))
    except OSError as error:
        raise BundleError(
            f"a file of the bundle can't be read: {reason_of(error)}",
            where=error.filename or bundle.path,
            do=help_for(error) or "Copy the whole folder, or export again",
        ) from error
    return opened


def _hard_linked(opened: BufferedReader, place: Path) -> bool:
    """Another name for an open file; False where it can't have one there."""
    descriptor = opened.fileno()
    with suppress(OSError, NotImplementedError):
        # With a folder's descriptor, which an absolute path makes no use of, links are followed.
        os.link(f"/proc/self/fd/{descriptor}", place, src_dir_fd=descriptor, follow_symlinks=True)
        return place.is_file() and not place.is_symlink()
    return False


def _copy(opened: BufferedReader, place: Path, source: Path) -> None:
    try:
        place.unlink(missing_ok=True)
        with place.open("wb") as into:
            shutil.copyfileobj(opened, into, 1 << 20)
    except OSError as error:
        raise BundleError(
            f"a file of the bundle can't be copied to a temporary folder: {reason_of(error)}",
            where=source,
            do="Make room there, or set TMPDIR to a folder that has it",
        ) from error


@contextmanager
def _pinned(bundle: Bundle) -> Iterator[bool]:
    """Hold the folder, so that no other one gets its number meanwhile; whether it is the one that
    was opened."""
    try:
        descriptor = os.open(bundle.path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        about = os.fstat(descriptor)
        identity = bundle.identity or ()
        yield identity[:2] == (about.st_dev, about.st_ino)
    finally:
        os.close(descriptor)
