"""Files that commands write beside bundles: checked before the work, written whole or not at
all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from crossfuse.errors import InputError

__all__ = ["require_writable", "write_text"]


def require_writable(path: Path) -> None:
    """Raise :class:`InputError` where a file can't be written, before hours of work find out."""
    if path.is_dir():
        raise InputError("the output is a folder", where=path, expected="a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError("the output's folder doesn't exist", where=folder, do="Make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(
            "the output's folder can't be written",
            where=folder,
            do="Choose a folder that you may write to",
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text.

    Raises:
        InputError: the file can't be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(
            f"the output file can't be written: {error.strerror or error}", where=path
        ) from error
