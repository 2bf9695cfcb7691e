"""Files: written whole or not at all, locked, hashed; and where the user's cache is.

What appears under its name is complete: it is written to a hidden neighbour, which then takes the
name. `filelock` and `platformdirs` are imported where they are needed: a runtime of NumPy and one
engine has neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.core.partials import held_partial
from crossfuse.core.requirements import needed
from crossfuse.errors import InputError

__all__ = [
    "REPLACED",
    "change_places",
    "exchange",
    "locked",
    "move_aside",
    "names_for",
    "open_plain",
    "put_in_place",
    "read_at_most",
    "require_writable",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "try_lock",
    "user_cache",
    "whole_file",
    "write_text",
    "write_whole",
]

REPLACED = "-old"
"""Ending of a folder's name, after that of the one that takes its place, while they change places
by two renames."""

_PART = 1 << 20
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it can't be read, or is no plain file.
    """
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_plain(path: str | Path, folder: int | None = None) -> BufferedReader:
    """Open a file to read. Links are followed; a device, socket or pipe is refused, not waited for.

    Args:
        path: of the file.
        folder: descriptor of the folder that a relative path starts from.

    Raises:
        OSError: it can't be opened, or is no plain file.
    """
    refused = OSError(errno.EINVAL, "not a plain file", str(path))
    if not stat.S_ISREG(os.stat(path, dir_fd=folder).st_mode):  # opening some devices does things
        raise refused
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refused
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_at_most(file: BinaryIO, count: int) -> bytes:
    """The first bytes of an open file, so many or all that there are. (Asked for a number of bytes,
    a file takes the memory for all of them, whatever its size.)

    Args:
        file: to read from.
        count: of bytes.

    Raises:
        OSError: it can't be read.
    """
    parts = []
    while count > 0 and (part := file.read(min(count, _PART))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to the disk, where the system does that for folders."""
    with contextlib.suppress(OSError):
        sync_file(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden neighbour to write to, which takes the file's place at the end; after an exception
    it is removed, and the file is what it was. What a killed writer of the same file left is
    removed.

    Raises:
        OSError: the neighbour can't be made, or can't take its place.
    """
    with held_partial(path) as partial:
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes, whole or not at all, even if the machine dies.

    Raises:
        OSError: the file can't be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file that the user asked for: UTF-8 text, whole or not at all.

    Raises:
        InputError: the file can't be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(
            f"the output file can't be written: {reason_of(error)}",
            where=path,
            do=help_for(error, writing=True),
        ) from error


def require_writable(path: Path) -> None:
    """Raise :class:`InputError` where a file can't be written, before hours of work find out."""
    if path.is_dir():
        raise InputError("the output is a folder", where=path, expected="a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError("the output's folder doesn't exist", where=folder, do="Make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(
            "the output's folder can't be written",
            where=folder,
            do="Choose a folder that you may write to",
        )


def put_in_place(folder: Path, destination: Path) -> None:
    """Rename a folder onto an absent destination, or let it change places with the one there, which
    is then removed.

    Raises:
        OSError: the folder can't take the place; the destination is then what it was.
    """
    old = change_places(folder, destination)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def change_places(folder: Path, destination: Path) -> Path | None:
    """Rename a folder onto an absent destination, or let it change places with the one there.

    The change is one system call on Linux, where the file system has it, and two renames elsewhere.
    When it is done, it is on the disk.

    Returns:
        where the one lies that had the place, if any had.

    Raises:
        OSError: the folder can't take the place; the destination is then what it was.
    """
    old: Path | None = None
    if not destination.exists():
        folder.rename(destination)
    elif exchange(folder, destination):
        old = folder
    else:
        old = folder.with_name(folder.name + REPLACED)
        destination.rename(old)
        try:
            folder.rename(destination)
        except OSError:
            old.rename(destination)
            raise
    sync_folder(destination.parent)
    return old


def move_aside(path: Path, folder: Path) -> Path:
    """Move something into a folder of the same file system, under its name, or another one where
    something has that.

    Returns:
        where it is.

    Raises:
        OSError: it can't be moved.
    """
    for place in names_for(path, folder):
        if os.path.lexists(place):
            continue
        if _rename(path, place, _RENAME_NOREPLACE):
            return place
        if not os.path.lexists(place):
            path.rename(place)
            return place
    raise OSError(errno.EEXIST, "all names are taken", str(folder / path.name))


def names_for(path: Path, folder: Path) -> Iterator[Path]:
    """Names that `move_aside` tries, in its order; they may be taken."""
    yield folder / path.name
    for number in range(1000):
        yield folder / f"{path.name}.kept{number or ''}"


def exchange(a: Path, b: Path) -> bool:
    """Let two files or folders change places in one system call, where the system has that; whether
    they did."""
    return _rename(a, b, _RENAME_EXCHANGE)


def _rename(a: Path, b: Path, how: int) -> bool:
    """Linux's `renameat2`; False where the system can't."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), how)
    return result == 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a lock file, waiting for whoever has it. A process that ends holds none.

    Raises:
        PackageError: `filelock` is not installed.
        OSError: the lock file can't be written, or is none.
    """
    with needed("filelock", "a lock on files"):
        from filelock import FileLock
    _require_lock_file(path)
    with FileLock(path):
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a lock file, or be told at once that somebody has it.

    Raises:
        PackageError: `filelock` is not installed.
        OSError: the lock file can't be opened, or is none.
    """
    with needed("filelock", "a lock on files"):
        from filelock import FileLock, Timeout
    _require_lock_file(path)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _require_lock_file(path: Path) -> None:
    """Refuse what nobody can lock, before it is opened."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "the lock file is not a plain file", str(path))


def user_cache() -> Path:
    """Where crossfuse keeps what it may lose (engines and kernels that took long to build):
    ``$CROSSFUSE_CACHE``, or ``crossfuse`` in the user's cache folder.

    That is ``$XDG_CACHE_HOME`` or ``%LOCALAPPDATA%`` where they are set, and the system's own
    otherwise, which `platformdirs` knows; without that package, ``~/.cache``.
    """
    chosen = os.environ.get("CROSSFUSE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    if base:
        return Path(base) / "crossfuse"
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return Path.home() / ".cache" / "crossfuse"
    return user_cache_path("crossfuse", appauthor=False)
