"""Reading a bundle without trusting it: names stay inside the folder, sizes and hashes are checked
before any parser runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crossfuse.bundle.manifest import FILE_NAME, MANIFEST, FileEntry, Manifest, TargetEntry
from crossfuse.core.files import REPLACED, open_plain, read_at_most, sha256_of
from crossfuse.core.foreign import door
from crossfuse.core.ledger import Ledger
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.errors import Advice, BundleError, Said, unknown

__all__ = ["Bundle", "check_name", "entry_of", "identity_of", "open_bundle"]

_EXPORT = Said("`crossfuse export SOURCE -o FOLDER`", "crossfuse.export(SOURCE, FOLDER)")
_LARGEST_MANIFEST = 256 << 20


_CHANGING_SECONDS = 2.0
"""How long a bundle may be in change before it is taken for none."""

_State = tuple[int, int, int, int]
"""What changes when a file does: inode, size, times of the last write and of the last change."""


class _ReplacedError(BundleError):
    """Another bundle came to the place of one that was being read."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and manifest. Files are verified when asked for, and again only
    where they changed since.

    Files may be links, as folders of hubs and caches have them: what counts is the content, whose
    hash the manifest has. Engines are given plain files (`bundle/staging.py`).
    """

    path: Path
    manifest: Manifest
    identity: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    """Of the folder and the manifest's file, when that was read."""
    _checked: dict[str, _State] = field(default_factory=dict, init=False, repr=False, compare=False)
    """File whose hash was right → the state that it was in."""

    @property
    def ledger(self) -> Ledger:
        """One row per attention of the model."""
        return self.manifest.ledger

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets that were built."""
        return tuple(self.manifest.targets)

    def target(self, name: str) -> TargetEntry:
        """A target's entry.

        Raises:
            BundleError: the bundle doesn't hold it.
        """
        if name not in self.manifest.targets:
            command = f"`crossfuse build {self.path} --target {name}`"
            raise unknown(
                "the bundle has no such target",
                name,
                self.targets,
                where=self.path,
                do=Advice(
                    "Build it with {}",
                    Said(command, f"crossfuse.build({str(self.path)!r}, {name!r})"),
                ),
                kind=BundleError,
            )
        return self.manifest.targets[name]

    @property
    def replaced(self) -> bool:
        """Another bundle has the place now, or none."""
        return self.identity is not None and identity_of(self.path) != self.identity

    def require_unreplaced(self) -> None:
        """Raise :class:`BundleError` where another bundle has come to this place since this one was
        opened: what was read of its files may be the other's."""
        if self.replaced:
            raise _ReplacedError(
                "the bundle was replaced while it was read", where=self.path, do="Open it again"
            )

    @property
    def linked(self) -> bool:
        """Files of it are links."""
        return any((self.path / name).is_symlink() for name in self.manifest.files)

    def verified(self, names: Iterable[str]) -> list[Path]:
        """Paths of files whose size and SHA-256 are those of the manifest.

        Raises:
            BundleError: a file that is missing, not a plain file, truncated or changed.
        """
        return [self._verified(name) for name in names]

    def copied_to(self, folder: Path, names: Iterable[str]) -> Bundle:
        """The same bundle in another folder, where copies or links of verified files are: those are
        not hashed again."""
        bundle = Bundle(folder, self.manifest)
        bundle._checked.update({name: _state_of((folder / name).stat()) for name in names})
        return bundle

    def _verified(self, name: str) -> Path:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(
                "the manifest doesn't list a file that it uses", where=self.path, got=repr(name)
            )
        path = self.path / check_name(name, self.path)
        if not path.is_file():
            raise BundleError(
                "a file of the bundle is missing",
                where=path,
                do="Copy the whole folder, or export again",
            )
        try:
            about = path.stat()
            size, digest = about.st_size, None
            if self._checked.get(name) == _state_of(about):
                return path
            if size == entry.size:
                digest = sha256_of(path)
        except OSError as error:
            raise BundleError(
                f"a file of the bundle can't be read: {reason_of(error)}",
                where=path,
                do=help_for(error),
            ) from error
        if digest is None:
            raise BundleError(
                "a file of the bundle has the wrong size",
                where=path,
                got=f"{size} bytes",
                expected=f"{entry.size} bytes",
                do="It was truncated or changed: copy it again, or export again",
            )
        if digest != entry.sha256:
            raise BundleError(
                "a file of the bundle was changed",
                where=path,
                got=f"SHA-256 {digest[:12]}…",
                expected=f"{entry.sha256[:12]}…",
                do="Copy it again, or export again",
            )
        self._checked[name] = _state_of(about)
        return path


@door
def open_bundle(path: str | Path | Bundle) -> Bundle:
    """Read and check a bundle's manifest; a bundle that is open already is given back.

    Raises:
        BundleError: no bundle there, or a manifest that is invalid, unsafe or newer than this
            version.
    """
    if isinstance(path, Bundle):
        return path
    folder = Path(path)
    until = time.monotonic() + _CHANGING_SECONDS
    while True:
        try:
            bundle = _read(folder)
            bundle.require_unreplaced()
        except _ReplacedError:
            if time.monotonic() > until:
                raise
        except BundleError:
            if time.monotonic() > until or not _is_changing(folder):
                raise
        else:
            return bundle
        time.sleep(0.005)


def _read(folder: Path) -> Bundle:
    identity, file = identity_of(folder), folder / MANIFEST
    if identity is None:
        raise BundleError(
            "there is no bundle",
            where=folder,
            do=Advice("A bundle is a folder with a {}; {} writes one", MANIFEST, _EXPORT),
        )
    try:
        with open_plain(file) as opened:
            data = read_at_most(opened, _LARGEST_MANIFEST + 1)
        if len(data) > _LARGEST_MANIFEST:
            raise BundleError("the manifest is too large to be one", where=file)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise BundleError(
            f"the manifest can't be read: {reason}", where=file, do=help_for(error)
        ) from error
    return Bundle(folder, Manifest.loads(text, str(file)), identity)


def _is_changing(folder: Path) -> bool:
    """Its place is empty between two renames, where a file system can't exchange folders."""
    start = f".{folder.name}."
    with suppress(OSError):
        return not folder.exists() and any(
            path.name.startswith(start) and path.name.endswith(REPLACED)
            for path in folder.absolute().parent.iterdir()
        )
    return False


def identity_of(folder: Path) -> tuple[int, ...] | None:
    """What tells a bundle's folder from another one of its name; None where there is no bundle.

    Not the manifest's last change: one more hard link to it is one, and `staged` makes those.
    """
    with suppress(OSError):
        about, file = folder.stat(), folder / MANIFEST
        if file.is_file():
            return (about.st_dev, about.st_ino, *_state_of(file.stat())[:-1])
    return None


def check_name(name: str, where: object) -> str:
    """A plain file name; anything that could lead out of the folder is refused.

    Raises:
        BundleError: an absolute path, a separator, ``..`` or a hidden name.
    """
    if not FILE_NAME.accepts(name):
        raise BundleError(
            "the manifest names a path outside the bundle or one that is not a plain file name",
            where=where,
            got=repr(name),
            expected=FILE_NAME.expected,
            do=FILE_NAME.do,
        )
    return name


def _state_of(about: os.stat_result) -> _State:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def entry_of(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(path.stat().st_size, sha256_of(path))
