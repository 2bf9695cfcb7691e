"""A job's options, and a worker's way through a shard."""

from __future__ import annotations

import json
import resource
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
from crossfuse.serve.bulk import run
from crossfuse.serve.bulk.job import Job, open_job
from crossfuse.serve.bulk.rows import list_shards
from crossfuse.serve.bulk.run import MapOptions, MapPlan, _Worker, planned
from crossfuse.serve.load_engine import EngineOptions
from system_limits import at_most

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


def test_a_full_disk_stops_the_job_which_goes_on_later(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One paragraph, no row is said to have failed, and nothing half is left."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    spec = zoo_spec(NAME, "tiny")
    np.savez(source / "0.npz", **{n: t.numpy() for n, t in spec.inputs.items()})
    plan = planned(zoo_bundle(NAME), source, out, MapOptions(EngineOptions("ort-cpu"), num_cpus=1))
    worker = _Worker(str(plan.bundle.path), str(out), asdict(plan.engine), 2, False)

    def finished(_: MapPlan, shards: list[run.Shard]) -> list[dict[str, object]]:
        return [worker({"shard": np.array([json.dumps(asdict(shard))])}) for shard in shards]

    monkeypatch.setattr(MapPlan, "_finished", lambda *given: map(single, finished(*given)))
    with (
        at_most(resource.RLIMIT_FSIZE, 200),
        pytest.raises(InputError, match=r"can't be written.*File too large.*it goes on"),
    ):
        plan.run()
    assert sorted(path.name for path in out.iterdir()) == [".shards", "job.json"]
    report = plan.run()
    assert (report.rows, report.failed, report.done_before) == (1, 0, 0)
    assert (out / "0.npz").exists()


def single(batch: dict[str, object]) -> dict[str, object]:
    return {name: np.asarray(value)[0] for name, value in batch.items()}
