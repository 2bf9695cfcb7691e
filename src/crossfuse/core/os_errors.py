"""What the system refused, and what to do about it: disks that are full or read-only, limits of a
process or of a machine."""

from __future__ import annotations

import errno
import re

__all__ = ["cause_in_memory", "help_for", "is_out_of_memory", "reason_of"]

_HELP = {
    errno.ENOSPC: "Make room on the disk, or choose another one",
    errno.EDQUOT: "Make room: your quota on this disk is used up",
    errno.EFBIG: "The file is larger than the file system takes, or than this process may write "
    "(`ulimit -f`)",
    errno.EROFS: "Choose a folder on a file system that can be written",
    errno.EACCES: "Choose a folder that you may write to",
    errno.EPERM: "Choose a folder that you may write to",
    errno.EMFILE: "Let the process open more files: `ulimit -n` says how many it may",
    errno.ENFILE: "All of the machine's programs together have too many files open: end some",
    errno.ENOMEM: "Free memory, or use smaller sizes",
    errno.EAGAIN: "The system lacks something now, such as processes (`ulimit -u`): try again",
    errno.EIO: "The disk failed: the system's log says more",
}
_WHOEVER_ASKS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO,
}  # fmt: skip
"""Those whose help is the same wherever they come from."""


_OUT_OF_MEMORY = re.compile(
    r"bad.?alloc|(can.?t|cannot|could not|failed to|unable to) (\w+ )?allocate|out of memory"
    r"|not enough memory|failed to map segment",
    re.IGNORECASE,
)


def cause_in_memory(error: BaseException) -> BaseException | None:
    """The first exception that told that memory ran out, of this one and those that caused it; None
    where none did."""
    found: BaseException | None = None
    at: BaseException | None = error
    while at is not None:
        found = at if is_out_of_memory(at) else found
        at = at.__cause__
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out, which each library says in words of its own."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def reason_of(error: OSError) -> str:
    """What the system says, without its number."""
    return error.strerror or str(error) or type(error).__name__


def help_for(error: BaseException, *, writing: bool = False) -> str | None:
    """What to do about an error of the system; None where nothing is known.

    Args:
        error: any exception; one that isn't the system's has no help here.
        writing: it happened while a file of the user's choice was written.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None or not (writing or number in _WHOEVER_ASKS):
        return None
    return _HELP.get(number)
