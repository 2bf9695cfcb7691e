"""A job's options, and a worker's way through a shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from crossfuse.errors import InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.serve.bulk.job import Job, open_job
from crossfuse.serve.bulk.rows import list_shards
from crossfuse.serve.bulk.run import MapOptions, _Worker
from crossfuse.serve.load_engine import EngineOptions

NAME = "cross_modal_attention"


@pytest.mark.parametrize("name", ["workers", "batch_size", "shard_rows"])
def test_options_are_positive(name: str) -> None:
    with pytest.raises(InputError, match=rf"must be positive \({name}\): got 0"):
        MapOptions(**{name: 0})


def test_a_worker_answers_marks_and_tells_what_failed(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = zoo_bundle(NAME)
    source = tmp_path / "in"
    source.mkdir()
    spec = zoo_spec(NAME, "tiny")
    given = [
        {n: t.numpy() for n, t in spec.sample(spec.example_sizes, seed).items()}
        for seed in range(3)
    ]
    for i, arrays in enumerate(given):
        np.savez(source / f"{i}.npz", **(arrays if i != 1 else {"a": arrays["a"]}))
    (shard,) = list_shards(source, 9)
    open_job(tmp_path / "out", bundle.path, "ort-cpu", [shard])
    worker = _Worker(
        str(bundle.path), str(tmp_path / "out"), asdict(EngineOptions("ort-cpu")), 2, False
    )
    found = worker({"shard": np.array([json.dumps(asdict(shard))])})
    assert (found["rows"].tolist(), found["failed"].tolist()) == ([3], [1])
    result = Job(tmp_path / "out").result(shard)
    assert list(result["failed"]) == ["1.npz"]
    assert "missing b" in result["failed"]["1.npz"]
    with runtime.load(bundle.path, "ort-cpu") as session:
        for i in (0, 2):
            expected, got = session.run(given[i]), np.load(tmp_path / "out" / f"{i}.npz")
            for name, array in expected.items():
                np.testing.assert_allclose(got[name], array, atol=1e-5)
    assert not (tmp_path / "out" / "1.npz").exists()
