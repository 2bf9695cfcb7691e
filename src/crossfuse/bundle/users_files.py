"""What in a bundle's folder isn't the bundle's, and goes with it from one folder to the next.

Before two folders change places, the new one gets one more name for each of the user's files, so
that there is no moment in which the bundle's name leads to a folder without them: a program that
goes on to write to an open file writes to the same one. When they have changed places, what is in
the old one has the last word: a folder itself returns, and a file that took another's place
meanwhile. What a killed command left is joined to what is there, and nothing of it is overwritten.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crossfuse.core.files import exchange, move_aside, names_for, sync_folder

__all__ = ["Ahead", "join", "link_ahead", "settle"]


@dataclass(frozen=True)
class Ahead:
    """One of the user's files, or a folder of them, as it lies in the new folder.

    Attributes:
        name: there.
        identity: of what was made there: device and inode.
    """

    name: str
    identity: tuple[int, int]


def link_ahead(old: Path, new: Path, ours: Collection[str]) -> Mapping[str, Ahead]:
    """Give the user's files in a folder one more name in the one that will take its place.

    Where a name is taken there, the file gets ``.kept`` behind its own. What can be neither linked
    nor copied is left out, and moves later.

    Args:
        old: the folder of the bundle now.
        new: the folder that will take its place.
        ours: names of the bundle's own in the old one.
    """
    made: dict[str, Ahead] = {}
    users = [path for path in old.iterdir() if path.name not in ours]
    for path in sorted(users, key=lambda one: os.path.lexists(new / one.name)):
        place = next((one for one in names_for(path, new) if not os.path.lexists(one)), None)
        if place is None:
            continue
        with suppress(OSError):
            _link(path, place)
        with suppress(OSError):
            made[path.name] = Ahead(place.name, _identity(place))
    if made:
        sync_folder(new)
    return made


def _link(path: Path, place: Path) -> None:
    """One more name, or a copy where there is none to give; folders are made anew, with links."""
    folders = [(path, place)]
    if not _is_folder(path):
        _link_one(path, place)
        return
    while folders:
        source, made = folders.pop()
        made.mkdir()
        for entry in source.iterdir():
            if _is_folder(entry):
                folders.append((entry, made / entry.name))
            else:
                with suppress(OSError):
                    _link_one(entry, made / entry.name)
        with suppress(OSError):
            shutil.copystat(source, made)
        sync_folder(made)


def _link_one(path: Path, place: Path) -> None:
    try:
        os.link(path, place, follow_symlinks=False)
    except (OSError, NotImplementedError):
        if not (path.is_symlink() or path.is_file()):
            raise
        try:
            shutil.copy2(path, place, follow_symlinks=False)
        except OSError:
            place.unlink(missing_ok=True)  # half of it
            raise


def settle(old: Path, folder: Path, ours: Collection[str], ahead: Mapping[str, Ahead]) -> None:
    """Empty the old folder of what is the user's, when the new one has its place.

    Args:
        old: the folder that had the place.
        folder: the one that has it now.
        ours: names of the bundle's own in the old one.
        ahead: what `link_ahead` made.

    Raises:
        OSError: something can't be moved.
    """
    for path in list(old.iterdir()):
        if path.name in ours:
            continue
        place = ahead.get(path.name)
        if place is not None and _still(folder / place.name, place.identity):
            _give_back(path, folder / place.name)
        if os.path.lexists(path):
            join(path, folder)


def _give_back(path: Path, place: Path) -> None:
    """Put what the user has in the place of what was made for it."""
    if _is_folder(path):
        exchange(path, place)
    elif not _is_same_file(path, place):
        path.replace(place)


def join(path: Path, folder: Path) -> None:
    """Move something of the user's to a folder, unless it is there already, under its name, as kept
    or without that; folders of one name become one. Nothing is overwritten.

    Raises:
        OSError: it can't be moved.
    """
    taken = list(itertools.takewhile(os.path.lexists, names_for(path, folder)))
    if any(_is_in(path, there) for there in (*taken, *_kept_of(path, folder))):
        if _is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink()
    elif taken and _is_folder(path) and _is_folder(taken[0]):
        for entry in list(path.iterdir()):
            join(entry, taken[0])
        path.rmdir()
    else:
        move_aside(path, folder)


def _kept_of(path: Path, folder: Path) -> list[Path]:
    """What something with ``.kept`` behind its name may be one more name of."""
    name = re.sub(r"\.kept\d*$", "", path.name)
    return [folder / name] if name != path.name and os.path.lexists(folder / name) else []


def _is_in(path: Path, other: Path) -> bool:
    """All of a file or folder is in the other one, too."""
    if _is_folder(path):
        return _is_folder(other) and all(
            os.path.lexists(other / entry.name) and _is_in(entry, other / entry.name)
            for entry in path.iterdir()
        )
    return _is_alike(path, other)


def _is_alike(path: Path, other: Path) -> bool:
    """The same file, or one of the same content."""
    if _is_same_file(path, other):
        return True
    if path.is_symlink() and other.is_symlink():
        return path.readlink() == other.readlink()
    both_plain = stat.S_ISREG(path.lstat().st_mode) and stat.S_ISREG(other.lstat().st_mode)
    return both_plain and filecmp.cmp(path, other, shallow=False)


def _is_same_file(path: Path, other: Path) -> bool:
    return _identity(path) == _identity(other)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _still(path: Path, identity: tuple[int, int]) -> bool:
    with suppress(OSError):
        return _identity(path) == identity
    return False


def _identity(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_dev, about.st_ino
