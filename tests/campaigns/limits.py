"""Commands and writers at the end of what a machine has: disks that are full, files that may not
grow, descriptors that are used up, processes that are killed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
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


def kill(command: list[str], seconds: float, scratch: Path | None = None) -> None:
    """Begin a command and kill it so many seconds after it said that it begins, unless it has come
    to its end by then."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment_with(scratch),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGKILL)


def environment_with(scratch: Path | None) -> dict[str, str] | None:
    return None if scratch is None else {**os.environ, "TMPDIR": str(scratch)}


def packages(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """`package`, killed: each model is the old or the new one, whole, and the next run leaves
    nothing else."""
    root = folder / "models"
    command = ["package", str(OLD_BUNDLE), "-o", str(root), "--name", "m"]
    run(command)
    kept = {path.name for path in root.iterdir()}
    (root / "README.txt").write_text("mine")
    found: Outcomes = Counter()
    for _ in range(times):
        kill(command, chance.random() * 1.5)
        content(root / "m" / "1" / "bundle")
        assert (root / "m" / "config.pbtxt").read_text().startswith("# Written by crossfuse")
        left = {path.name for path in root.iterdir()} - kept - {"README.txt"}
        found["left something" if left else "left nothing"] += 1
        run(command)
        assert {path.name for path in root.iterdir()} == kept | {"README.txt"}
    return found


def checks(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """`verify` and `profile`, killed: they change no bundle, and leave no process behind."""
    place = folder / "b"
    shutil.copytree(OLD_BUNDLE, place)
    before = content(place)
    quick = ["--rounds", "3", "--seconds", "0.01", "--cold-starts", "2", "--json"]
    commands = (["verify", str(place)], ["profile", str(place), "--target", "ort-cpu", *quick])
    found: Outcomes = Counter()
    for turn in range(times):
        kill(commands[turn % 2], chance.random() * 2)
        time.sleep(0.3)
        assert not alive(str(place)), "a process outlived the command that started it"
        assert content(place) == before
        assert [path.name for path in folder.iterdir()] == ["b"]
        found["killed"] += 1
    return found


def exports(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """`export` and `build`, killed: the old bundle or the new one is there, whole, with its user's
    file, and the next run leaves nothing else, in the temporary folder neither."""
    place, scratch = folder / "b", folder / "tmp"
    scratch.mkdir()
    model = ["cross_modal_attention", "--size", "tiny", "--quick"]
    export = ["export", *model, "-o", str(place), "--target", "ort-cpu"]
    build = ["build", str(place), "--target", "onnx"]
    copied(OLD_BUNDLE, place)
    (place / "notes.md").write_text("mine")
    found: Outcomes = Counter()
    for turn in range(times):
        kill((export, build)[turn % 2], chance.uniform(0, 20), scratch)
        bundle = open_bundle(place)
        bundle.verified(bundle.manifest.files)
        assert (place / "notes.md").read_text() == "mine"
        left = [path.name for path in folder.iterdir() if path.name not in ("b", "tmp")]
        found["left a folder" if left else "left nothing"] += 1
        copied(OLD_BUNDLE, place)
        assert sorted(path.name for path in folder.iterdir()) == ["b", "tmp"]
        assert not alive(str(place)), "a process outlived the command that started it"
    run(export, scratch)
    run(build, scratch)
    assert set(open_bundle(place).targets) == {"ort-cpu", "onnx"}
    assert not list(scratch.iterdir())
    return found


def maps(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """`map`, killed again and again, until a run comes to its end: each row has its answer once."""
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


def run(command: list[str], scratch: Path | None = None) -> None:
    """A command that has to come to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "crossfuse", *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment_with(scratch),
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


CAMPAIGNS = (small_files, descriptors, full_disks, packages, checks, exports, maps)
