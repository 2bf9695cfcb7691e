"""Hidden neighbours: one for each writer, those of killed ones removed, those of others left."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crossfuse.core.files import whole_file, write_whole
from crossfuse.core.partials import held_partial

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such locks on Windows")


def left_by_a_kill(file: Path, beside: int = 0) -> None:
    """A child that is killed while it writes, itself and so many more."""
    process = os.fork()
    if not process:
        held = [held_partial(file) for _ in range(beside + 1)]
        for one in held:
            one.__enter__().write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.mark.parametrize("beside", [0, 2])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, beside: int) -> None:
    file = tmp_path / "file.npz"
    left_by_a_kill(file, beside)
    assert len(list(tmp_path.iterdir())) == beside + 1
    write_whole(file, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file.npz"]
    assert file.read_bytes() == b"whole"


def test_what_a_living_writer_has_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with whole_file(file) as first:
        first.write_bytes(b"first")
        with whole_file(file) as second:
            assert second != first
            second.write_bytes(b"second")
        assert file.read_bytes() == b"second"
        assert first.read_bytes() == b"first"
    assert file.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_many_writers_of_one_file_each_write_their_own(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def writes(number: int) -> None:
        for _ in range(40):
            with whole_file(file) as partial:
                partial.write_bytes(bytes([number]) * 1000)
            assert len(set(file.read_bytes())) == 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(writes, range(6)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_neighbour_is_neither_written_nor_removed(tmp_path: Path, kind: str) -> None:
    other, place = tmp_path / "other", tmp_path / ".file.crossfuse-partial"
    other.write_text("mine")
    if kind == "link":
        place.symlink_to(other)
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    write_whole(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert other.read_text() == "mine"
    assert os.path.lexists(place)
