"""Limits of a process and small disks, for tests and campaigns."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_most(kind: int, value: int) -> Iterator[None]:
    """A limit of this process, such as ``resource.RLIMIT_FSIZE``."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many files more, or some more where it closed others before."""
    lowest = os.dup(0)
    os.close(lowest)
    with at_most(resource.RLIMIT_NOFILE, lowest + count):
        yield


@contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of that size, mounted; to mount needs rights that few have.

    Raises:
        PermissionError: this user may not mount.
    """
    place.mkdir()
    mounted(f"size={kilobytes}k", place, "-t", "tmpfs", "tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def mounted(option: str, place: Path, *more: str) -> None:
    """Mount, or change a mount (``remount,ro``)."""
    done = subprocess.run(
        ["mount", "-o", option, *more, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr)
