"""A job's folder: begun, gone on with, and not mistaken for another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from crossfuse.errors import InputError
from crossfuse.serve.bulk.job import FAILED, Job, open_job
from crossfuse.serve.bulk.rows import Shard


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    files = []
    for i in range(4):
        files.append(tmp_path / f"{i}.npz")
        files[-1].write_bytes(bytes(i + 1))
    return [Shard(i, tuple(map(str, files[2 * i : 2 * i + 2]))) for i in range(2)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    return tmp_path / "bundle"


def test_finished_shards_are_known_again(tmp_path: Path, bundle: Path, shards: list[Shard]) -> None:
    job = open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    assert not any(job.is_done(shard) for shard in shards)
    job.finish(shards[1], {"3.npz": "no good"})
    again = open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    assert [again.is_done(shard) for shard in shards] == [False, True]
    assert again.result(shards[1]) == {"rows": 2, "failed": {"3.npz": "no good"}}


def test_failures_are_one_file_or_none(tmp_path: Path, bundle: Path, shards: list[Shard]) -> None:
    job = open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    job.finish(shards[0], {"0.npz": "bad", "1.npz": "worse"})
    job.finish(shards[1], {})
    assert job.collect_failures(shards) == 2
    lines = (tmp_path / "out" / FAILED).read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["bad", "worse"]
    job.finish(shards[0], {})
    assert job.collect_failures(shards) == 0
    assert not (tmp_path / "out" / FAILED).exists()


@pytest.mark.parametrize("change", ["target", "bundle", "input"])
def test_another_job_is_refused(
    tmp_path: Path, bundle: Path, shards: list[Shard], change: str
) -> None:
    open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    if change == "bundle":
        (bundle / "manifest.json").write_text("{ }")
    if change == "input":
        Path(shards[0].files[0]).write_bytes(bytes(100))
    target = "onnx" if change == "target" else "ort-cpu"
    with pytest.raises(InputError, match=f"holds another job.*another {change}"):
        open_job(tmp_path / "out", bundle, target, shards)


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, bundle: Path, shards: list[Shard]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no job"):
        open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no job"):
        open_job(tmp_path / "file", bundle, "ort-cpu", shards)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 2}', '{"failed": 3}'])
def test_a_mark_that_no_job_wrote(tmp_path: Path, shards: list[Shard], text: str) -> None:
    folder = tmp_path / "out" / ".shards"
    folder.mkdir(parents=True)
    (folder / "000000.json").write_text(text)
    with pytest.raises(InputError, match="mark can't be read"):
        Job(tmp_path / "out").result(shards[0])


def test_the_contents_of_inputs_count(tmp_path: Path, bundle: Path, shards: list[Shard]) -> None:
    open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    file = Path(shards[0].files[1])
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(InputError, match="another input"):
        open_job(tmp_path / "out", bundle, "ort-cpu", shards)


def test_a_job_killed_before_it_was_described_is_begun(
    tmp_path: Path, bundle: Path, shards: list[Shard]
) -> None:
    (tmp_path / "out" / ".shards").mkdir(parents=True)
    (tmp_path / "out" / ".job.json.0a1b2c3d").write_text("{")
    open_job(tmp_path / "out", bundle, "ort-cpu", shards)
    (tmp_path / "other" / ".shards").mkdir(parents=True)
    (tmp_path / "other" / ".shards" / "mine").touch()
    with pytest.raises(InputError, match="holds no job"):
        open_job(tmp_path / "other", bundle, "ort-cpu", shards)
