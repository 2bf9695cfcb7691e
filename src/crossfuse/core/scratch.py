"""Temporary folders that the next run removes where a killed one left them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from crossfuse.core.files import locked, try_lock
from crossfuse.errors import PackageError

__all__ = ["scratch_folder"]

_START = "crossfuse-scratch-"
_LOCK = ".lock"


@contextmanager
def scratch_folder(root: Path | None = None) -> Iterator[Path]:
    """A private temporary folder, removed at the end.

    It holds a lock file, whose lock ends with its process: folders whose lock is free are removed
    first. Without `filelock` nothing is locked, and such folders stay.

    Args:
        root: the folder that it is made in; None for the system's temporary one.

    Raises:
        OSError: there is no room for it.
    """
    with suppress(PackageError, OSError):
        _sweep(root or Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_START, dir=root))
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        with suppress(PackageError):
            held.enter_context(locked(folder / _LOCK))
        yield folder


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        lock = folder / _LOCK
        if folder.name.startswith(_START) and not folder.is_symlink() and lock.is_file():
            with suppress(OSError), try_lock(lock) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)
