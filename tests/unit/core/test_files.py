"""Files appear whole or not at all; locks end with their processes; what a system lacks is told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from crossfuse.core import files
from crossfuse.core.files import (
    REPLACED,
    locked,
    put_in_place,
    read_at_most,
    require_writable,
    sha256_of,
    try_lock,
    user_cache,
    whole_file,
    write_text,
    write_whole,
)
from crossfuse.errors import InputError, PackageError


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def fails(path: Path) -> None:
    path.write_text("broken")
    raise ValueError("half of it")


def test_what_is_read_takes_no_more_memory_than_there_is(tmp_path: Path) -> None:
    data = os.urandom((3 << 20) + 5)
    (tmp_path / "f").write_bytes(data)
    for count in (0, 1, 1 << 20, len(data), len(data) + 1):
        with (tmp_path / "f").open("rb") as file:
            assert read_at_most(file, count) == data[:count]
    tracemalloc.start()
    with (tmp_path / "f").open("rb") as file:
        assert read_at_most(file, 1 << 40) == data
    assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    tracemalloc.stop()


def test_a_file_is_the_old_one_until_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with whole_file(file) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(ValueError, match="half"), whole_file(file) as partial:
        fails(partial)
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_and_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "größe\n")
    write_whole(tmp_path / "b", b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == "größe\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n"
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "none" / "a", "x")


def test_outputs_that_cant_be_written(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "a", "folder doesn't exist"),
    ):
        with pytest.raises(InputError, match=message):
            require_writable(path)
    require_writable(tmp_path / "a")
    with pytest.raises(InputError, match="can't be written"):
        write_text(tmp_path / "none" / "a", "x")
    write_text(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


@pytest.mark.parametrize("platform", [sys.platform, "win32"])
def test_folders_change_places(
    tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    place = tmp_path / "place"
    put_in_place(folder(tmp_path / "first", "1"), place)
    assert (place / "content").read_text() == "1"
    put_in_place(folder(tmp_path / "second", "2"), place)
    assert (place / "content").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_the_old_folder_returns_where_the_new_one_cant_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a file of the new folder is held open by a scanner."""
    place, new = folder(tmp_path / "place", "old"), folder(tmp_path / "new", "new")
    rename = Path.rename

    def refuses(self: Path, target: Path) -> Path:
        if self == new:
            raise PermissionError(13, "in use", str(self))
        return rename(self, target)

    monkeypatch.setattr(files, "_rename", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(PermissionError):
        put_in_place(new, place)
    assert (place / "content").read_text() == "old"
    assert not (tmp_path / f"new{REPLACED}").exists()


HOLD = """
import sys
from pathlib import Path
from crossfuse.core.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with try_lock(lock) as free:
            assert not free
        process.kill()
    with try_lock(lock) as free:
        assert free
        with try_lock(lock) as again:
            assert not again, "one at a time in one process, too"
    with locked(lock):
        pass


def test_locks_need_a_package_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    for lock in (locked, try_lock):
        with pytest.raises(PackageError, match=r"filelock.*crossfuse\[cli\]"), lock(tmp_path / "a"):
            pass


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CROSSFUSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    import platformdirs

    assert user_cache() == platformdirs.user_cache_path("crossfuse", appauthor=False)
    if sys.platform == "linux":
        assert user_cache() == tmp_path / ".cache" / "crossfuse"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert user_cache() == tmp_path / "local" / "crossfuse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "crossfuse"
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "mine"))
    assert user_cache() == tmp_path / "mine"


def test_the_cache_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of NumPy and one engine."""
    for name in ("CROSSFUSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert user_cache() == Path.home() / ".cache" / "crossfuse"


POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios", "syslog")

WITHOUT = """
import builtins, importlib, pkgutil, sys
for name in {absent!r}:
    sys.modules[name] = None
import crossfuse
light = []
for found in pkgutil.walk_packages(crossfuse.__path__, "crossfuse."):
    if found.name.split(".")[1] in {rooms!r} and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
        light.append(found.name)
print(len(light))
"""


def test_what_runs_everywhere_imports_no_posix_module() -> None:
    """What other packages import is theirs; ours are `core`, `bundle`, `runtime` and `commands`."""
    code = WITHOUT.format(absent=POSIX_ONLY, rooms=("core", "bundle", "runtime", "commands"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_no_module_of_ours_names_a_posix_module_at_its_top() -> None:
    import ast

    import crossfuse

    names = set(POSIX_ONLY) | {"pty", "tty", "posix", "crypt", "curses", "readline"}
    for path in Path(crossfuse.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            used: list[Any] = []
            if isinstance(node, ast.Import):
                used = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                used = [node.module]
            assert not names & set(used), path


def test_bundles_are_written_without_fcntl(tmp_path: Path) -> None:
    """As on Windows: other locks, other ways to change places."""
    code = """
import sys
sys.modules["fcntl"] = None
import warnings, filelock; warnings.simplefilter("ignore")
from pathlib import Path
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.writer import write_bundle
sys.platform = "win32" if sys.platform == "linux" else sys.platform
text = Path(sys.argv[1]).read_text(encoding="utf-8")
for _ in range(2):
    with write_bundle(sys.argv[2]) as writer:
        for name in ("fused.onnx", "reference.npz"):
            writer.file(name).write_bytes(b"x")
        writer.commit(Manifest.loads(text, "given"))
sys.platform = "linux"
bundle = open_bundle(sys.argv[2])
left = sorted(path.name for path in Path(sys.argv[2]).parent.iterdir())
print(len(bundle.verified(bundle.manifest.files)), left)
"""
    given = Path(__file__).parents[1] / "bundle" / "manifests" / "every_field.json"
    command = [sys.executable, "-c", code, str(given), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 ['b']\n"
