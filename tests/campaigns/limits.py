"""Commands and writers at the end of what a machine has: disks that are full, files that may not
grow, descriptors that are used up.
"""

from __future__ import annotations

import os
import random
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from campaigns.operations import OLD_BUNDLE, Outcomes, copied
from crossfuse import CrossfuseError
from crossfuse.bundle.store import open_bundle
from system_limits import at_most, descriptors_left, disk


def small_files(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Writers that may write so many bytes of a file: the old bundle stays, and nothing else."""
    return bounded(
        times,
        folder,
        lambda: at_most(resource.RLIMIT_FSIZE, int(10 ** chance.uniform(0, 5.4))),
        "File too large",
    )


def descriptors(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Writers that may open so many files more."""
    left = iter(range(10_000_000))
    return bounded(times, folder, lambda: descriptors_left(next(left) % 9), "Too many open files")


def full_disks(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Disks on which less or more than two bundles have room; needs the right to mount."""
    found: Outcomes = Counter()
    for turn in range(times):
        place = folder / f"disk-{turn}"
        with disk(place, chance.randint(180, 420)):
            copied(OLD_BUNDLE, place / "b")
            before = content(place / "b")
            found[written(place / "b", "No space left on device")] += 1
            assert content(place / "b") == before
            assert [path.name for path in place.iterdir()] == ["b"]
        place.rmdir()
    return found


def written(place: Path, reason: str) -> str:
    """Whether a bundle could be written; a refusal is one paragraph with that reason."""
    try:
        copied(OLD_BUNDLE, place)
    except CrossfuseError as error:
        refusal = str(error)
    else:
        return "written"
    assert reason in refusal, refusal
    assert len(refusal.splitlines()) == 1
    return "refused"


def bounded(
    times: int, folder: Path, limited: Callable[[], AbstractContextManager[None]], reason: str
) -> Outcomes:
    """Writes within a limit: each leaves the old bundle or the new one, whole."""
    place = folder / "b"
    copied(OLD_BUNDLE, place)
    before = content(place)
    found: Outcomes = Counter()
    for _ in range(times):
        with limited():
            came = written(place, reason)
        found[came] += 1
        assert content(place) == before
    copied(OLD_BUNDLE, place)
    assert [path.name for path in folder.iterdir()] == ["b"]
    return found


def content(place: Path) -> dict[str, bytes]:
    """A bundle's files, checked."""
    bundle = open_bundle(place)
    return {path.name: path.read_bytes() for path in bundle.verified(bundle.manifest.files)}


def alive(text: str) -> list[int]:
    """Other processes with that in their command or their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in words:
                found.append(int(entry.name))
    return found


CAMPAIGNS = (small_files, descriptors, full_disks)
