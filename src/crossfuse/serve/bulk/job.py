"""A job's folder: what it is a job of, which shards are done, what failed.

Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossfuse.bundle.manifest import MANIFEST
from crossfuse.core.files import sha256_of, write_whole
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.errors import InputError
from crossfuse.serve.bulk.rows import Shard

__all__ = ["FAILED", "Job", "open_job"]

FAILED = "failed.jsonl"
_JOB = "job.json"
_SHARDS = ".shards"


class Job:
    """The folder of a job's answers, and of marks of finished shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, shard: Shard) -> bool:
        """Whether the shard's answers are all there."""
        return self._mark(shard.index).is_file()

    def finish(self, shard: Shard, failed: Mapping[str, str]) -> None:
        """Mark a shard whose answers were written; ``failed`` has reasons by row."""
        write_whole(
            self._mark(shard.index), json.dumps({"rows": shard.rows, "failed": dict(failed)})
        )

    def result(self, shard: Shard) -> dict[str, Any]:
        """What was marked: ``rows``, and ``failed`` with reasons by row.

        Raises:
            InputError: a mark that no job wrote.
        """
        mark = self._mark(shard.index)
        try:
            data: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
            dict(data["failed"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                "a shard's mark can't be read",
                where=mark,
                do="Remove it: the shard is then done again",
            ) from error
        return data

    def collect_failures(self, shards: Sequence[Shard]) -> int:
        """Write all failed rows with their reasons to one file; none, no file."""
        lines = [
            json.dumps({"row": row, "reason": reason})
            for shard in shards
            for row, reason in dict(self.result(shard)["failed"]).items()
        ]
        if lines:
            write_whole(self.folder / FAILED, "\n".join(lines) + "\n")
        else:
            (self.folder / FAILED).unlink(missing_ok=True)
        return len(lines)

    def _mark(self, index: int) -> Path:
        return self.folder / _SHARDS / f"{index:06d}.json"


def open_job(
    folder: Path,
    bundle: Path,
    target: str,
    shards: Sequence[Shard],
    generation: Mapping[str, Any] | None = None,
) -> Job:
    """Begin a job, or go on with it where the folder holds the same.

    Args:
        folder: of the answers.
        bundle: that answers.
        target: of it.
        shards: of the input.
        generation: settings of a job that generates.

    Raises:
        InputError: the folder holds another job, or anything else.
    """
    about: dict[str, Any] = {
        "bundle": hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest(),
        "target": target,
        "input": _digest(shards),
        "shards": len(shards),
    }
    if generation is not None:
        about["generation"] = dict(generation)
    known = folder / _JOB
    if known.is_file():
        try:
            was = json.loads(known.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                "the job's description can't be read", where=known, do="Choose another output"
            ) from error
        names = dict.fromkeys((*about, *(was if isinstance(was, dict) else ())))
        changed = [
            name for name in names if not isinstance(was, dict) or was.get(name) != about.get(name)
        ]
        if changed:
            raise InputError(
                "the output holds another job",
                where=folder,
                got=f"another {', another '.join(changed)}",
                do="Choose another output, or remove this one",
            )
    elif folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise InputError(
            "the output exists and holds no job", where=folder, do="Choose another output"
        )
    try:
        (folder / _SHARDS).mkdir(parents=True, exist_ok=True)
        write_whole(known, json.dumps(about, indent=1))
    except OSError as error:
        raise InputError(
            f"the output can't be written: {reason_of(error)}",
            where=folder,
            do=help_for(error, writing=True),
        ) from error
    return Job(folder)


def _is_foreign(path: Path) -> bool:
    """Not what a job that was killed before it was described leaves."""
    if path.name == _SHARDS:
        return not path.is_dir() or any(path.iterdir())
    return not path.name.startswith(f".{_JOB}.")


def _digest(shards: Sequence[Shard]) -> str:
    """Of the names, contents and cuts of the input. A file that can't be read has none; its rows
    fail when they are read."""
    digest = hashlib.sha256()
    contents: dict[str, str] = {}
    for shard in shards:
        for file in shard.files:
            if file not in contents:
                try:
                    contents[file] = sha256_of(Path(file))
                except OSError:
                    contents[file] = ""
        about = [(Path(file).name, contents[file]) for file in shard.files]
        digest.update(json.dumps([about, shard.group, shard.start, shard.stop]).encode())
    return digest.hexdigest()
