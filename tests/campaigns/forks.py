"""Commands in forked children of a process that has imported what they need: what is killed or
limited is their work, not Python's start."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LONGEST = 120.0
TURN = 0.05
"""Seconds of one turn of a wait."""


def ended(process: int, seconds: float) -> int | None:
    """Wait so long for a child, and kill it then; its status, or None of one that was killed. Time
    in which this process was stopped, or had no processor, doesn't count."""
    handle = os.pidfd_open(process)
    left, before = seconds, time.monotonic()
    try:
        while left > 0:
            if select.select([handle], [], [], min(TURN, left))[0]:
                return os.waitpid(process, 0)[1]
            now = time.monotonic()
            left -= min(now - before, TURN)
            before = now
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None
    finally:
        os.close(handle)


def killed(command: Sequence[str], seconds: float, scratch: Path) -> bool:
    """Fork, run a command, and kill it so many seconds later; whether it was still at work. Its
    children's end is waited for."""
    status = ended(begun(command, scratch), seconds)
    assert not status, f"{command} ended with {status}"
    return status is None


def finished(command: Sequence[str], scratch: Path) -> float:
    """Run a command to its end; the seconds that it took."""
    start = time.monotonic()
    assert not killed(command, LONGEST, scratch), f"{command} has no end"
    return time.monotonic() - start


def begun(command: Sequence[str], scratch: Path, prepares: Callable[[], object] = int) -> int:
    """Fork, and run a command in the child, its temporary folder the scratch; its process id.

    What it says on stderr is in a file of that name beside the scratch. ``prepares`` is called
    before.
    """
    process = os.fork()
    if process:
        return process
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    log = os.open(scratch.parent / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = str(scratch)
    tempfile.tempdir = None
    from crossfuse.cli import main as cli

    status = 70
    try:
        prepares()
        cli(list(command))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(status)
