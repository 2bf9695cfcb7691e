"""Hidden neighbours of files while these are written. Their names are known, and whoever writes
holds a lock of the neighbour: so the next one who writes the same file removes what a killed one
left, and nothing of one that lives. Where the system or the file system has no such locks, nothing
is removed.
"""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["held_partial"]

_ENDING = ".crossfuse-partial"


@contextmanager
def held_partial(path: Path) -> Iterator[Path]:
    """A new empty file beside another one, held by nobody else; it may be moved or removed.

    Raises:
        OSError: it can't be made.
    """
    if sys.platform == "win32":  # where an open file can't take another one's place
        yield path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        return
    turn, held = _first_free(path)
    try:
        for later in itertools.count(turn + 1):
            if not os.path.lexists(_neighbour(path, later)):
                break
            _remove_abandoned(_neighbour(path, later))
        yield _neighbour(path, turn)
    finally:
        os.close(held)


def _first_free(path: Path) -> tuple[int, int]:
    """The number of the first neighbour that nobody else has, made; and its descriptor."""
    turn = 0
    while (held := _made(_neighbour(path, turn))) is None:
        turn += 1
    return turn, held


def _neighbour(path: Path, turn: int) -> Path:
    return path.with_name(f".{path.name}{_ENDING}{turn or ''}")


def _made(partial: Path) -> int | None:
    """The descriptor of a file that wasn't there, locked; None where somebody else has it."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    while True:
        try:
            held = os.open(partial, flags, 0o666)
        except FileExistsError:
            if not _remove_abandoned(partial):
                return None
            continue
        if _is_locked(held) is not False and _is_there(held, partial):
            return held
        os.close(held)  # taken for abandoned before it was locked


def _remove_abandoned(partial: Path) -> bool:
    """Remove a file whose writer has ended; whether there is none now."""
    try:
        found = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode) or not _is_locked(found):
            return False
        if _is_there(found, partial):
            partial.unlink()
    except OSError:
        return False
    finally:
        os.close(found)
    return True


def _is_locked(descriptor: int) -> bool | None:
    """Lock a file; False where somebody else has, None where there are no locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_there(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False
