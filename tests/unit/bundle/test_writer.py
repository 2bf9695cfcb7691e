"""A bundle's folder takes its place whole; what killed commands left is removed, or returns."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.files import REPLACED, locked
from crossfuse.errors import InputError
from system_limits import at_most, descriptors_left, disk, mounted

MANIFEST_OF_ALL = Manifest.loads(
    (Path(__file__).parent / "manifests" / "every_field.json").read_text(encoding="utf-8"), "m"
)


def written(path: Path, content: str) -> Bundle:
    with write_bundle(path) as writer:
        writer.file("fused.onnx").write_text(content)
        return writer.commit(MANIFEST_OF_ALL)


def content(path: Path) -> str:
    bundle = open_bundle(path)
    (file,) = bundle.verified(["fused.onnx"])
    return file.read_text()


def test_a_bundle_replaces_another(tmp_path: Path) -> None:
    for text in ("first", "second"):
        written(tmp_path / "b", text)
        assert content(tmp_path / "b") == text
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
        assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["fused.onnx", MANIFEST]


def fails(path: Path) -> None:
    path.write_text("new")
    raise ValueError("broken off")


def test_an_exception_leaves_the_old_bundle(tmp_path: Path) -> None:
    written(tmp_path / "b", "old")
    with pytest.raises(ValueError, match="broken off"), write_bundle(tmp_path / "b") as writer:
        fails(writer.file("fused.onnx"))
    with (
        pytest.raises(InputError, match="can't be written: No space"),
        write_bundle(tmp_path / "b") as writer,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(writer.folder / "x"))
    with pytest.raises(OSError, match="elsewhere"), write_bundle(tmp_path / "b"):
        raise OSError(errno.ENOENT, "nothing there", "elsewhere")
    assert content(tmp_path / "b") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    with write_bundle(tmp_path / "b") as writer:
        for name in ("../x", "/x", ".x", "a/b", ""):
            with pytest.raises(InputError, match="outside the bundle"):
                writer.file(name)


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_locked_is_not_abandoned(tmp_path: Path, inside: bool) -> None:
    """By a lock beside the folder, or in it, as version 0.1.0 has it."""
    folder = tmp_path / ".b.partial-0123"
    folder.mkdir()
    lock = folder / ".lock" if inside else tmp_path / ".b.partial-0123.lock"
    with locked(lock):
        written(tmp_path / "b", "new")
        assert folder.is_dir()
    written(tmp_path / "b", "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_locks_and_folders_of_others_stay(tmp_path: Path) -> None:
    for name in (".c.partial-0123", ".b", "b.partial-0"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.partial-77.lock").touch()
    written(tmp_path / "b", "new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"b", ".c.partial-0123", ".b", "b.partial-0"}


def test_an_old_bundle_returns_where_its_successor_did_not_come(tmp_path: Path) -> None:
    """Killed between two renames, on systems where folders can't change places at once."""
    written(tmp_path / "b", "old")
    (tmp_path / "b").rename(tmp_path / f".b.partial-0123{REPLACED}")
    written(tmp_path / "elsewhere", "half")
    (tmp_path / "elsewhere").rename(tmp_path / ".b.partial-0123")
    with pytest.raises(KeyError), write_bundle(tmp_path / "b"):
        raise KeyError
    assert content(tmp_path / "b") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("limit", [0, 1000, 200_000])
def test_what_is_too_large_leaves_the_old_bundle(tmp_path: Path, limit: int) -> None:
    """The system refuses to write at any place of a file: as on a full disk."""
    written(tmp_path / "b", "old")
    with at_most(resource.RLIMIT_FSIZE, limit), pytest.raises(InputError) as error:
        written(tmp_path / "b", "new" * 100_000)
    text = str(error.value)
    assert "can't be written: File too large" in text
    assert "ulimit -f" in text
    assert len(text.splitlines()) == 1
    assert content(tmp_path / "b") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def refused(path: Path, text: str) -> str:
    """Why a bundle could not be written; "" where it was."""
    try:
        written(path, text)
    except InputError as error:
        return str(error)
    return ""


def test_without_descriptors_the_old_bundle_stays(tmp_path: Path) -> None:
    """Whichever file it is that can't be opened."""
    written(tmp_path / "b", "0")
    content(tmp_path / "b")
    refusals: list[str] = []
    for left in range(64):
        with descriptors_left(left):
            refusal = refused(tmp_path / "b", "new")
        assert content(tmp_path / "b") == ("0" if refusal else "new")
        if not refusal:
            break
        refusals.append(refusal)
    assert 0 < len(refusals) < 64
    assert all("Too many open files" in text and "ulimit -n" in text for text in refusals)
    written(tmp_path / "b", "last")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_full_and_read_only_disks(tmp_path: Path) -> None:
    try:
        with disk(tmp_path / "disk", 600) as place:
            written(place / "b", "old" * 50_000)
            with pytest.raises(InputError, match=r"No space left on device.*Make room"):
                written(place / "b", "new" * 200_000)
            mounted("remount,ro", place)
            for name in ("b", "c"):
                with pytest.raises(InputError, match="can't be (written|replaced)") as error:
                    written(place / name, "new")
                assert "may write to" in str(error.value) or "can be written" in str(error.value)
            assert content(place / "b") == "old" * 50_000
            assert [path.name for path in place.iterdir()] == ["b"]
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
