"""What a bulk job generates from, a row each: files of sounds or images, lines of JSON, rows of
Parquet with texts and files, or NPZ files with a context's inputs and a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crossfuse.core.foreign import cause_of
from crossfuse.core.npz import load_arrays
from crossfuse.errors import InputError
from crossfuse.serve.bulk.rows import Shard, list_shards

__all__ = ["Question", "list_questions", "read_questions"]

_SOUNDS = (".wav", ".npy")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LINES = ".jsonl"
_WORDS = ("text", "image", "audio")


@dataclass(frozen=True)
class Question:
    """A row.

    Attributes:
        name: of the row.
        text, image, audio: in words, and files.
        arrays: inputs of a context by name, and perhaps the prompt's ids, in place of these.
    """

    name: str
    text: str | None = None
    image: Path | None = None
    audio: Path | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def list_questions(source: Path, rows: int) -> list[Shard]:
    """All rows of a folder or file, in shards of at most ``rows``, always in the same order.

    Raises:
        InputError: no such place, or files of several kinds, or of none of these.
    """
    files = [source] if source.is_file() else _files_of(source)
    kinds = {_kind(path) for path in files}
    if kinds <= {"NPZ"} or kinds <= {"Parquet"}:
        return list_shards(source, rows)
    if len(kinds) > 1 or None in kinds:
        raise InputError(
            "the input must be of one kind",
            where=source,
            got=", ".join(sorted({path.suffix or path.name for path in files})),
            expected="sounds, images, JSON lines, Parquet or NPZ files",
        )
    if kinds == {"JSON lines"}:
        return list(_of_lines(files, rows))
    chunks = [files[i : i + rows] for i in range(0, len(files), rows)]
    return [Shard(i, tuple(map(str, chunk))) for i, chunk in enumerate(chunks)]


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError("the input doesn't exist", where=folder)
    return sorted(path for path in folder.iterdir() if path.is_file() and _kind(path) is not None)


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    kinds = {".npz": "NPZ", ".parquet": "Parquet", _LINES: "JSON lines"}
    kinds |= dict.fromkeys(_SOUNDS, "sounds") | dict.fromkeys(_IMAGES, "images")
    return kinds.get(suffix)


def _of_lines(files: list[Path], rows: int) -> Iterator[Shard]:
    count = 0
    for path in files:
        try:
            with path.open("rb") as lines:
                total = sum(1 for _ in lines)
        except OSError as error:
            raise InputError(f"the lines can't be read: {error}", where=path) from error
        for start in range(0, total, rows):
            yield Shard(count, (str(path),), 0, start, min(start + rows, total))
            count += 1


def read_questions(shard: Shard) -> Iterator[tuple[str, Question | InputError]]:
    """The rows of a shard with their names, one at a time; or what is wrong with one."""
    first = Path(shard.files[0])
    if shard.group >= 0:
        lines = _lines(first, shard) if first.suffix.lower() == _LINES else _columns(first, shard)
        for i, given in enumerate(lines):
            name = f"{first.name}:{shard.first + shard.start + i}"
            yield name, given if isinstance(given, InputError) else _worded(name, given, first)
        return
    for path in map(Path, shard.files):
        yield path.name, _of_file(path)


def _of_file(path: Path) -> Question | InputError:
    suffix = path.suffix.lower()
    if suffix in _SOUNDS:
        return Question(path.name, audio=path)
    if suffix in _IMAGES:
        return Question(path.name, image=path)
    try:
        return Question(path.name, arrays=load_arrays(path))
    except InputError as error:
        return error


def _lines(path: Path, shard: Shard) -> Iterator[Mapping[str, Any] | InputError]:
    with path.open("rb") as lines:
        for i, line in enumerate(lines):
            if shard.start <= i < shard.stop:
                yield _object(line)


def _object(line: bytes) -> Mapping[str, Any] | InputError:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"the line is not valid JSON: {cause_of(error)}")
    return found if isinstance(found, dict) else InputError("the line holds no JSON object")


def _columns(path: Path, shard: Shard) -> Iterator[Mapping[str, Any] | InputError]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            names = [name for name in parquet.schema_arrow.names if name in _WORDS]
            table = parquet.read_row_group(shard.group, columns=names)
            found = table.slice(shard.start, shard.rows).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        unread = InputError(f"the rows can't be read: {cause_of(error)}", where=path.name)
        found = [unread] * shard.rows
    yield from found


def _worded(name: str, given: Mapping[str, Any], file: Path) -> Question | InputError:
    """A row in words. Files lie in the folder of the file that names them, or below it."""
    unknown = [key for key in given if key not in _WORDS]
    said = {key: value for key, value in given.items() if key in _WORDS and value is not None}
    if unknown or not said or not all(isinstance(value, str) for value in said.values()):
        return InputError(
            "a row needs texts by these names, and no others",
            got=", ".join(f"{key}: {type(value).__name__}" for key, value in given.items()),
            expected=", ".join(_WORDS),
        )
    paths: dict[str, Path] = {}
    for key in ("image", "audio"):
        if key in said:
            folder = file.resolve().parent
            path = (folder / said[key]).resolve()
            if not path.is_relative_to(folder):
                return InputError("a row names a file outside its folder", where=key, got=said[key])
            paths[key] = path
    return Question(name, said.get("text"), paths.get("image"), paths.get("audio"))
