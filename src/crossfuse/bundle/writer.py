"""Writing a bundle so that a killed command leaves the old bundle, whole, or none.

Everything goes to a hidden folder beside the destination. Only when all is there, and on the disk,
do the two change places, in one system call where the file system has it. A lock file beside the
hidden folder is held while it is written: the lock of a killed command is free, and the next write
removes what it left. The destination has a lock of its own (`bundle/destination.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from crossfuse.bundle.destination import Destination
from crossfuse.bundle.manifest import MANIFEST, FileEntry, Manifest
from crossfuse.bundle.store import Bundle, check_name, entry_of
from crossfuse.core.files import locked, open_plain, sync_file, sync_folder, write_whole
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.errors import InputError

__all__ = ["BundleWriter", "write_bundle"]

Waiting = Callable[[str], object]


class BundleWriter:
    """The bundle being written: a folder to put files in, and ``commit`` to make it the bundle.

    Args:
        folder: to put files in.
        destination: where the bundle goes.
        held: the destination's lock is held.
        waiting: told where another process holds it.
    """

    def __init__(
        self,
        folder: Path,
        destination: Destination,
        *,
        held: bool = False,
        waiting: Waiting = lambda _: None,
    ) -> None:
        self.folder = folder
        self.destination = destination
        self._held = held
        self._waiting = waiting
        self._adopted: dict[str, FileEntry] = {}
        self._replaces: Bundle | None = None

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
        several links. What is a link itself is copied.

        Raises:
            BundleError: a file is missing or changed.
        """
        for path in bundle.verified(names):
            copy = self.folder / path.name
            if path.name in copied or path.is_symlink() or not _linked(path, copy):
                with open_plain(path) as source, copy.open("wb") as into:
                    shutil.copyfileobj(source, into, 1 << 20)
        self._adopted |= {name: bundle.manifest.files[name] for name in names}
        bundle.require_unreplaced()
        if bundle.identity is not None and Destination.at(bundle.path) == self.destination:
            self._replaces = bundle
        return bundle.copied_to(self.folder, names)

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash the files that are new, write the manifest, and put the folder in the destination's
        place.

        Raises:
            InputError: something else than a bundle came to the destination meanwhile.
        """
        names = sorted(p.name for p in self.folder.iterdir() if p.name != MANIFEST)
        for name in names:
            sync_file(self.folder / name)
        files = {name: self._adopted.get(name) or entry_of(self.folder / name) for name in names}
        manifest = replace(manifest, files=files)
        sync_folder(self.folder)
        write_whole(self.folder / MANIFEST, manifest.dumps())
        with nullcontext() if self._held else self.destination.locked(self._waiting):
            self.destination.require_replaceable(is_open=self._held)
            self.destination.take(self.folder, self._listed_there())
        return Bundle(self.destination.path, manifest)

    def _listed_there(self) -> Collection[str] | None:
        """Files of the bundle that is replaced; None where that is yet to be read."""
        old = self._replaces
        return None if old is None or not self._held or old.replaced else old.manifest.files


def _linked(path: Path, copy: Path) -> bool:
    """One more name for a file; False where the file system has none to give."""
    try:
        os.link(path, copy)
    except OSError:
        return False
    return True


@contextmanager
def write_bundle(
    destination: str | Path,
    *,
    modify: bool = False,
    waiting: Waiting = lambda _: None,
) -> Iterator[BundleWriter]:
    """A writer for the destination; whatever was not committed is removed.

    Args:
        destination: a folder.
        modify: what is written depends on the bundle there: nobody else changes that meanwhile.
            Otherwise the destination is locked only while the new bundle takes its place, so that
            of several commands the last one's stays.
        waiting: told where another command has the destination.

    Raises:
        InputError: the destination is no bundle and not empty, or can't be written.
    """
    place = Destination.at(destination)
    folder = place.new_folder()
    lock = place.lock_of(folder)
    with ExitStack() as held:
        try:
            place.require_replaceable(is_open=modify)
            place.path.parent.mkdir(parents=True, exist_ok=True)
            if modify:
                held.enter_context(place.locked(waiting))
                place.sweep()
            else:
                place.sweep_if_free()
            held.callback(_remove_lock, lock)
            held.enter_context(locked(lock))
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"the output folder can't be written: {reason_of(error)}",
                where=place.path,
                do=help_for(error, writing=True) or "Choose a folder that you may write to",
            ) from error
        held.callback(place.discard, folder)
        try:
            yield BundleWriter(folder, place, held=modify, waiting=waiting)
        except OSError as error:
            ours = (str(folder), str(place.path), str(place.path.with_name(f".{place.path.name}")))
            if error.filename is not None and not str(error.filename).startswith(ours):
                raise  # not about what is written here
            raise InputError(
                f"the bundle can't be written: {reason_of(error)}",
                where=place.path,
                do=help_for(error, writing=True),
            ) from error


def _remove_lock(lock: Path) -> None:
    with suppress(OSError):
        lock.unlink(missing_ok=True)
