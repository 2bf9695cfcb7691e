"""Where rows come from and where answers go: NPZ files of a folder, or Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crossfuse.core.npz import load_arrays, save_arrays
from crossfuse.errors import InputError
from crossfuse.serve.bulk.columns import to_array, to_column
from crossfuse.serve.request_engine import Request, RequestEngine

__all__ = ["InputRow", "Shard", "list_shards", "read_rows", "write_answers"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shard:
    """Some rows of one job, done as a whole or not at all.

    Attributes:
        index: position in the job.
        files: NPZ files, a row each; or one Parquet file.
        group: of a Parquet file's row groups; -1 for NPZ files.
        start: first row within the row group.
        stop: row after the last.
    """

    index: int
    files: tuple[str, ...]
    group: int = -1
    start: int = 0
    stop: int = 0

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.files) if self.group < 0 else self.stop - self.start


@dataclass(frozen=True)
class InputRow:
    """A row's name, and its request or what is wrong with it."""

    name: str
    request: Request | InputError


def list_shards(source: Path, rows: int) -> list[Shard]:
    """All rows of a folder or file, in shards of at most ``rows``, always in the same order.

    Raises:
        InputError: no such place, or neither NPZ nor Parquet files in it.
    """
    if source.is_file():
        files = [source]
    elif source.is_dir():
        files = sorted(
            path
            for path in source.iterdir()
            if path.suffix in (".npz", ".parquet") and path.is_file()
        )
    else:
        raise InputError("the input doesn't exist", where=source)
    kinds = {path.suffix for path in files}
    if kinds == {".npz"}:
        chunks = [files[i : i + rows] for i in range(0, len(files), rows)]
        return [Shard(i, tuple(map(str, chunk))) for i, chunk in enumerate(chunks)]
    if kinds != {".parquet"}:
        raise InputError(
            "the input must be NPZ files or Parquet files",
            where=source,
            got=", ".join(sorted(kinds)) or "no such files",
        )
    shards: list[Shard] = []
    for path in files:
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"a Parquet file can't be read: {error}", where=path) from error
        for group in range(metadata.num_row_groups):
            total = metadata.row_group(group).num_rows
            for start in range(0, total, rows):
                shards.append(
                    Shard(len(shards), (str(path),), group, start, min(start + rows, total))
                )
    return shards


def read_rows(shard: Shard, engine: RequestEngine) -> Iterator[InputRow]:
    """The rows of a shard, one at a time.

    NPZ files hold inputs as `Session.run` takes them. A row of Parquet has a column for each input,
    without the axis of the batch.
    """
    if shard.group < 0:
        for file in shard.files:
            yield _row(Path(file).name, partial(load_arrays, Path(file)))
        return
    (file,) = shard.files
    specs = engine.session.inputs
    names = [spec.name for spec in specs]
    with pq.ParquetFile(file) as parquet:
        missing = set(names) - set(parquet.schema_arrow.names)
        first = (
            sum(parquet.metadata.row_group(g).num_rows for g in range(shard.group)) + shard.start
        )
        unread: InputError | None = None
        if missing:
            unread = InputError(
                "columns are missing", where=Path(file).name, got=", ".join(sorted(missing))
            )
        else:
            try:
                table = parquet.read_row_group(shard.group, columns=names).slice(
                    shard.start, shard.rows
                )
            except (pa.ArrowException, OSError) as error:
                unread = InputError(f"the rows can't be read: {error}", where=Path(file).name)
    for i in range(shard.rows):
        name = f"{Path(file).name}:{first + i}"
        yield (
            InputRow(name, unread) if unread else _row(name, partial(_inputs_of, table, i, engine))
        )


def _row(name: str, read: Callable[[], Arrays]) -> InputRow:
    """A row that is read, or what was wrong with it, whatever that is."""
    try:
        return InputRow(name, Request(read()))
    except InputError as error:
        return InputRow(name, error)
    except Exception as error:  # noqa: BLE001 -- files and columns of strangers fail in ways that no library lists
        return InputRow(name, InputError(f"the row can't be read: {type(error).__name__}: {error}"))


def _inputs_of(table: pa.Table, row: int, engine: RequestEngine) -> Arrays:
    """A row's columns as inputs."""
    inputs = {}
    for spec in engine.session.inputs:
        batched = bool(spec.shape) and spec.shape[0] in engine.batch_dims
        array = to_array(
            table.column(spec.name)[row], spec, spec.shape[1:] if batched else spec.shape
        )
        inputs[spec.name] = array[None] if batched else array
    return inputs


def write_answers(
    shard: Shard,
    folder: Path,
    names: Sequence[str],
    answers: Sequence[Arrays],
    engine: RequestEngine,
) -> None:
    """Write what succeeded, whole or not at all: an NPZ file for each, or one Parquet file.

    Args:
        shard: whose rows they are.
        folder: to write to.
        names: of the rows that succeeded.
        answers: outputs of each.
        engine: that made them.
    """
    if shard.group < 0:
        for name, outputs in zip(names, answers, strict=True):
            save_arrays(folder / name, outputs)
        return
    if not names:
        return
    label = "row"
    while any(spec.name == label for spec in engine.session.outputs):
        label = f"_{label}"
    columns: dict[str, pa.Array] = {label: pa.array(list(names))}
    for spec in engine.session.outputs:
        rows = [answer[spec.name] for answer in answers]
        if spec.shape and spec.shape[0] in engine.batch_dims:
            rows = [row[0] for row in rows]
        columns[spec.name] = to_column([np.asarray(row) for row in rows])
    path = folder / f"part-{shard.index:06d}.parquet"
    unfinished = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), unfinished)
    os.replace(unfinished, path)  # noqa: PTH105 - os.replace says what it does
