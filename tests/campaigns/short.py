"""Commands that run short of disk: each does its work, or says in one paragraph why not and leaves
what was there.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from campaigns.commands import COMMANDS, Command
from campaigns.forks import LONGEST, begun, ended, finished
from campaigns.killed import require_nothing_left
from campaigns.operations import Outcomes
from system_limits import disk

UNFORESEEN = "did not foresee"


def short_disks(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Each command in turn, on a disk that has little room; needs the right to mount."""
    names = os.environ.get("CROSSFUSE_CAMPAIGN_COMMANDS", ",".join(COMMANDS)).split(",")
    found: Outcomes = Counter()
    os.environ["CROSSFUSE_CACHE"] = str(folder / "cache")
    for name in names:
        command, place = COMMANDS[name], folder / name
        (place / "tmp").mkdir(parents=True)
        command.starts(place)
        finished(command.words(place), place / "tmp", command.prepares)
        shutil.rmtree(place)
        for _ in range(times // len(names) + (names.index(name) < times % len(names))):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            place.mkdir()
            found[f"{name}: {_on_a_small_disk(name, command, place, chance)}"] += 1
            shutil.rmtree(place)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for left in ("stderr", "modules"):
        (folder / left).unlink(missing_ok=True)
    return found


def _on_a_small_disk(name: str, command: Command, place: Path, chance: random.Random) -> str:
    with disk(place / "disk", 4096) as small:
        (small / "tmp").mkdir()
        command.starts(small)
        os.environ["CROSSFUSE_CACHE"] = str(small / "cache")
        about = os.statvfs(small)
        room = about.f_bavail * about.f_frsize
        left = int(min(room, 10 ** chance.uniform(0, 6)))
        with (small / "full").open("wb") as file:
            file.write(bytes(max(0, room - left)))
        return _outcome(command, small, command.prepares, f"{name} with {left} bytes of disk")


def _outcome(command: Command, place: Path, prepares: Callable[[], object], where: str) -> str:
    """What came of it; raises where that is not allowed."""
    before, told = _files(place), place.parent
    process = begun(command.words(place), place / "tmp", prepares, told)
    status, _ = ended(process, LONGEST)
    said = (told / "stderr").read_text(errors="replace")
    assert status is not None, f"{where}: no end, {said}"
    command.require_whole(place)
    after = _files(place)
    shutil.rmtree(place / "cache", ignore_errors=True)
    (place / "full").unlink(missing_ok=True)
    came = _came(os.waitstatus_to_exitcode(status), said, where)
    assert came == "done" or command.progresses or after == before, f"{where}: changed, {said}"
    kept = set(command.writes) & {one.name for one in place.iterdir()}
    require_nothing_left(place, place / "tmp", kept)
    return came


def _came(code: int, said: str, where: str) -> str:
    if not code:
        return "done"
    assert code in (1, 2), f"{where}: {code}, {said}"
    assert "Traceback" not in said, f"{where}: {said}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, f"{where}: {said}"
    return "unforeseen" if UNFORESEEN in said else "refused"


def _files(place: Path) -> Mapping[str, bytes]:
    """What is there but for temporary folders and caches."""
    aside = {place / "tmp", place / "cache", place / "full"}
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not aside & {path, *path.parents}
    }


CAMPAIGNS = (short_disks,)
