"""Where a bundle is written: whether it can be replaced there, who writes it, what in it is not
crossfuse's, and what killed commands left beside it.

A writer holds the lock of its destination from before it looks at what is there until its own is in
place. Files that the manifest of the replaced bundle doesn't list are its user's: they go with the
name of the bundle (`bundle/users_files.py`). A hidden folder with a manifest may hold such files;
one without holds none.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from crossfuse.bundle.manifest import MANIFEST
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.users_files import Ahead, join, link_ahead, settle
from crossfuse.core.files import REPLACED, change_places, locked, try_lock
from crossfuse.errors import CrossfuseError, InputError

__all__ = ["Destination"]

_PARTIAL = ".partial-"
_LOCK = ".lock"
_LOCK_INSIDE = ".lock"
"""Where version 0.1.0 had its lock: in the folder."""
_WHOLE_LOCK = ".crossfuse-lock"
_UNMOVED = (OSError, CrossfuseError, RecursionError)
"""Why something of the user's stays in a hidden folder, and that with it."""
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Destination:
    """A folder that is a bundle, or becomes one.

    Attributes:
        path: of the folder, absolute.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> Destination:
        """The destination at a path; links are not followed."""
        return cls(Path(os.path.abspath(path)))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links

    def require_replaceable(self, *, is_open: bool = False) -> None:
        """Refuse what can't take a bundle, before there is one.

        Args:
            is_open: the caller has read the bundle there, or does so under the lock.

        Raises:
            InputError: a file, a link, a mount point, a folder that is not to be changed, or one
                that holds something that is no bundle.
            BundleError: a damaged bundle.
        """
        target = self.path
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InputError(
                "the output exists and is not a folder", where=target, do="Choose another output"
            )
        if not target.is_dir():
            return
        self._require_no_mount()
        if not os.access(target, os.W_OK | os.X_OK):
            raise InputError(
                "the output folder can't be replaced: you may not write to it",
                where=target,
                do="Choose a folder that you may write to",
            )
        if any(target.iterdir()):
            if not (target / MANIFEST).is_file():
                raise InputError(
                    "the output folder holds something that is not a bundle",
                    where=target,
                    do="Choose another output",
                )
            if not is_open:
                open_bundle(target)

    def _require_no_mount(self) -> None:
        real = Path(os.path.realpath(self.path))
        if os.path.ismount(real) or real in _mount_points():
            raise InputError(
                "the output folder is a mount point, which no other folder can take the place of",
                where=self.path,
                do=f"Write to a folder in it, such as {self.path / 'bundle'}",
            )
        inside = [mount for mount in _mount_points() if real in mount.parents]
        if inside:
            raise InputError(
                "something is mounted in the output folder, which so can't be replaced",
                where=inside[0],
                do="Choose another output, or unmount it",
            )

    def new_folder(self) -> Path:
        """A name for a hidden folder beside it."""
        return self.path.parent / f".{self.path.name}{_PARTIAL}{secrets.token_hex(6)}"

    @staticmethod
    def lock_of(folder: Path) -> Path:
        """The lock file of a hidden folder, held while somebody writes to that."""
        return folder.with_name(folder.name + _LOCK)

    @contextmanager
    def locked(self, waiting: Callable[[str], object] = lambda _: None) -> Iterator[None]:
        """Nobody else changes the destination meanwhile.

        Args:
            waiting: told so where another process has it.

        Raises:
            OSError: the lock file can't be written.
        """
        lock = self._lock
        with try_lock(lock) as free:
            if free:
                with _removed(lock):
                    yield
                return
        waiting(f"waiting for another command that writes {self.path}")
        with locked(lock), _removed(lock):
            yield

    def sweep_if_free(self) -> None:
        """`sweep`, unless somebody has the destination.

        Raises:
            OSError: the lock file can't be written.
        """
        lock = self._lock
        with try_lock(lock) as free:
            if free:
                with _removed(lock):
                    self.sweep()

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}{_WHOLE_LOCK}")

    def take(self, folder: Path, listed: Collection[str] | None = None) -> None:
        """Let a hidden folder take the place; its user's files are there at every moment. To be
        called under the lock.

        Args:
            folder: that takes the place.
            listed: files of the bundle there now, where the caller knows them.

        Raises:
            OSError: the folder can't take the place; the destination is then what it was.
        """
        ours: Collection[str] | None = None
        ahead: Mapping[str, Ahead] = {}
        if (self.path / MANIFEST).is_file():
            with suppress(*_UNMOVED):
                ours = _own_files(self.path, listed)
                ahead = link_ahead(self.path, folder, ours)
        old = change_places(folder, self.path)
        if old is None:
            return
        if ours is not None:
            with suppress(*_UNMOVED):
                settle(old, self.path, ours, ahead)
        self.discard(old, ours)

    def sweep(self) -> None:
        """Remove what killed commands left: folders and locks whose lock is free. To be called
        under the lock.

        An old bundle that was moved out of its place, and whose successor did not come, returns.
        """
        start = f".{self.path.name}{_PARTIAL}"
        with suppress(OSError):
            for path in sorted(self.path.parent.iterdir()):
                if path.name.startswith(start):
                    self._clear(path)

    def _clear(self, path: Path) -> None:
        folder = path.with_name(path.name.removesuffix(_LOCK).removesuffix(REPLACED))
        lock = self.lock_of(folder)
        if not lock.exists() and (path / _LOCK_INSIDE).exists():
            lock = path / _LOCK_INSIDE
        with suppress(OSError), try_lock(lock) as free:
            if not free:
                return
            if path.name.endswith(REPLACED) and not self.path.exists():
                path.rename(self.path)
            self.discard(path.with_name(path.name.removesuffix(_LOCK)))
            self.lock_of(folder).unlink(missing_ok=True)

    def discard(self, folder: Path, listed: Collection[str] | None = None) -> None:
        """Remove a hidden folder: what its manifest lists, and that last; the rest is its user's,
        and moves to the destination. What can't be moved stays, and the folder with it.

        Args:
            folder: to remove.
            listed: what its manifest lists, where the caller knows it.
        """
        if (folder / MANIFEST).is_file():
            try:
                ours = _own_files(folder, listed)
                for path in list(folder.iterdir()):
                    if path.name not in ours:
                        join(path, self.path)
                for name in sorted(ours - {MANIFEST}):
                    (folder / name).unlink(missing_ok=True)
            except _UNMOVED:
                return
        shutil.rmtree(folder, ignore_errors=True)


def _own_files(folder: Path, listed: Collection[str] | None) -> set[str]:
    """Names of a bundle's own files, its manifest among them."""
    return {*(open_bundle(folder).manifest.files if listed is None else listed), MANIFEST}


@contextmanager
def _removed(lock: Path) -> Iterator[None]:
    """Remove a lock file while it is held: who waits for it then makes another."""
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)


def _mount_points() -> set[Path]:
    """What is mounted where, on Linux: of folders mounted within one file system, nothing else
    tells."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {Path(_unescaped(line.split(" ")[4])) for line in lines if line.count(" ") > 4}


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
