"""Where rows come from and where answers go: NPZ files of a folder, or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crossfuse.core.files import whole_file
from crossfuse.core.foreign import cause_of
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
        first: rows of the file before the row group.
    """

    index: int
    files: tuple[str, ...]
    group: int = -1
    start: int = 0
    stop: int = 0
    first: int = 0

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
        first = 0
        for group in range(metadata.num_row_groups):
            total = metadata.row_group(group).num_rows
            for start in range(0, total, rows):
                stop = min(start + rows, total)
                shards.append(Shard(len(shards), (str(path),), group, start, stop, first))
            first += total
    return shards


def read_rows(shard: Shard, engine: RequestEngine) -> Iterator[InputRow]:
    """The rows of a shard, one at a time.

    NPZ files hold inputs as `Session.run` takes them. A row of Parquet has a column for each input,
    without the axis of the batch. Of a damaged Parquet file, the rows before the damage are read.
    """
    if shard.group < 0:
        for file in shard.files:
            yield _row(Path(file).name, partial(load_arrays, Path(file)))
        return
    parquet = Path(*shard.files)
    table, unread = _table_of(parquet, shard, [spec.name for spec in engine.session.inputs])
    for i in range(shard.rows):
        name = f"{parquet.name}:{shard.first + shard.start + i}"
        if table is not None and i < table.num_rows:
            yield _row(name, partial(_inputs_of, table, i, engine))
        else:
            yield InputRow(name, unread or InputError("the row is missing", where=parquet.name))


def _table_of(
    file: Path, shard: Shard, names: Sequence[str]
) -> tuple[pa.Table | None, InputError | None]:
    """A shard's rows up to the first that can't be read, and why that can't."""
    found: list[pa.RecordBatch] = []
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            missing = set(names) - set(parquet.schema_arrow.names)
            if missing:
                got = ", ".join(sorted(missing))
                return None, InputError("columns are missing", where=file.name, got=got)
            try:
                table = parquet.read_row_group(shard.group, columns=names)
                return table.slice(shard.start, shard.rows), None
            except (pa.ArrowException, OSError):
                # All of a row group or nothing: row by row, what comes before the damage is read.
                for batch in parquet.iter_batches(1, [shard.group], names):
                    found.append(batch)
                raise
    except Exception as error:  # noqa: BLE001 -- files of strangers fail in ways that no library lists
        unread = InputError(f"the rows can't be read: {cause_of(error)}", where=file.name)
        whole = found[shard.start : shard.stop]
        return (pa.Table.from_batches(whole) if whole else None), unread


def _row(name: str, read: Callable[[], Arrays]) -> InputRow:
    """A row that is read, or what was wrong with it, whatever that is."""
    try:
        return InputRow(name, Request(read()))
    except InputError as error:
        return InputRow(name, error)
    except Exception as error:  # noqa: BLE001 -- files and columns of strangers fail in ways that no library lists
        return InputRow(name, InputError(f"the row can't be read: {cause_of(error)}"))


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
) -> dict[str, str]:
    """Write what succeeded, whole or not at all: an NPZ file for each, or one Parquet file.

    Args:
        shard: whose rows they are.
        folder: to write to.
        names: of the rows that succeeded.
        answers: outputs of each.
        engine: that made them.

    Returns:
        rows whose answers can't be stored, with the reason.

    Raises:
        OSError, InputError: the folder can't be written.
    """
    if shard.group < 0:
        for name, outputs in zip(names, answers, strict=True):
            save_arrays(folder / name, outputs)
        return {}
    if not names:
        return {}
    label = "row"
    while any(spec.name == label for spec in engine.session.outputs):
        label = f"_{label}"
    columns: dict[str, pa.Array] = {label: pa.array(list(names))}
    try:
        for spec in engine.session.outputs:
            rows = [answer[spec.name] for answer in answers]
            if spec.shape and spec.shape[0] in engine.batch_dims:
                rows = [row[0] for row in rows]
            columns[spec.name] = to_column([np.asarray(row) for row in rows])
    except (pa.ArrowException, IndexError, ValueError, TypeError) as error:
        return dict.fromkeys(names, f"the answer can't be stored in Parquet: {cause_of(error)}")
    path = folder / f"part-{shard.index:06d}.parquet"
    with whole_file(path) as partial_file:
        pq.write_table(pa.table(columns), partial_file)
    return {}
