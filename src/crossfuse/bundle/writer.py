"""Writing a bundle so that a killed command leaves the old bundle, whole, or none.

Everything goes to a hidden folder beside the destination. Only when all is there do the two change
places, in one system call where the file system has it. A lock file beside the hidden folder is
held while it is written: the lock of a killed command is free, and the next write removes what it
left.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from crossfuse.bundle.manifest import MANIFEST, FileEntry, Manifest
from crossfuse.bundle.store import Bundle, check_name, entry_of, open_bundle
from crossfuse.core.files import REPLACED, locked, put_in_place, try_lock, write_whole
from crossfuse.errors import InputError

__all__ = ["BundleWriter", "write_bundle"]

_PARTIAL = ".partial-"
_LOCK = ".lock"
_LOCK_INSIDE = ".lock"
"""Where version 0.1.0 had its lock: in the folder."""


class BundleWriter:
    """The bundle being written: a folder to put files in, and ``commit`` to make it the bundle."""

    def __init__(self, folder: Path, destination: Path) -> None:
        self.folder = folder
        self.destination = destination
        self._adopted: dict[str, FileEntry] = {}

    def file(self, name: str) -> Path:
        """Where a file of that name goes; an existing one (of the bundle being replaced) is
        detached first."""
        path = self.folder / check_name(name, self.folder)
        path.unlink(missing_ok=True)
        self._adopted.pop(name, None)
        return path

    def adopt(self, bundle: Bundle, names: list[str], *, copied: Collection[str] = ()) -> Bundle:
        """Take over verified files of an existing bundle, by hard link where possible; gives that
        bundle as it lies here.

        ``copied`` names files that are to be read as weights: ONNX's readers refuse those with
        several links.
        """
        for path in bundle.verified(names):
            copy = self.folder / path.name
            if path.name in copied:
                shutil.copyfile(path, copy)
                continue
            try:
                os.link(path, copy)
            except OSError:
                shutil.copyfile(path, copy)
        self._adopted |= {name: bundle.manifest.files[name] for name in names}
        return bundle.copied_to(self.folder, names)

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash the files that are new, write the manifest, and put the folder in the destination's
        place."""
        names = sorted(p.name for p in self.folder.iterdir() if p.name != MANIFEST)
        files = {name: self._adopted.get(name) or entry_of(self.folder / name) for name in names}
        manifest = replace(manifest, files=files)
        write_whole(self.folder / MANIFEST, manifest.dumps())
        put_in_place(self.folder, self.destination)
        return Bundle(self.destination, manifest)


@contextmanager
def write_bundle(destination: str | Path | Bundle) -> Iterator[BundleWriter]:
    """A writer for the destination; whatever was not committed is removed.

    Args:
        destination: a folder, or an open bundle to replace.

    Raises:
        InputError: the destination is no bundle and not empty, or its parent can't be written.
    """
    is_open = isinstance(destination, Bundle)
    given = destination.path if isinstance(destination, Bundle) else destination
    target = Path(os.path.abspath(given))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
    _check_destination(target, is_open)
    _remove_abandoned(target)
    folder = target.parent / f".{target.name}{_PARTIAL}{secrets.token_hex(6)}"
    lock = _lock_of(folder)
    with ExitStack() as held:
        held.callback(_remove_lock, lock)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock))
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"the output folder can't be written: {error.strerror or error}",
                where=target,
                do="Choose a folder that you may write to",
            ) from error
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield BundleWriter(folder, target)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(folder)):
                raise  # not about what is written here
            raise InputError(
                f"the bundle can't be written: {error.strerror or error}", where=target
            ) from error


def _remove_lock(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _check_destination(target: Path, is_open: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(
            "the output exists and is not a folder", where=target, do="Choose another output"
        )
    if target.is_dir() and any(target.iterdir()):
        if not (target / MANIFEST).is_file():
            raise InputError(
                "the output folder holds something that is not a bundle",
                where=target,
                do="Choose another output",
            )
        if not is_open:
            open_bundle(target)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed commands left: folders and locks whose lock is free.

    An old bundle that was moved out of its place, and whose successor did not come, returns.
    """
    for path in sorted(target.parent.glob(f".{target.name}{_PARTIAL}*")):
        name = path.name.removesuffix(_LOCK).removesuffix(REPLACED)
        lock = _lock_of(path.with_name(name))
        if not lock.exists() and (path / _LOCK_INSIDE).exists():
            lock = path / _LOCK_INSIDE
        with suppress(OSError), try_lock(lock) as free:
            if not free:
                continue
            if path.name.endswith(REPLACED) and not target.exists():
                path.rename(target)
            shutil.rmtree(path.with_name(path.name.removesuffix(_LOCK)), ignore_errors=True)
            _lock_of(path.with_name(name)).unlink(missing_ok=True)
