"""Inputs and outputs may have any name, those of our own parameters among them, wherever arrays go
by name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from crossfuse import InputError, runtime
from crossfuse.api.sources import Source
from crossfuse.bundle.store import Bundle
from crossfuse.cli import main
from crossfuse.core.npz import load_arrays, save_arrays
from crossfuse.errors import CrossfuseError
from crossfuse.profiling.measure.sampling import Plan
from crossfuse.runtime.session import Session
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.request_engine import Request
from named_graphs import CONTEXT, OUTPUT, QUERIES, make_inputs, truth, write_graph


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("named")
    spec = Source.of(str(write_graph(folder / "named.onnx"))).load()
    return crossfuse.export(replace(spec, context=(CONTEXT,)), folder / "bundle")


@pytest.fixture
def session(bundle: Bundle) -> Session:
    return runtime.load(bundle.path)


def parts(inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {CONTEXT: inputs[CONTEXT]}, {name: inputs[name] for name in QUERIES}


def close(got: Any, inputs: dict[str, np.ndarray]) -> bool:
    return bool(np.allclose(got[OUTPUT], truth(inputs), atol=1e-5))


def test_every_call_takes_a_mapping_and_any_keyword(session: Session) -> None:
    inputs = make_inputs(3)
    first, queries = parts(inputs)
    assert close(session.run(inputs), inputs)
    assert close(session.run(**inputs), inputs)
    for context in (
        session.encode(first),
        session.encode(**first),
        runtime.ContextCache(session, 1 << 20).encode(first),
    ):
        assert close(session.query(context, queries), inputs)
        assert close(session.query(context, **queries), inputs)
    assert close(session.bind(inputs).outputs, inputs)
    assert close(session.bind(**inputs).outputs, inputs)


def test_mappings_of_other_kinds(session: Session, tmp_path: Path) -> None:
    from types import MappingProxyType

    inputs = make_inputs(2)
    save_arrays(tmp_path / "x.npz", inputs)
    with np.load(tmp_path / "x.npz") as file:
        assert close(session.run(file), inputs)
    assert close(session.run(MappingProxyType(inputs)), inputs)


def test_what_is_no_way_to_give_inputs(session: Session) -> None:
    inputs = make_inputs(2)
    first, queries = parts(inputs)
    context = session.encode(first)
    for call in (
        lambda: session.run(first, **queries),
        lambda: session.encode({}, **first),
        lambda: session.query(context, queries, **first),
        lambda: session.bind(first, **queries),
    ):
        with pytest.raises(InputError, match="twice"):
            call()
    for wrong in (inputs[CONTEXT], [inputs], "x", 3):
        with pytest.raises(InputError, match="by name"):
            session.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names"):
        session.run({0: inputs[CONTEXT], None: 1, ("a",): 2})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="missing"):
        session.run({})
    with pytest.raises(InputError, match="missing"):
        session.run()


def test_queries_share_the_sizes_of_their_context(session: Session) -> None:
    """Both stages take part in one request: what they share by name has one size."""
    inputs = make_inputs(2)
    first, queries = parts(inputs)
    context = session.encode(first)
    assert context.sizes == {context.batch: 2}
    assert context.select([1]).sizes == {context.batch: 1}
    assert set(session.check(inputs)) == set(inputs)
    assert set(session.check(queries, context)) == set(queries)
    with pytest.raises(InputError, match="multiple"):
        session.check({name: array[:1] for name, array in queries.items()}, context)
    with pytest.raises(InputError, match="missing"):
        session.check(queries)


def test_files_hold_arrays_of_any_name(tmp_path: Path) -> None:
    arrays = {
        name: np.arange(3) + i
        for i, name in enumerate(("file", "allow_pickle", "self", "args", "kwds", "a/b", "é", ""))
    }
    save_arrays(tmp_path / "a.npz", arrays)
    got = load_arrays(tmp_path / "a.npz")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)


def test_commands(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = make_inputs(2)
    first, queries = parts(inputs)
    save_arrays(tmp_path / "all.npz", inputs)
    save_arrays(tmp_path / "first.npz", first)
    save_arrays(tmp_path / "queries.npz", queries)
    path, out = str(bundle.path), tmp_path / "out.npz"
    for given in (["--input", "all.npz"], ["--context", "first.npz", "--input", "queries.npz"]):
        files = [str(tmp_path / word) if word.endswith(".npz") else word for word in given]
        _succeeds(["run", path, *files, "--output", str(out)])
        assert close(load_arrays(out), inputs)
        out.unlink()
    _succeeds(["verify", path])
    _succeeds(["verify", path, "--source", str(bundle.path.parent / "named.onnx")])
    capsys.readouterr()


def test_profile(bundle: Bundle) -> None:
    plan = Plan(rounds=3, seconds=0.001)
    source = str(bundle.path.parent / "named.onnx")
    report = crossfuse.profile(
        bundle.path, against=["eager"], source=source, plan=plan, cold_starts=1, trace=False
    )
    assert not [row.failure for row in report.rows if row.failure]
    assert {row.name for row in report.rows} == {
        "crossfuse",
        "crossfuse encode",
        "crossfuse query",
        "eager",
    }


def test_servers(bundle: Bundle) -> None:
    engine = open_engine(bundle.path, EngineOptions())
    assert engine.merges
    good = [make_inputs(1, seed) | {CONTEXT: make_inputs(1)[CONTEXT]} for seed in range(4)]
    lacking = [{name: array for name, array in good[0].items() if name != gone} for gone in good[0]]
    answers = engine.answer(
        [*map(Request, good[:2]), *map(Request, lacking), *map(Request, good[2:])]
    )
    for inputs, answer in zip(good, [*answers[:2], *answers[-2:]], strict=True):
        assert not isinstance(answer, CrossfuseError), answer
        assert close(answer, inputs)
    assert all(
        isinstance(answer, InputError) and "missing" in str(answer) for answer in answers[2:-2]
    )


def test_bulk_jobs(bundle: Bundle, tmp_path: Path) -> None:
    """An output called as the column of rows' names keeps its place."""
    pytest.importorskip("ray", reason="ray is not installed")
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    from crossfuse.serve.bulk.job import open_job
    from crossfuse.serve.bulk.rows import list_shards
    from crossfuse.serve.bulk.run import _Worker

    rows = make_inputs(5)
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({name: pa.array(list(array)) for name, array in rows.items()}), source)
    shards = list_shards(source, 10)
    job = open_job(tmp_path / "out", bundle.path, "ort-cpu", shards)
    worker = _Worker(str(bundle.path), str(job.folder), asdict(EngineOptions()), 4, False)
    worker({"shard": np.array([json.dumps(asdict(shards[0]))])})
    assert job.collect_failures(shards) == 0
    (part,) = job.folder.glob("part-*.parquet")
    table = pq.read_table(part)
    assert table.column("_row").to_pylist() == [f"rows.parquet:{i}" for i in range(5)]
    np.testing.assert_allclose(np.array(table.column(OUTPUT).to_pylist()), truth(rows), atol=1e-5)


def _succeeds(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
