"""`map`, killed at any moment: answers are whole and right, and the next run goes on to the end and
leaves nothing else. The worker is in the command's own process, so that what is killed is the job's
work; or it is Ray's, and what is killed is Ray's start as often.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from campaigns.damage import Chance
from campaigns.forks import LONGEST, begun_anew, ended, finished, killed
from campaigns.killed import SOON, require_nothing_left
from campaigns.operations import OLD_BUNDLE, Outcomes
from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.serve import cluster
from crossfuse.serve.bulk import run
from crossfuse.serve.bulk.rows import Shard
from crossfuse.serve.guardian import OWNER

ROWS, SHARD_ROWS = 24, 2
Arrays = dict[str, np.ndarray]


class Source:
    """Rows in NPZ files or in one Parquet file, and what the bundle answers to each.

    Args:
        folder: to write them to.
        parquet: the one or the other.
        chance: makes their numbers.
    """

    def __init__(self, folder: Path, parquet: bool, chance: Chance) -> None:
        whole = smallest_inputs(open_bundle(OLD_BUNDLE))
        assert whole is not None
        rng = np.random.default_rng(chance.randrange(1 << 30))
        rows = [{name: _like(array, rng) for name, array in whole.items()} for _ in range(ROWS)]
        with runtime.load(OLD_BUNDLE, "ort-cpu", runtime.SessionOptions(threads=1)) as session:
            self.answers = [session.run(row) for row in rows]
            shapes = {spec.name: spec.shape for spec in session.inputs}
        self.parquet = parquet
        self.path = folder / ("in.parquet" if parquet else "in")
        if parquet:
            one = {name: [row[name][0].tolist() for row in rows] for name in shapes}
            pq.write_table(pa.table(one), self.path)
        else:
            self.path.mkdir()
            for number, row in enumerate(rows):
                np.savez(self.path / f"{number:02d}.npz", **row)

    def require_right(self, out: Path) -> int:
        """Every answer there is is whole and right; how many there are."""
        found = 0
        for path in out.glob("[!.]*"):
            if path.suffix == ".npz":
                self._require(int(path.stem), dict(np.load(path)))
                found += 1
            elif path.suffix == ".parquet":
                table = pq.read_table(path).to_pydict()
                for number, row in enumerate(next(iter(table.values()))):
                    answer = {n: np.array(table[n][number])[None] for n in self.answers[0]}
                    self._require(int(str(row).rpartition(":")[2]), answer)
                    found += 1
            else:
                assert path.name == "job.json", path
        return found

    def _require(self, number: int, answer: Arrays) -> None:
        for name, array in self.answers[number].items():
            np.testing.assert_allclose(answer[name], array, rtol=1e-4, atol=1e-5)

    def require_whole(self, out: Path) -> None:
        """Every row has its answer once, every shard its mark, and there is nothing else."""
        assert self.require_right(out) == ROWS
        shards = {f"{number:06d}" for number in range(ROWS // SHARD_ROWS)}
        parts = {f"part-{shard}.parquet" for shard in shards}
        files = parts if self.parquet else {f"{number:02d}.npz" for number in range(ROWS)}
        assert {path.name for path in out.iterdir()} == files | {"job.json", ".shards"}
        marks = list((out / ".shards").iterdir())
        assert {path.name for path in marks} == {f"{shard}.json" for shard in shards}
        for path in marks:
            assert json.loads(path.read_text())["failed"] == {}


def _like(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One sample: other floats, the same of all else."""
    one = array[:1]
    return rng.standard_normal(one.shape).astype(one.dtype) if one.dtype.kind == "f" else one


def without_ray() -> None:
    """From here on a job's worker is in the command's process."""
    cluster.local_ray = lambda **_: nullcontext()  # type: ignore[assignment]
    run.MapPlan._finished = _finished  # type: ignore[method-assign]


def _finished(self: run.MapPlan, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    worker = run._Worker(
        str(self.bundle.path), str(self.job.folder), asdict(self.engine), 16, allow_nan=False
    )
    for shard in shards:
        said = worker({"shard": np.array([json.dumps(asdict(shard))])})
        yield {name: array[0] for name, array in said.items()}


def killed_maps(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`map` with its worker in the command's own process."""
    scratch, out = folder / "tmp", folder / "out"
    scratch.mkdir()
    found: Outcomes = Counter()
    source = Source(folder, chance.random() < 0.5, chance)
    about = ["--shard-rows", str(SHARD_ROWS), "--target", "ort-cpu"]
    command = ["map", str(OLD_BUNDLE), "--input", str(source.path), "-o", str(out), *about]
    finished(command, scratch, without_ray)
    shutil.rmtree(out)
    took = finished(command, scratch, without_ray)
    for _ in range(times):
        if chance.random() < 0.85:  # or it goes on with what was killed
            shutil.rmtree(out, ignore_errors=True)
        was_killed = killed(command, chance.uniform(0, 0.8 * took), scratch, without_ray)
        answers = source.require_right(out)
        left = [path for path in (*out.glob(".*"), *out.glob(".shards/.*")) if path.is_file()]
        if chance.random() < 0.3:
            finished(command, scratch, without_ray)
            source.require_whole(out)
        kept = {source.path.name} | ({out.name} if out.exists() else set())
        require_nothing_left(folder, scratch, kept)
        state = "all" if answers == ROWS else "some" if answers else "no"
        how = "killed" if was_killed else "ended before"
        found[f"{how}, {state} answers, {'left a file' if left else 'left nothing'}"] += 1
    finished(command, scratch, without_ray)
    source.require_whole(out)
    shutil.rmtree(scratch)
    return found


def killed_ray_maps(times: int, folder: Path, chance: Chance) -> Outcomes:
    """`map` with a Ray of its own, killed between its first moment and its last."""
    scratch, out = folder / "tmp", folder / "out"
    scratch.mkdir()
    source = Source(folder, chance.random() < 0.5, chance)
    about = ["--shard-rows", str(SHARD_ROWS), "--target", "ort-cpu"]
    words = ["-m", "crossfuse", "map", str(OLD_BUNDLE), "--input", str(source.path), "-o", str(out)]

    def begins() -> int:
        return begun_anew([*words, *about], scratch, os.setpgrp, folder)

    def ends() -> float:
        status, took = ended(begins(), LONGEST)
        assert status == 0, (folder / "stderr").read_text(errors="replace")
        source.require_whole(out)
        return took

    took = ends()
    found: Outcomes = Counter()
    for _ in range(times):
        shutil.rmtree(out, ignore_errors=True)
        process = begins()
        status, _ = ended(process, chance.uniform(0, took))
        assert not status, (folder / "stderr").read_text(errors="replace")
        seconds = _seconds_to_end(process)
        answers = source.require_right(out)
        if chance.random() < 0.2:
            ends()
        kept = {source.path.name} | ({out.name} if out.exists() else set())
        require_nothing_left(folder, scratch, kept)
        state = "all" if answers == ROWS else "some" if answers else "no"
        how = "killed" if status is None else "ended before"
        found[f"{how}, {state} answers, Ray's gone {'in 2 s' if seconds < 2 else 'later'}"] += 1
    shutil.rmtree(scratch)
    return found


def _seconds_to_end(command: int) -> float:
    """Wait until nobody is left whom a command started: in its group, or with its name."""
    start = time.monotonic()
    while left := {one for one in processes() if _is_of(one, command)}:
        assert time.monotonic() - start < SOON, f"processes outlived their command: {left}"
        time.sleep(0.02)
    return time.monotonic() - start


def processes() -> list[int]:
    """All that there are."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _is_of(process: int, command: int) -> bool:
    try:
        marks = (Path("/proc") / str(process) / "environ").read_bytes()
        return os.getpgid(process) == command or f"{OWNER}={command}:".encode() in marks
    except OSError:
        return False


CAMPAIGNS = (killed_maps, killed_ray_maps)
