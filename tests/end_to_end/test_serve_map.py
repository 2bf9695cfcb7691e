"""Bulk jobs: each row once, equal to the session's answers, however often the job is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from captioner import IMAGES, export_captioner
from crossfuse import InputError, runtime
from crossfuse.core.tensors import TensorSpec

pytest.importorskip("ray", reason="ray is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")

from crossfuse.serve.bulk.columns import to_array, to_column  # noqa: E402
from crossfuse.serve.bulk.rows import list_shards  # noqa: E402


def row(rng: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
    ids = rng.integers(1, 50, tokens)
    features = rng.standard_normal((6, 24)).astype(np.float32)
    return {
        "image_features": features,
        "image_mask": np.ones(6, np.int64),
        "input_ids": ids,
        "attention_mask": np.ones(tokens, np.int64),
    }


def write_parquet(path: Path, rows: list[dict[str, np.ndarray]], group: int) -> None:
    columns = {name: pa.array([r[name].tolist() for r in rows]) for name in rows[0]}
    columns["image_features"] = columns["image_features"].cast(pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table(columns), path, row_group_size=group)


def command(bundle: Path, source: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "crossfuse",
        "map",
        str(bundle),
        "--input",
        str(source),
        "-o",
        str(out),
        *options,
    ]


def answers(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part in sorted(out.glob("part-*.parquet")):
        for line in pq.read_table(part).to_pylist():
            assert line["row"] not in found
            found[line["row"]] = line
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rows", [60, 2000])
def test_killed_jobs_go_on(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    bundle = crossfuse.export("qformer", tmp_path / "bundle", size="tiny")
    source = tmp_path / "rows"
    source.mkdir()
    made = [row(rng, tokens) for tokens in rng.integers(2, 8, rows)]
    half = rows // 2
    write_parquet(source / "a.parquet", made[:half], 100)
    write_parquet(source / "b.parquet", made[half:], 37)
    shard = max(2, rows // 100)
    killed = tmp_path / "killed"
    options = ["--shard-rows", str(shard), "--workers", "2", "--num-cpus", "0.5"]
    for kill in range(2 if rows > 100 else 1):
        process = subprocess.Popen(
            command(bundle.path, source, killed, *options), start_new_session=True
        )
        done = (kill + 1) * rows // 4 // shard
        end = time.monotonic() + 240
        while (
            len(list(killed.glob(".shards/*.json"))) < done
            and process.poll() is None
            and time.monotonic() < end
        ):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(answers(killed)) < rows
    resumed = subprocess.run(
        command(bundle.path, source, killed, *options, "--json"), capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert report["rows"] == rows
    assert 0 < report["done_before"] < rows
    assert report["failed"] == 0
    got = answers(killed)
    assert len(got) == rows
    names = [f"a.parquet:{i}" for i in range(half)] + [f"b.parquet:{i}" for i in range(rows - half)]
    with runtime.load(bundle.path) as session:
        for name, inputs in zip(names, made, strict=True):
            expected = session.run(**{n: a[None] for n, a in inputs.items()})
            for output, array in expected.items():
                np.testing.assert_allclose(
                    np.array(got[name][output]), array[0], rtol=1e-4, atol=1e-5
                )
    assert not (killed / "failed.jsonl").exists()


@pytest.mark.slow
def test_npz_rows_and_failed_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bundle = crossfuse.export("qformer", tmp_path / "bundle", size="tiny")
    source = tmp_path / "rows"
    source.mkdir()
    good = {f"r{i}.npz": {n: a[None] for n, a in row(rng, 4).items()} for i in range(5)}
    for name, arrays in good.items():
        np.savez(source / name, **arrays)
    np.savez(
        source / "x-nan.npz",
        **(good["r0.npz"] | {"image_features": np.full((1, 6, 24), np.nan, np.float32)}),
    )
    np.savez(source / "x-missing.npz", input_ids=good["r0.npz"]["input_ids"])
    np.savez(source / "x-pickled.npz", input_ids=np.array([{}], dtype=object), allow_pickle=True)
    (source / "x-garbage.npz").write_bytes(b"PK\x03\x04 garbage")
    out = tmp_path / "out"
    done = subprocess.run(
        command(bundle.path, source, out, "--shard-rows", "2"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "9 rows (0 done before), 4 failed" in done.stdout
    assert sorted(p.name for p in out.glob("*.npz")) == sorted(good)
    failed = {
        line["row"]: line["reason"]
        for line in map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    }
    assert sorted(failed) == ["x-garbage.npz", "x-missing.npz", "x-nan.npz", "x-pickled.npz"]
    assert "NaN" in failed["x-nan.npz"]
    assert "missing" in failed["x-missing.npz"]
    with runtime.load(bundle.path) as session:
        for name, arrays in good.items():
            with np.load(out / name) as got:
                for output, array in session.run(**arrays).items():
                    np.testing.assert_allclose(got[output], array, rtol=1e-4, atol=1e-5)
    # Another job may not write here.
    (source / "r0.npz").unlink()
    again = subprocess.run(
        command(bundle.path, source, out, "--shard-rows", "2"), capture_output=True, text=True
    )
    assert again.returncode == 2
    assert "another job" in again.stderr


def test_columns_come_through() -> None:
    rng = np.random.default_rng(0)
    for rank in range(4):
        arrays = [
            rng.standard_normal(tuple(rng.integers(1, 4, rank))).astype(np.float32)
            for _ in range(5)
        ]
        spec = TensorSpec("x", "float32", tuple(f"d{i}" for i in range(rank)))
        column = to_column(arrays)
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(to_array(column[i], spec, spec.shape), array)


def test_values_that_do_not_fit() -> None:
    spec = TensorSpec("x", "int8", ("n", 2))
    flat = to_array(pa.array([[1, 2, 3, 4]])[0], spec, ("n", 2))
    np.testing.assert_array_equal(flat, np.int8([[1, 2], [3, 4]]))
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(
        np.arange(8, dtype=np.int8).reshape(2, 2, 2)
    )
    np.testing.assert_array_equal(to_array(tensor[1], spec, ("n", 2)), [[4, 5], [6, 7]])
    for column, what in [
        ([[[1, 2], [3]]], "ragged"),
        ([None], "missing"),
        ([[[1, None]]], "missing"),
        ([[[1.5, 2.0]]], "type"),
        ([[[1, 300]]], "range"),
        ([["a", "b"]], "type"),
        ([[1, 2, 3]], "shape"),
    ]:
        with pytest.raises(InputError, match=what):
            to_array(pa.array(column)[0], spec, ("n", 2))


def test_inputs_that_hold_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="doesn't exist"):
        list_shards(tmp_path / "nothing", 4)
    with pytest.raises(InputError, match="NPZ files or Parquet"):
        list_shards(tmp_path, 4)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="can't be read"):
        list_shards(tmp_path, 4)


@pytest.mark.slow
def test_a_text_for_each_row(tmp_path: Path) -> None:
    """As `generate` gives it alone; what can't be read has failed. A second run does nothing."""
    bundle = export_captioner(tmp_path / "bundle", 40)
    source, out = tmp_path / "rows", tmp_path / "out"
    source.mkdir()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 50, (1, n)) for n in (1, 7, 3, 12, 2)]
    for i, ids in enumerate(prompts):
        np.savez(source / f"{i}.npz", image=IMAGES[[i % 4]], ids=ids)
    np.savez(source / "5.npz", ids=prompts[0])
    (source / "6.npz").write_bytes(b"PK")
    how = ["--generate", "--set", "max_new_tokens=9", "--shard-rows", "3", "--batch-size", "2"]
    done = subprocess.run(
        command(bundle, source, out, *how, "--workers", "2", "--num-cpus", "0.5", "--json"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["failed"], report["done_before"]) == (7, 2, 0)
    lines = [
        line for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()
    ]
    found = {row["row"]: row for row in map(json.loads, lines)}
    assert sorted(found) == [f"{i}.npz" for i in range(5)]
    with runtime.load(bundle) as session:
        for i, ids in enumerate(prompts):
            context = session.encode(image=IMAGES[[i % 4]])
            expected = runtime.generate(session, context, ids, max_new_tokens=9)
            assert found[f"{i}.npz"]["tokens"] == expected.new_tokens[0].tolist()
    failed = map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    assert {row["row"] for row in failed} == {"5.npz", "6.npz"}
    again = subprocess.run(
        command(bundle, source, out, *how, "--json"), capture_output=True, text=True, check=False
    )
    assert json.loads(again.stdout)["done_before"] == 7
    other = subprocess.run(
        command(bundle, source, out, "--generate", "--set", "max_new_tokens=4"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 2
    assert "another generation" in other.stderr
