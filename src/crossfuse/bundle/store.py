"""Reading a bundle without trusting it: names stay inside the folder, sizes and hashes are checked
before any parser runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crossfuse.bundle.manifest import MANIFEST, FileEntry, Manifest, TargetEntry
from crossfuse.core.foreign import door
from crossfuse.core.ledger import Ledger
from crossfuse.errors import Advice, BundleError, Said, unknown

__all__ = ["Bundle", "check_name", "entry_of", "open_bundle", "sha256_of"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")
_EXPORT = Said("`crossfuse export SOURCE -o FOLDER`", "crossfuse.export(SOURCE, FOLDER)")
_LARGEST_MANIFEST = 256 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and manifest. Files are verified when asked for."""

    path: Path
    manifest: Manifest

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
            size, digest = path.stat().st_size, None
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
        return path


@door
def open_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: no bundle there, or a manifest that is invalid, unsafe or newer than this
            version.
    """
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
    manifest = Manifest.loads(text, str(file))
    used = [manifest.fused_graph, *manifest.files]
    used += [] if manifest.reference is None else [manifest.reference]
    for target in manifest.targets.values():
        used += [*target.files, *target.stages.values()]
    for name in used:
        check_name(name, file)
    return Bundle(folder, manifest)


def check_name(name: str, where: object) -> str:
    """A plain file name; anything that could lead out of the folder is refused.

    Raises:
        BundleError: an absolute path, a separator, ``..`` or a hidden name.
    """
    if not _NAME.match(name):
        raise BundleError(
            "the manifest names a path outside the bundle or one that is not a plain file name",
            where=where,
            got=repr(name),
            expected="a file name without separators",
            do="Don't use this bundle: it was not written by crossfuse",
        )
    return name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_of(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(path.stat().st_size, sha256_of(path))
