"""Writing a bundle so that a killed command leaves the old bundle, whole, or none.

Everything goes to a hidden folder beside the destination. Only when all is there do the two change
places, in one system call where the file system has it. A hidden folder left by a killed command
holds no lock any more; the next write removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.store import Bundle, check_name, entry_of, open_bundle
from crossfuse.errors import InputError

__all__ = ["BundleWriter", "write_bundle"]

_LOCK = ".lock"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class BundleWriter:
    """The bundle being written: a folder to put files in, and ``commit`` to make it the bundle."""

    def __init__(self, folder: Path, destination: Path) -> None:
        self.folder = folder
        self.destination = destination

    def file(self, name: str) -> Path:
        """Where a file of that name goes; an existing one (of the bundle being replaced) is
        detached first."""
        path = self.folder / check_name(name, self.folder)
        path.unlink(missing_ok=True)
        return path

    def adopt(self, bundle: Bundle, names: list[str], *, copied: Collection[str] = ()) -> None:
        """Take over verified files of an existing bundle, by hard link where possible.

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

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash the files, write the manifest, and put the folder in the destination's place."""
        names = sorted(p.name for p in self.folder.iterdir() if p.name not in (_LOCK, MANIFEST))
        manifest = replace(manifest, files={name: entry_of(self.folder / name) for name in names})
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(manifest.dumps())
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(self.folder, self.destination)
        # Until here the lock kept a concurrent write from taking the folder for an abandoned one.
        (self.destination / _LOCK).unlink(missing_ok=True)
        return Bundle(self.destination, manifest)


@contextmanager
def write_bundle(destination: str | Path) -> Iterator[BundleWriter]:
    """A writer for the destination; whatever was not committed is removed.

    Raises:
        InputError: the destination is no bundle and not empty, or its parent can't be written.
    """
    target = Path(os.path.abspath(destination))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
    _check_destination(target)
    _remove_abandoned(target)
    folder = target.parent / f".{target.name}.partial-{secrets.token_hex(6)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise InputError(
            f"the output folder can't be written: {error.strerror or error}",
            where=target,
            do="Choose a folder that you may write to",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield BundleWriter(folder, target)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(folder)):
            raise  # not about what is written here
        raise InputError(
            f"the bundle can't be written: {error.strerror or error}", where=target
        ) from error
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _check_destination(target: Path) -> None:
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
        open_bundle(target)


def _remove_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        try:
            with (folder / _LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:
            pass
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, destination: Path) -> None:
    """Rename onto an absent destination, or exchange with the old bundle and remove that."""
    if not destination.exists():
        folder.rename(destination)
    elif _exchange(folder, destination):
        shutil.rmtree(folder)
    else:
        old = folder.with_name(folder.name + "-old")
        destination.rename(old)
        folder.rename(destination)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically; False where the system can't."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return result == 0
