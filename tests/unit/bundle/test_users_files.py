"""The user's files are under the bundle's name at every moment, and what happens to them meanwhile
is what counts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from crossfuse.bundle import destination, users_files
from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.users_files import join, link_ahead, settle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.files import change_places

MANIFEST_OF_ALL = Manifest.loads(
    (Path(__file__).parent / "manifests" / "every_field.json").read_text(encoding="utf-8"), "m"
)


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


def written(path: Path, name: str = "fused.onnx") -> None:
    with write_bundle(path) as writer:
        writer.file(name).write_text(name)
        writer.commit(MANIFEST_OF_ALL)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def with_files(path: Path) -> dict[str, str]:
    """A bundle with files of every kind beside it; what they hold."""
    written(path)
    for place in (path / "logs" / "run 1" / "deep", path / "empty"):
        place.mkdir(parents=True)
    texts = {"notes.md": "mine", "logs/log": "a", "logs/run 1/deep/x": "b", "graph.onnx": "mine"}
    for name, text in texts.items():
        (path / name).write_text(text)
    (path / "link").symlink_to("/nowhere")
    (path / "logs" / "up").symlink_to("..")
    os.mkfifo(path / "pipe")
    os.mkfifo(path / "logs" / "pipe")
    (path / "logs").chmod(0o750)
    return texts


def require_whole(path: Path, kept: str) -> None:
    assert (path / "notes.md").read_text() == "mine"
    assert (path / "logs" / "log").read_text() == "a"
    assert (path / "logs" / "run 1" / "deep" / "x").read_text() == "b"
    assert (path / kept).read_text() == "mine"
    assert names(path / "empty") == []
    assert (path / "link").readlink() == Path("/nowhere")
    assert (path / "logs" / "up").readlink() == Path("..")
    for pipe in (path / "pipe", path / "logs" / "pipe"):
        assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert stat.S_IMODE((path / "logs").stat().st_mode) == 0o750


def killed_when(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, *, after: bool = False
) -> None:
    real: Callable[..., object] = getattr(module, name)

    def kill(*arguments: object) -> object:
        if after:
            real(*arguments)
        raise KilledError

    monkeypatch.setattr(module, name, kill)


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (destination, "link_ahead", True),
        (destination, "change_places", False),
        (destination, "change_places", True),
        (destination, "settle", False),
        (users_files, "exchange", False),
        (users_files, "exchange", True),
        (destination, "settle", True),
        (destination, "join", False),
    ],
)
@pytest.mark.parametrize("name_of_new", ["fused.onnx", "graph.onnx"])
def test_whenever_a_write_is_killed_the_files_are_there(
    tmp_path: Path,
    module: object,
    name: str,
    after: bool,
    name_of_new: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "b"
    with_files(path)
    killed_when(monkeypatch, module, name, after=after)
    for place in ("discard", "sweep_if_free"):  # a kill runs no clean-up
        monkeypatch.setattr(destination.Destination, place, lambda *_: None)
    if module is destination and name == "join":
        monkeypatch.undo()
        killed_when(monkeypatch, destination, "settle")
        with pytest.raises(KilledError):
            written(path, name_of_new)
    else:
        with pytest.raises(KilledError):
            written(path, name_of_new)
    monkeypatch.undo()
    is_new = (path / name_of_new).read_text() == name_of_new
    clashes = is_new and name_of_new == "graph.onnx"
    require_whole(path, "graph.onnx.kept" if clashes else "graph.onnx")
    written(path, name_of_new)
    require_whole(path, "graph.onnx.kept" if name_of_new == "graph.onnx" else "graph.onnx")
    assert names(tmp_path) == ["b"], "what the killed one left is gone"
    users = {"notes.md", "logs", "empty", "link", "pipe"}
    kept = "graph.onnx.kept" if name_of_new == "graph.onnx" else "graph.onnx"
    assert set(names(path)) == users | {kept, name_of_new, MANIFEST}
    assert (path / "notes.md").stat().st_nlink == 1


def exchanged(tmp_path: Path, meanwhile: Callable[[Path], object], new: str = "new.onnx") -> Path:
    """Replace a bundle, with something that its user does between the links and the exchange."""
    path, hidden = tmp_path / "b", tmp_path / ".b.partial-0123"
    written(tmp_path / "c", new)
    (tmp_path / "c").rename(hidden)
    ours = {"fused.onnx", MANIFEST}
    ahead = link_ahead(path, hidden, ours)
    meanwhile(path)
    assert change_places(hidden, path) == hidden
    settle(hidden, path, ours, ahead)
    assert set(names(hidden)) <= ours, "nothing of the user's is left"
    return path


def test_a_program_goes_on_to_write(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with_files(path)
    folder = os.open(path / "logs", os.O_RDONLY)
    with (path / "logs" / "log").open("a") as log, (path / "notes.md").open("a") as notes:

        def appends(_: Path) -> None:
            log.write("1")
            log.flush()

        exchanged(tmp_path, appends)
        log.write("2")
        notes.write("3")
        inside = os.open("later", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
        os.close(inside)
    os.close(folder)
    assert (path / "logs" / "log").read_text() == "a12"
    assert (path / "notes.md").read_text() == "mine3"
    assert (path / "logs" / "later").exists(), "the folder is the same one"


def test_what_is_changed_meanwhile_is_what_stays(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with_files(path)

    def works(at: Path) -> None:
        (at / "other").write_text("newer")
        (at / "other").replace(at / "notes.md")
        (at / "logs" / "log").rename(at / "logs" / "log.1")
        (at / "logs" / "log").write_text("next")
        (at / "came").write_text("new")

    exchanged(tmp_path, works)
    assert (path / "notes.md").read_text() == "newer"
    assert (path / "logs" / "log").read_text() == "next"
    assert (path / "logs" / "log.1").read_text() == "a"
    assert (path / "came").read_text() == "new"
    assert not any(name.endswith(".kept") for name in names(path))


def test_names_that_are_taken_are_given_once(tmp_path: Path) -> None:
    path = tmp_path / "b"
    written(path)
    (path / "x.onnx").write_text("1")
    (path / "x.onnx.kept").write_text("2")
    exchanged(tmp_path, lambda _: None, "x.onnx")
    texts = {name: (path / name).read_text() for name in names(path) if name != MANIFEST}
    assert texts == {"x.onnx": "x.onnx", "x.onnx.kept": "2", "x.onnx.kept1": "1"}
    assert open_bundle(path).verified(["x.onnx"])


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b"
    with_files(path)

    def refuses(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    monkeypatch.setattr(users_files, "settle", lambda *_: None)
    written(path, "graph.onnx")
    require_whole(path, "graph.onnx.kept")
    assert "notes.md.kept" not in names(path)


def test_what_can_be_neither_linked_nor_copied_moves_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b"
    with_files(path)

    def refuses(_: Path, place: Path, **__: object) -> None:
        if not os.path.lexists(place):
            place.write_text("ha")  # half of it
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(users_files.shutil, "copy2", refuses)
    monkeypatch.setattr(os, "link", lambda *_, **__: refuses(path, path))
    seen: list[list[str]] = []
    real = change_places

    def looks(folder: Path, place: Path) -> Path | None:
        seen.append(names(folder))
        return real(folder, place)

    monkeypatch.setattr(destination, "change_places", looks)
    written(path, "graph.onnx")
    assert "notes.md" not in seen[0], "no half of a file gets its name"
    require_whole(path, "graph.onnx.kept")
    assert not {"notes.md.kept", "logs.kept"} & set(names(path))


def test_nothing_is_overwritten_where_a_killed_one_is_joined(tmp_path: Path) -> None:
    (tmp_path / "left" / "d").mkdir(parents=True)
    (tmp_path / "there" / "d").mkdir(parents=True)
    (tmp_path / "left" / "d" / "same").write_text("s")
    (tmp_path / "there" / "d" / "same").write_text("s")
    (tmp_path / "left" / "d" / "other").write_text("old")
    (tmp_path / "there" / "d" / "other").write_text("new")
    (tmp_path / "left" / "d" / "mine").symlink_to("x")
    join(tmp_path / "left" / "d", tmp_path / "there")
    assert names(tmp_path / "left") == []
    found = tmp_path / "there" / "d"
    assert names(found) == ["mine", "other", "other.kept", "same"]
    assert ((found / "other").read_text(), (found / "other.kept").read_text()) == ("new", "old")
