"""Commands that run short of disk: each does its work, or says in one paragraph why not and leaves
what was there.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

from campaigns.commands import COMMANDS, Command
from campaigns.forks import begun, finished
from campaigns.judging import outcome
from campaigns.operations import Outcomes
from system_limits import disk


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
        process = begun(command.words(small), small / "tmp", command.prepares, place)
        return outcome(process, command, small, f"{name} with {left} bytes of disk")


CAMPAIGNS = (short_disks,)
