"""Writers come one after the other, take what can be taken, and leave what isn't theirs."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from crossfuse.bundle import destination
from crossfuse.bundle.destination import Destination
from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.files import REPLACED, change_places, move_aside
from crossfuse.errors import InputError

MANIFEST_OF_ALL = Manifest.loads(
    (Path(__file__).parent / "manifests" / "every_field.json").read_text(encoding="utf-8"), "m"
)


def written(path: Path, content: str = "x", name: str = "fused.onnx") -> Bundle:
    with write_bundle(path) as writer:
        writer.file(name).write_text(content)
        return writer.commit(MANIFEST_OF_ALL)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_of_two_changes_at_once_none_is_lost(tmp_path: Path) -> None:
    """Each reads what is there, works, and writes that and its own, as `build` does."""
    path = tmp_path / "b"
    written(path)
    told: list[str] = []
    start = threading.Barrier(8)

    def adds(name: str) -> None:
        start.wait()
        with write_bundle(path, modify=True, waiting=told.append) as writer:
            old = open_bundle(path)
            writer.adopt(old, sorted(old.manifest.files))
            writer.file(name).write_text(name)
            writer.commit(replace(old.manifest, name=old.manifest.name + name))

    threads = [threading.Thread(target=adds, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bundle = open_bundle(path)
    assert set(bundle.manifest.files) == {"fused.onnx", *(f"t{i}" for i in range(8))}
    assert bundle.verified(bundle.manifest.files)
    assert all(f"t{i}" in bundle.manifest.name for i in range(8))
    assert names(tmp_path) == ["b"]
    assert told
    assert "waiting for another command" in told[0]


def test_writes_at_once_all_succeed_and_leave_one_bundle(tmp_path: Path) -> None:
    path = tmp_path / "b"
    failures: list[BaseException] = []

    def writes(number: int) -> None:
        try:
            for turn in range(4):
                written(path, f"{number} {turn}")
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=writes, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert open_bundle(path).verified(["fused.onnx"])
    assert names(tmp_path) == ["b"]


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    path = tmp_path / "b"
    written(path)
    (path / "notes.md").write_text("mine")
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").write_text("mine, too")
    (path / "graph.onnx").write_text("by a name that the new bundle needs")
    (path / "link").symlink_to("/nowhere")
    written(path, "new", "graph.onnx")
    assert (path / "notes.md").read_text() == "mine"
    assert (path / ".git" / "HEAD").read_text() == "mine, too"
    assert (path / "graph.onnx").read_text() == "new"
    assert (path / "graph.onnx.kept").read_text() == "by a name that the new bundle needs"
    assert (path / "link").is_symlink()
    assert not (path / "fused.onnx").exists(), "the old bundle's own"
    assert names(tmp_path) == ["b"]


def test_files_of_the_user_return_from_a_killed_replacement(tmp_path: Path) -> None:
    """Killed after the folders changed places, before the user's files moved."""
    path, hidden = tmp_path / "b", tmp_path / ".b.partial-0123"
    written(path, "old")
    (path / "notes.md").write_text("mine")
    written(tmp_path / "c", "new")
    (tmp_path / "c").rename(hidden)
    assert change_places(hidden, path) == hidden
    assert names(path) == ["fused.onnx", MANIFEST]
    with write_bundle(path):
        pass
    assert (path / "notes.md").read_text() == "mine"
    assert names(tmp_path) == ["b"]


def test_nothing_is_removed_where_it_cant_be_told_whose_it_is(tmp_path: Path) -> None:
    written(tmp_path / "b")
    hidden = tmp_path / ".b.partial-0123"
    hidden.mkdir()
    (hidden / MANIFEST).write_text("{}")
    (hidden / "notes.md").write_text("mine")
    written(tmp_path / "b")
    assert (hidden / "notes.md").read_text() == "mine"


def test_a_clean_up_that_fails_is_no_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "b", "old")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "b" / "notes.md").write_text("mine")
    for step in ("link_ahead", "settle", "join"):
        monkeypatch.setattr(destination, step, fails)
    written(tmp_path / "b", "new")
    assert (tmp_path / "b" / "fused.onnx").read_text() == "new"
    monkeypatch.undo()
    written(tmp_path / "b", "newer")
    assert (tmp_path / "b" / "notes.md").read_text() == "mine"
    assert names(tmp_path) == ["b"]


def test_mount_points_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my out"
    written(out / "b")
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(destination, "_MOUNTS", mounts)
    escaped = str(out.resolve()).replace(" ", "\\040")
    mounts.write_text(f"36 35 254:0 /vol {escaped} rw - ext4 /dev/vda rw\n")
    with (
        pytest.raises(InputError, match=r"is a mount point.*such as .*my out/bundle"),
        write_bundle(out),
    ):
        pass
    with pytest.raises(InputError, match="something is mounted in"):
        Destination.at(tmp_path / "my out" / "..").require_replaceable()
    written(out / "b")


def test_real_mount_points_are_refused() -> None:
    with pytest.raises(InputError, match="is a mount point"):
        Destination.at("/proc").require_replaceable()


@pytest.mark.parametrize("name", ["b[0-9]", "**", "b*", "[!a]"])
def test_names_are_no_patterns(tmp_path: Path, name: str) -> None:
    other = tmp_path / ".b7.partial-0123"
    other.mkdir()
    left = tmp_path / f".{name}.partial-0123"
    left.mkdir()
    written(tmp_path / name)
    assert names(tmp_path) == sorted([name, other.name])


def test_lock_files_that_are_pipes_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".b.partial-0123.lock")
    written(tmp_path / "b")
    os.mkfifo(tmp_path / ".b.crossfuse-lock")
    with pytest.raises(InputError, match="lock file is not a plain file"):
        written(tmp_path / "b")


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "letter").write_text("dear")
        with pytest.raises(InputError, match="something that is not a bundle"):
            writer.commit(MANIFEST_OF_ALL)
    assert (tmp_path / "b" / "letter").read_text() == "dear"
    assert names(tmp_path) == ["b"]


def test_an_old_folder_keeps_its_own_names_when_moved(tmp_path: Path) -> None:
    for folder in ("from", "to"):
        (tmp_path / folder).mkdir()
    (tmp_path / "to" / "a").write_text("there")
    (tmp_path / "to" / "a.kept").symlink_to("nowhere")
    (tmp_path / "from" / "a").write_text("here")
    assert move_aside(tmp_path / "from" / "a", tmp_path / "to").name == "a.kept1"
    assert (tmp_path / "to" / "a").read_text() == "there"
    assert REPLACED not in "".join(names(tmp_path))
