"""Rows of folders and files: cut into shards, read one by one, answers written whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")

from crossfuse.core.tensors import TensorSpec  # noqa: E402
from crossfuse.errors import InputError  # noqa: E402
from crossfuse.serve.bulk.rows import list_shards, read_rows, write_answers  # noqa: E402
from crossfuse.serve.request_engine import Request  # noqa: E402

X = TensorSpec("x", "float32", ("batch", 2))
ENGINE: Any = SimpleNamespace(
    session=SimpleNamespace(inputs=(X,), outputs=(TensorSpec("row", "float32", ("batch", 2)),)),
    batch_dims={"batch"},
)


def npz_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        np.savez(folder / f"{i}.npz", x=np.full((1, 2), i, np.float32))
    return folder


def parquet(path: Path, values: Any, name: str = "x", row_group_size: int = 3) -> Path:
    table = pa.table({name: pa.array(values, pa.list_(pa.float32()))})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_folders_are_cut_in_order(tmp_path: Path) -> None:
    shards = list_shards(npz_folder(tmp_path / "in", 5), 2)
    assert [(shard.index, shard.rows) for shard in shards] == [(0, 2), (1, 2), (2, 1)]
    rows = [row for shard in shards for row in read_rows(shard, ENGINE)]
    assert [row.name for row in rows] == [f"{i}.npz" for i in range(5)]
    assert isinstance(rows[3].request, Request)
    np.testing.assert_array_equal(rows[3].request.inputs["x"], [[3, 3]])


def test_parquet_is_cut_within_its_row_groups(tmp_path: Path) -> None:
    file = parquet(tmp_path / "in.parquet", [[i, i] for i in range(7)])
    shards = list_shards(file, 2)
    assert [(s.group, s.start, s.stop) for s in shards] == [
        (0, 0, 2),
        (0, 2, 3),
        (1, 0, 2),
        (1, 2, 3),
        (2, 0, 1),
    ]
    rows = [row for shard in shards for row in read_rows(shard, ENGINE)]
    assert [row.name for row in rows] == [f"in.parquet:{i}" for i in range(7)]
    for i, row in enumerate(rows):
        assert isinstance(row.request, Request)
        np.testing.assert_array_equal(row.request.inputs["x"], [[i, i]])


def test_what_is_wrong_with_a_row_is_its_own(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "in", 2)
    (folder / "1.npz").write_bytes(b"no archive")
    good, bad = read_rows(*list_shards(folder, 9), ENGINE)
    assert isinstance(good.request, Request)
    assert isinstance(bad.request, InputError)
    file = parquet(tmp_path / "in.parquet", [[1, 2], None])
    good, bad = read_rows(*list_shards(file, 9), ENGINE)
    assert isinstance(good.request, Request)
    assert "a value is missing" in str(bad.request)
    (lost,) = read_rows(*list_shards(parquet(tmp_path / "y.parquet", [[1, 2]], "y"), 9), ENGINE)
    assert "columns are missing" in str(lost.request)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "got no such files"),
        (("a.npz", "b.parquet"), "got .npz, .parquet"),
        (None, "doesn't exist"),
    ],
)
def test_places_without_rows(tmp_path: Path, names: tuple[str, ...] | None, message: str) -> None:
    folder = tmp_path / "in"
    if names is not None:
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    with pytest.raises(InputError, match=message):
        list_shards(folder, 2)


def test_answers_lie_beside_their_rows_names(tmp_path: Path) -> None:
    """In Parquet the column of names makes way for an output of the same name."""
    (shard,) = list_shards(parquet(tmp_path / "in.parquet", [[1, 2]]), 9)
    out = tmp_path / "out"
    out.mkdir()
    answers = [{"row": np.float32([[5, 6]])}]
    write_answers(shard, out, ["in.parquet:0"], answers, ENGINE)
    (file,) = out.iterdir()
    table = pq.read_table(file).to_pydict()
    assert table == {"_row": ["in.parquet:0"], "row": [[5.0, 6.0]]}
    (whole,) = list_shards(npz_folder(tmp_path / "npz", 1), 9)
    write_answers(whole, out, ["0.npz"], answers, ENGINE)
    np.testing.assert_array_equal(np.load(out / "0.npz")["row"], answers[0]["row"])


def test_of_a_damaged_file_the_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    """The others fail, each by its name, whichever shard they are in."""
    values = [[i, i + 1000.0] for i in range(400)]
    table = pa.table({"x": pa.array(values, pa.list_(pa.float32()))})
    file = tmp_path / "in.parquet"
    options = {"use_dictionary": False, "compression": "none", "data_page_version": "2.0"}
    pq.write_table(
        table, file, data_page_size=256, write_batch_size=16, write_page_checksum=True, **options
    )
    shards = list_shards(file, 100)
    data = bytearray(file.read_bytes())
    place = data.index(np.float32([300, 1300]).tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    rows = [row for shard in shards for row in read_rows(shard, ENGINE)]
    assert [row.name for row in rows] == [f"in.parquet:{i}" for i in range(400)]
    good = [isinstance(row.request, Request) for row in rows]
    assert all(good[:200])
    assert not any(good[300:])
    for i, row in enumerate(rows):
        if isinstance(row.request, Request):
            np.testing.assert_array_equal(row.request.inputs["x"], [values[i]])
        else:
            assert "the rows can't be read" in str(row.request)


@pytest.mark.parametrize("how", ["removed", "cut", "overwritten"])
def test_files_that_change_behind_their_list_fail_by_row(tmp_path: Path, how: str) -> None:
    file = parquet(tmp_path / "in.parquet", [[i, i] for i in range(7)])
    shards = list_shards(file, 3)
    if how == "removed":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        parquet(file, [[1, 2]])
    rows = [row for shard in shards for row in read_rows(shard, ENGINE)]
    assert [row.name for row in rows] == [f"in.parquet:{i}" for i in range(7)]
    assert all(isinstance(row.request, InputError) for row in rows[3:])


def test_answers_that_parquet_can_not_hold_fail_by_row(tmp_path: Path) -> None:
    (shard,) = list_shards(parquet(tmp_path / "in.parquet", [[1, 2]]), 9)
    out = tmp_path / "out"
    out.mkdir()
    answers = [{"row": np.array([[1 + 2j, 3]])}]
    failed = write_answers(shard, out, ["in.parquet:0"], answers, ENGINE)
    assert "can't be stored in Parquet" in failed["in.parquet:0"]
    assert not list(out.iterdir())
