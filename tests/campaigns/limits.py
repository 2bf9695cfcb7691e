"""Commands and writers at the end of what a machine has: disks that are full, files that may not
grow, descriptors that are used up, processes that are killed.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from campaigns.operations import OLD_BUNDLE, Outcomes, copied
from crossfuse import CrossfuseError
from crossfuse.bundle.store import open_bundle
from crossfuse.parity.session_check import smallest_inputs
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


KILLED = """
import os, sys
from crossfuse.cli import main
print("begun", flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
main(sys.argv[1:])
"""
"""A command that says when it is about to begin: what is killed is its work, not Python's start."""


def kill(command: list[str], seconds: float) -> None:
    """Begin a command and kill it so many seconds after it said that it begins, unless it has come
    to its end by then."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGKILL)


def maps(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """`map` with a Ray of its own, killed again and again, until a run comes to its end: each row
    has its answer once."""
    inputs = smallest_inputs(open_bundle(OLD_BUNDLE))
    assert inputs is not None
    source, out = folder / "in", folder / "out"
    source.mkdir()
    names = [f"{number}.npz" for number in range(8)]
    for name in names:
        np.savez(source / name, **inputs)
    command = ["map", str(OLD_BUNDLE), "--input", str(source), "-o", str(out), "--shard-rows", "1"]
    found: Outcomes = Counter()
    for _ in range(times):
        kill([*command, "--target", "ort-cpu"], chance.uniform(2, 25))
        found["killed"] += 1
    run([*command, "--target", "ort-cpu"])
    assert sorted(path.name for path in out.glob("*.npz")) == names
    marks = [json.loads(path.read_text()) for path in (out / ".shards").glob("*.json")]
    assert [mark["failed"] for mark in marks] == [{}] * len(names)
    return found


def run(command: list[str]) -> None:
    """A command that has to come to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "crossfuse", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def alive(text: str) -> list[int]:
    """Processes whose command names something."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in words:
                found.append(int(entry.name))
    return found


CAMPAIGNS = (small_files, descriptors, full_disks, maps)
