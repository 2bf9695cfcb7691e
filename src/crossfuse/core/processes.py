"""Processes: children that end with their parent, and those of a library that didn't; sessions that
a fork took along; how many CPUs a container may use."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from crossfuse.errors import InputError

__all__ = [
    "PARENT",
    "began_at",
    "cpu_limit",
    "descendants",
    "end_those",
    "end_with_parent",
    "for_child",
    "keep_in_forks",
    "parent_of",
    "require_own_process",
]

PARENT = "CROSSFUSE_PARENT"
"""Environment variable that tells a child its parent's process id."""
_PR_SET_PDEATHSIG = 1
_GROUPS = Path("/sys/fs/cgroup")
_PROCESSES = Path("/proc")


def for_child() -> dict[str, str]:
    """The environment of a child that calls `end_with_parent`."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends, however that ends; on Linux.

    Native code that runs for an hour is no hindrance. Without a parent that said so, nothing
    happens.
    """
    parent = os.environ.pop(PARENT, "")
    if sys.platform != "linux" or not parent.isdecimal():
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)  # it ended before


def descendants() -> dict[int, str]:
    """Processes that this one started, and that those did: process id → when it began, on Linux."""
    known = {}
    for entry in _PROCESSES.glob("[0-9]*"):
        about = _about(int(entry.name))
        if about is not None:
            known[int(entry.name)] = about
    found: dict[int, str] = {}
    parents = {os.getpid()}
    while parents:
        parents = {one for one, (parent, _) in known.items() if parent in parents} - found.keys()
        found |= {one: known[one][1] for one in parents}
    return found


def end_those(processes: Mapping[int, str]) -> None:
    """Kill those of processes that are still there; another one that got an id later is left alone.

    Args:
        processes: as `descendants` gives them.
    """
    for process, began in processes.items():
        about = _about(process)
        if about is not None and about[1] == began:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)


def _about(process: int) -> tuple[int, str] | None:
    """A process's parent, and when it began."""
    try:
        fields = (_PROCESSES / str(process) / "stat").read_text(errors="replace")
        parts = fields.rpartition(")")[2].split()
        return None if parts[0] in "ZX" else (int(parts[1]), parts[19])
    except (OSError, ValueError, IndexError):
        return None


def began_at(process: int) -> str:
    """What tells a process from another one that gets its id later, on Linux; nothing of one that
    has ended."""
    about = _about(process)
    return "" if about is None else about[1]


def parent_of(process: int) -> int:
    """A process's parent, on Linux; 0 of one that has ended."""
    about = _about(process)
    return 0 if about is None else about[0]


def require_own_process(process: int) -> None:
    """Refuse what was opened in another process and came here by a fork: its threads did not.

    Args:
        process: id of the one that opened it.

    Raises:
        InputError: it is another one.
    """
    if process != os.getpid():
        raise InputError(
            "the session was opened before this process was forked, and its threads stayed behind",
            got=f"process {os.getpid()}",
            expected=f"process {process}",
            do="Load the bundle after the fork (gunicorn: in post_fork, with preloading off), or "
            "start processes by spawn",
        )


def keep_in_forks(thing: object) -> None:
    """Let a fork's child never release an object whose threads stayed behind: the release would
    wait for them."""
    if not hasattr(os, "register_at_fork"):
        return
    found = weakref.ref(thing)

    def keep() -> None:
        held = found()
        if held is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))

    os.register_at_fork(after_in_child=keep)


def cpu_limit(groups: Path = _GROUPS) -> int | None:
    """Threads that the CPU quota of a container lets run at once; None without a quota, or where it
    is no less than the CPUs that the process may use.

    Args:
        groups: where the control groups are.
    """
    quota = _quota(groups)
    if quota is None:
        return None
    threads = max(1, math.ceil(quota))
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    return threads if threads < cpus else None


def _quota(groups: Path) -> float | None:
    """CPUs, of control groups of version 2 or 1."""
    try:
        most, period = (groups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            most = (groups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (groups / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (most.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max", or -1
    return int(most) / int(period)
