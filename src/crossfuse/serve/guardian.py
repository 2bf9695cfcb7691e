"""A process that outlives a command, and ends the processes of that one's Ray when it is killed.

Ray lets the kernel end what it starts when the command ends, but not what is just being started,
and what that has started looks for its parent seldom. So they get a variable in their environment
that names the command, and a guardian waits until the command is gone: then it kills all that bear
the name, until none comes any more. What a guardian that was killed, too, has left, the next
command ends. Processes whose environment is no longer to be read, because they have named
themselves, are known by their name, and by a parent that is gone. Processes of other containers,
which a host sees, are let alone: the ids that they name mean others here.

``python -m crossfuse.serve.guardian OWNER GROUP`` is what it runs, its standard input the pipe that
ends with the command. Linux only: elsewhere nobody can be asked for the environment of others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crossfuse.core.processes import began_at, parent_of

__all__ = ["OWNER", "end_owned", "end_ownerless", "guarded", "main"]

OWNER = "CROSSFUSE_OWNER"
"""Environment variable of Ray's processes: process id of the command, and when it began."""
_PROCESSES = Path("/proc")
_NAMED = b"ray::"
"""How the names of Ray's processes begin that have one of their own."""
_PARENT = b"raylet"
"""What is among the words of their parent."""
_QUIET_SECONDS = 1.0
"""So long none has come, when the guardian ends."""
_LONGEST_SECONDS = 30.0
_TURN = 0.05


@contextmanager
def guarded() -> Iterator[None]:
    """Processes that are started here and inherit the environment end when this one does, however
    it ends; what is left of commands that are gone is ended now."""
    if sys.platform != "linux":
        yield
        return
    end_ownerless()
    owner = f"{os.getpid()}:{began_at(os.getpid())}"
    before = os.environ.get(OWNER)
    environment = {name: value for name, value in os.environ.items() if name != OWNER}
    words = [sys.executable, "-m", __name__, owner, str(os.getpgrp())]
    guardian = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    os.environ[OWNER] = owner
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(OWNER, None)
        else:
            os.environ[OWNER] = before
        guardian.kill()
        guardian.communicate()


def end_ownerless() -> None:
    """Kill processes whose command is gone."""
    _kill(lambda process: _is_gone(_owner_of(process)))


def end_owned(owner: str, group: int) -> bool:
    """Kill the processes of a command that is gone; whether there were any.

    Args:
        owner: as `OWNER` names it.
        group: the process group that it was in.
    """
    return _kill(lambda process: _owner_of(process) == owner or _is_orphan_of(process, group))


def _kill(chosen: Callable[[int], bool]) -> bool:
    found = [
        int(entry.name)
        for entry in _PROCESSES.iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid()
    ]
    ended = [process for process in found if chosen(process) and _is_here(process)]
    for process in ended:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    return bool(ended)


def _is_here(process: int) -> bool:
    """It counts process ids as this process does: it is in the same PID namespace."""
    with suppress(OSError):
        own = (_PROCESSES / "self" / "ns" / "pid").readlink()
        return (_PROCESSES / str(process) / "ns" / "pid").readlink() == own
    return False


def _owner_of(process: int) -> str:
    """Whom a process's environment names; nobody where that can't be read."""
    with suppress(OSError):
        mark = OWNER.encode() + b"="
        for entry in (_PROCESSES / str(process) / "environ").read_bytes().split(b"\0"):
            if entry.startswith(mark):
                return entry.removeprefix(mark).decode(errors="replace")
    return ""


def _is_gone(owner: str) -> bool:
    """The command is named, and has ended; another process may have its id."""
    process, _, began = owner.partition(":")
    return process.isdecimal() and began_at(int(process)) != began


def _is_orphan_of(process: int, group: int) -> bool:
    """One of Ray's own processes in a group, whose parent has ended."""
    with suppress(OSError):
        return (
            os.getpgid(process) == group
            and _words(process).startswith(_NAMED)
            and _PARENT not in _words(parent_of(process))
        )
    return False


def _words(process: int) -> bytes:
    return (_PROCESSES / str(process) / "cmdline").read_bytes()


def main() -> None:
    """Wait for the command's end, and end what it started."""
    owner, group = sys.argv[1], int(sys.argv[2])
    while os.read(0, 1):
        pass
    last = start = time.monotonic()
    while time.monotonic() - last < _QUIET_SECONDS and time.monotonic() - start < _LONGEST_SECONDS:
        if end_owned(owner, group):
            last = time.monotonic()
        time.sleep(_TURN)


if __name__ == "__main__":
    main()
