"""Commands in forked children of a process that has imported what they need: what is killed or
limited is their work, not Python's start."""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

LONGEST = 120.0
TURN = 0.05
"""Seconds of one turn of a wait."""


def ended(process: int, seconds: float) -> tuple[int | None, float]:
    """Wait so long for a child, and kill it then; its status, or None of one that was killed, and
    the seconds. Time in which this process was stopped, or had no processor, doesn't count."""
    handle = os.pidfd_open(process)
    left, before = seconds, time.monotonic()
    try:
        while left > 0:
            is_done = bool(select.select([handle], [], [], min(TURN, left))[0])
            now = time.monotonic()
            left -= min(now - before, TURN)
            before = now
            if is_done:
                return os.waitpid(process, 0)[1], seconds - left
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None, seconds
    finally:
        os.close(handle)


def finished(command: Sequence[str], scratch: Path, prepares: Callable[[], object] = int) -> float:
    """Run a command to its end; the seconds that it took. What it imported is imported here, too:
    the next one won't begin with that."""
    status, took = ended(begun(command, scratch, prepares), LONGEST)
    said = (scratch.parent / "stderr").read_text(errors="replace")
    assert status == 0, f"{command} ended with {status}: {said}"
    names = scratch.parent / "modules"
    for name in names.read_text().split():
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)
    names.unlink()
    return took


def killed(
    command: Sequence[str], seconds: float, scratch: Path, prepares: Callable[[], object] = int
) -> bool:
    """Fork, run a command, and kill it so many seconds later; whether it was still at work. Its
    children's end is waited for."""
    status, _ = ended(begun(command, scratch, prepares), seconds)
    assert not status, f"{command} ended with {status}"
    (scratch.parent / "modules").unlink(missing_ok=True)
    return status is None


def begun(
    command: Sequence[str],
    scratch: Path,
    prepares: Callable[[], object] = int,
    beside: Path | None = None,
) -> int:
    """Fork, and run a command in the child, its temporary folder the scratch; its process id.

    What it says on stderr is in a file of that name beside the scratch, or in another folder, and
    the names of what it imported in ``modules``. ``prepares`` is called before.
    """
    told = beside or scratch.parent
    process = os.fork()
    if process:
        return process
    _be_child(scratch, told)
    # A runner of tests may have put others in their places.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    tempfile.tempdir = None
    from crossfuse.cli import main as cli

    before, status = set(sys.modules), 70
    try:
        prepares()
        cli(list(command))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if not status:
            new = [name for name in sys.modules if name not in before]
            (told / "modules").write_text("\n".join(new))
        os._exit(status)


def begun_anew(
    words: Sequence[str], scratch: Path, prepares: Callable[[], object], beside: Path
) -> int:
    """The same with another program in the child, Python with those words."""
    process = os.fork()
    if not process:
        try:
            _be_child(scratch, beside)
            prepares()
            os.execv(sys.executable, [sys.executable, *words])
        finally:
            os._exit(70)
    return process


def _be_child(scratch: Path, told: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    log = os.open(told / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = str(scratch)
