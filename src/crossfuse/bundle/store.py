"""Reading a bundle without trusting it: names stay inside the folder, sizes and hashes are checked
before any parser runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from crossfuse.bundle.manifest import FILE_NAME, MANIFEST, FileEntry, Manifest, TargetEntry
from crossfuse.core.files import sha256_of
from crossfuse.core.foreign import door
from crossfuse.core.ledger import Ledger
from crossfuse.errors import Advice, BundleError, Said, unknown

__all__ = ["Bundle", "check_name", "entry_of", "open_bundle"]

_EXPORT = Said("`crossfuse export SOURCE -o FOLDER`", "crossfuse.export(SOURCE, FOLDER)")
_LARGEST_MANIFEST = 256 << 20


_State = tuple[int, int, int, int]
"""What changes when a file does: inode, size, times of the last write and of the last change."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and manifest. Files are verified when asked for, and again only
    where they changed since."""

    path: Path
    manifest: Manifest
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
        if path.is_symlink() or not path.is_file():
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
                f"a file of the bundle can't be read: {error.strerror or error}", where=path
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
    file = folder / MANIFEST
    if not folder.is_dir() or file.is_symlink() or not file.is_file():
        raise BundleError(
            "there is no bundle",
            where=folder,
            do=Advice("A bundle is a folder with a {}; {} writes one", MANIFEST, _EXPORT),
        )
    try:
        if file.stat().st_size > _LARGEST_MANIFEST:
            raise BundleError("the manifest is too large to be one", where=file)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"the manifest can't be read: {error}", where=file) from error
    return Bundle(folder, Manifest.loads(text, str(file)))


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
