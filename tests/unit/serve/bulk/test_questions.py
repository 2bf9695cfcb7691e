"""Rows that texts are generated from: which files there may be, how they are cut, what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")

from crossfuse.errors import InputError  # noqa: E402
from crossfuse.serve.bulk.questions import Question, list_questions, read_questions  # noqa: E402


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n"
                            for row in rows))  # fmt: skip
    return path


def read(source: Path, rows: int = 100) -> dict[str, Question | InputError]:
    shards = list_questions(source, rows)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.rows <= rows for shard in shards)
    found = [pair for shard in shards for pair in read_questions(shard)]
    assert sum(shard.rows for shard in shards) == len(found) == len(dict(found))
    return dict(found)


def test_lines_in_shards(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"text": f"number {i}"} for i in range(7)))
    found = read(file, 3)
    assert list(found) == [f"a.jsonl:{i}" for i in range(7)]
    assert [one.text for one in found.values() if isinstance(one, Question)] == [
        f"number {i}" for i in range(7)
    ]


def test_a_line_names_files_beside_it(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl", {"image": "b/c.png", "text": "a photo of"}, {"audio": "d.wav"}
    )
    one, other = read(file).values()
    assert one == Question("a.jsonl:0", "a photo of", image=tmp_path.resolve() / "b" / "c.png")
    assert other == Question("a.jsonl:1", audio=tmp_path.resolve() / "d.wav")


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "a list": ([1], "no JSON object"),
    "nothing": ({}, "texts by these names"),
    "another name": ({"text": "a", "prompt": "b"}, "prompt: str"),
    "a number": ({"text": 3}, "text: int"),
    "above": ({"audio": "../a.wav"}, "outside its folder"),
    "elsewhere": ({"image": "/etc/passwd"}, "outside its folder"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_wrong_with_a_line_is_its_own(tmp_path: Path, name: str) -> None:
    given, words = BAD[name]
    found = read(lines(tmp_path / "a.jsonl", {"text": "first"}, given, {"text": "last"}))
    good = [one for one in found.values() if isinstance(one, Question)]
    (bad,) = (one for one in found.values() if isinstance(one, InputError))
    assert [one.text for one in good] == ["first", "last"]
    assert words in str(bad)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "secret.wav").write_bytes(b"")
    (tmp_path / "rows" / "a.wav").symlink_to(tmp_path / "secret.wav")
    (found,) = read(lines(tmp_path / "rows" / "a.jsonl", {"audio": "a.wav"})).values()
    assert "outside its folder" in str(found)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c"], "audio": ["x.wav", "y.wav", None], "id": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path / "a.parquet", 2)
    folder = tmp_path.resolve()
    assert list(found.values()) == [
        Question("a.parquet:0", "a", audio=folder / "x.wav"),
        Question("a.parquet:1", audio=folder / "y.wav"),
        Question("a.parquet:2", "c"),
    ]


def test_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a.WAV", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = read(tmp_path, 1)
    assert found == {n: Question(n, audio=tmp_path / n) for n in ("a.WAV", "b.wav")}
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"")
    assert read(images) == {"a.png": Question("a.png", image=images / "a.png")}


def test_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.ones((1, 2), np.float32), ids=np.array([[1, 2]]))
    (tmp_path / "b.npz").write_bytes(b"PK")
    found = read(tmp_path)
    good = found["a.npz"]
    assert isinstance(good, Question)
    assert sorted(good.arrays) == ["ids", "image"]
    assert isinstance(found["b.npz"], InputError)


def test_no_rows_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="doesn't exist"):
        list_questions(tmp_path / "none", 2)
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="one kind"):
        list_questions(tmp_path, 2)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match="one kind"):
        list_questions(tmp_path / "a.txt", 2)
