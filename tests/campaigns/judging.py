"""What came of a command that lacked something: its work, or one paragraph that says why not; and
what it leaves is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from campaigns.commands import Command
from campaigns.forks import LONGEST, ended
from campaigns.killed import require_nothing_left
from crossfuse.bundle.destination import Destination

UNFORESEEN = "did not foresee"
LIBRARIES = re.compile(
    r"^(OpenBLAS error|terminate called|Fatal Python error|cannot allocate memory for thread)",
    re.MULTILINE,
)
"""What native code says that finds no memory, and then ends the process."""


def outcome(
    process: int, command: Command, place: Path, where: str, *, native: bool = False
) -> str:
    """What came of a command that runs; raises where that is not allowed.

    Args:
        process: its id; what it says is in ``stderr`` beside the place.
        command: that it is.
        place: where it works.
        where: what it lacks, for what is raised.
        native: native code that lacks it may end the process.
    """
    before = files(place)
    status, _ = ended(process, LONGEST)
    said = (place.parent / "stderr").read_text(errors="replace")
    assert status is not None, f"{where}: no end, {said}"
    command.require_whole(place)
    if native:  # where nothing is left, the next write removes what is written
        Destination.at(place / "b").sweep_if_free()
    after = files(place)
    shutil.rmtree(place / "cache", ignore_errors=True)
    (place / "full").unlink(missing_ok=True)
    came = _came(os.waitstatus_to_exitcode(status), said, where, native)
    assert came == "done" or command.progresses or after == before, f"{where}: changed, {said}"
    kept = set(command.writes) & {one.name for one in place.iterdir()}
    require_nothing_left(place, place / "tmp", kept)
    return came


def _came(code: int, said: str, where: str, native: bool) -> str:
    assert "Traceback" not in said, f"{where}: {said}"
    if not code:
        return "done"
    if native and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if native and code not in (1, 2) and LIBRARIES.search(said):
        return "ended by a library"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code in (1, 2), f"{where}: {code}, {said}"
    assert len(errors) == 1, f"{where}: {code}, {said}"
    is_unforeseen = UNFORESEEN in said
    assert native or not is_unforeseen, f"{where}: {said}"
    return "unforeseen" if is_unforeseen else "refused"


def files(place: Path) -> Mapping[str, bytes]:
    """What is there but for temporary folders and caches."""
    aside = {place / "tmp", place / "cache", place / "full"}
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not aside & {path, *path.parents}
    }
