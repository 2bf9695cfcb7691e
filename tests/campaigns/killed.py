"""Commands, killed at any moment: what they change is the old or the new one, whole, and after the
next run nothing of the killed one is left, neither files nor processes.

Commands run in forked children of a process that has imported what they need, so that what is
killed is their work. `map` is killed in `killed_maps.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaigns.damage import Chance
from campaigns.forks import finished, killed
from campaigns.limits import alive, content
from campaigns.operations import OLD_BUNDLE, Outcomes, copied
from crossfuse.bundle.store import open_bundle
from crossfuse.core.scratch import scratch_folder

MODEL = ("cross_modal_attention", "--size", "tiny", "--quick")
CACHES = {"torchinductor_root", "ray"}
"""What PyTorch and Ray (its logs) keep in the temporary folder, however they end."""
SOON = 5.0
"""Seconds after a command's end until its processes are gone."""


@contextmanager
def _swept(scratch: Path) -> Iterator[None]:
    """As the next run would, and look."""
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        with scratch_folder():
            pass
        yield
    finally:
        tempfile.tempdir = before


def require_nothing_left(
    folder: Path, scratch: Path, kept: set[str], seconds: float = SOON
) -> None:
    """No process that has the folder or the scratch among its words or in its environment, no
    temporary folder after the next run's cleaning, and nothing but what is kept."""
    deadline = time.monotonic() + seconds
    while (left := alive(str(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes outlived the command that started them: {left}"
    with _swept(scratch):
        there = {path.name for path in scratch.iterdir()} - CACHES
        assert not there, there
    there = {path.name for path in folder.iterdir()} - {"tmp", "stderr", "modules"}
    assert there == kept, there


def _written(
    times: int, folder: Path, chance: Chance, command: list[str], place: Path, whole: int
) -> Outcomes:
    """Kill a command that writes a bundle."""
    scratch = folder / "tmp"
    scratch.mkdir()
    copied(OLD_BUNDLE, place)
    old = content(place)
    (place / "notes.md").write_text("mine")
    (place / "logs").mkdir()
    (place / "logs" / "log").write_text("mine, too")
    finished(command, scratch)
    took = finished(command, scratch)
    _require_mine(place)
    found: Outcomes = Counter()
    for turn in range(times):
        copied(OLD_BUNDLE, place)
        was_killed = killed(command, chance.uniform(0, took), scratch)
        now = content(place)
        assert now == old or len(open_bundle(place).targets) == whole
        _require_mine(place)
        left = [path for path in folder.iterdir() if path.name.startswith(".")]
        state = "old" if now == old else "new"
        if turn % 16 == 15:
            took = finished(command, scratch)
        else:
            copied(OLD_BUNDLE, place)
        _require_mine(place)
        users = {one.name for one in place.iterdir()} - {*open_bundle(place).manifest.files}
        assert users == {"manifest.json", "notes.md", "logs"}
        require_nothing_left(folder, scratch, {"b"})
        how = "killed" if was_killed else "ended before"
        found[f"{how}, {state}, {'left a folder' if left else 'left nothing'}"] += 1
    shutil.rmtree(scratch)
    return found


def _require_mine(place: Path) -> None:
    """The user's files are under the bundle's name."""
    assert (place / "notes.md").read_text() == "mine"
    assert (place / "logs" / "log").read_text() == "mine, too"


def killed_exports(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`export`."""
    import crossfuse.api.export  # noqa: F401 -- before the forks

    place = folder / "b"
    command = ["export", *MODEL, "-o", str(place), "--target", "onnx"]
    return _written(times, folder, chance, command, place, 1)


def killed_builds(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`build`."""
    import crossfuse.api.export  # noqa: F401 -- before the forks

    place = folder / "b"
    command = ["build", str(place), "--target", "onnx"]
    return _written(times, folder, chance, command, place, 2)


def killed_packages(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`package`: each model is whole, and its user's file stays."""
    scratch, root = folder / "tmp", folder / "models"
    scratch.mkdir()
    command = ["package", str(OLD_BUNDLE), "-o", str(root), "--name", "m"]
    finished(command, scratch)
    took = finished(command, scratch)
    (root / "README.txt").write_text("mine")
    kept = {path.name for path in root.iterdir()}
    found: Outcomes = Counter()
    for turn in range(times):
        if turn % 2:
            shutil.rmtree(root / "m")  # the first time for a model, too
        was_killed = killed(command, chance.uniform(0, took), scratch)
        there = (root / "m").exists()
        if there:
            content(root / "m" / "1" / "bundle")
            assert (root / "m" / "config.pbtxt").read_text().startswith("# Written by crossfuse")
        left = {path.name for path in root.iterdir()} - kept
        finished(command, scratch)
        assert {path.name for path in root.iterdir()} == kept
        assert (root / "README.txt").read_text() == "mine"
        require_nothing_left(folder, scratch, {"models"})
        how = "killed" if was_killed else "ended before"
        found[f"{how}, {'left something' if left else 'left nothing'}"] += 1
    shutil.rmtree(scratch)
    return found


def _read(times: int, folder: Path, chance: Chance, command: list[str], place: Path) -> Outcomes:
    """Kill a command that changes nothing."""
    os.environ.update(CROSSFUSE_CACHE=str(folder / "cache"), CROSSFUSE_TRUST_BUNDLES="0")
    scratch = folder / "tmp"
    scratch.mkdir()
    shutil.copytree(OLD_BUNDLE, place)
    before = content(place)
    finished(command, scratch)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    took = finished(command, scratch)
    found: Outcomes = Counter()
    for _ in range(times):
        shutil.rmtree(folder / "cache", ignore_errors=True)  # or it is not tried again
        was_killed = killed(command, chance.uniform(0, took), scratch)
        assert content(place) == before
        require_nothing_left(folder, scratch, {path.name for path in folder.glob("[bc]*")})
        found["killed" if was_killed else "ended before"] += 1
    shutil.rmtree(scratch)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return found


def killed_verifies(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`verify` of a bundle that was not written here, which it tries in a child."""
    place = folder / "b"
    return _read(times, folder, chance, ["verify", str(place), "--json"], place)


def killed_profiles(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`profile`, which starts cold sessions in children."""
    place = folder / "b"
    quick = ["--rounds", "3", "--seconds", "0.01", "--cold-starts", "1", "--json"]
    command = ["profile", str(place), "--target", "ort-cpu", *quick]
    return _read(times, folder, chance, command, place)


CAMPAIGNS = (
    killed_exports, killed_builds, killed_packages, killed_verifies, killed_profiles,
)  # fmt: skip
