"""``crossfuse map``: shards through a pool of workers on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import open_bundle
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.runtime.backends import best_target
from crossfuse.serve.bulk.job import Job, open_job
from crossfuse.serve.bulk.rows import Shard, list_shards, read_rows, write_answers
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.request_engine import Request

__all__ = ["MapOptions", "MapReport", "map_rows"]


@dataclass(frozen=True)
class MapOptions:
    """How a job is done.

    Args:
        engine: how workers open the bundle.
        workers: processes with a session each.
        num_cpus: that a worker reserves, and its threads unless ``engine`` says otherwise.
        num_gpus: that a worker reserves.
        batch_size: rows answered at once, where their shapes allow.
        shard_rows: rows that are done as a whole; what a kill may cost.
        allow_nan: whether rows may hold NaN.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int = 16
    shard_rows: int = 64
    allow_nan: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise InputError("an option must be positive", where=name, got=getattr(self, name))


@dataclass(frozen=True)
class MapReport:
    """What a job came to: rows in all, of them failed, and those that an earlier run had done."""

    rows: int
    failed: int
    done_before: int
    output: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def map_rows(
    bundle: Path,
    source: Path,
    output: Path,
    options: MapOptions | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> MapReport:
    """Answer every row that has no answer yet. Ray must be running.

    Raises:
        InputError: an input that can't be read as rows, an output that holds something else.
        BundleError: as :func:`crossfuse.runtime.load`.
    """
    import ray.data

    chosen = options or MapOptions()
    opened = open_bundle(bundle)
    target = chosen.engine.target or best_target(opened.targets)
    shards = list_shards(source, chosen.shard_rows)
    job = open_job(output, opened.path, target, shards)
    open_shards = [shard for shard in shards if not job.is_done(shard)]
    total = sum(shard.rows for shard in shards)
    before = total - sum(shard.rows for shard in open_shards)
    if open_shards:
        engine = replace(
            chosen.engine,
            target=target,
            threads=chosen.engine.threads or max(1, round(chosen.num_cpus)),
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = ray.data.from_items(
            [{"shard": json.dumps(asdict(shard))} for shard in open_shards],
            override_num_blocks=len(open_shards),
        )
        finished = rows.map_batches(
            _Worker,
            fn_constructor_args=(
                str(opened.path),
                str(output.resolve()),
                asdict(engine),
                chosen.batch_size,
                chosen.allow_nan,
            ),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=chosen.workers),
            num_cpus=chosen.num_cpus,
            num_gpus=chosen.num_gpus or None,
        )
        done, failed = before, 0
        for result in finished.iter_rows():
            done += int(result["rows"])
            failed += int(result["failed"])
            progress(f"{done} of {total} rows" + (f", {failed} failed" if failed else ""))
    return MapReport(total, job.collect_failures(shards), before, str(output))


class _Worker:
    """An actor of the pool: a session that answers shard after shard."""

    def __init__(
        self, bundle: str, output: str, engine: Mapping[str, Any], batch_size: int, allow_nan: bool
    ) -> None:
        self._engine = open_engine(
            bundle, EngineOptions(**engine), limits=Limits(max_batch=1 << 30, allow_nan=allow_nan)
        )
        self._job = Job(Path(output))
        self._batch = batch_size

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (text,) = batch["shard"]
        data = json.loads(text)
        shard = Shard(**{**data, "files": tuple(data["files"])})
        names: list[str] = []
        answers: list[dict[str, NDArray[Any]]] = []
        failed: dict[str, str] = {}
        pending: list[tuple[str, Request]] = []

        def answer() -> None:
            for (name, _), got in zip(
                pending, self._engine.answer([request for _, request in pending]), strict=True
            ):
                if isinstance(got, CrossfuseError):
                    failed[name] = str(got)
                else:
                    names.append(name)
                    answers.append(got)
            pending.clear()

        for row in read_rows(shard, self._engine):
            if not isinstance(row.request, Request):
                failed[row.name] = str(row.request)
                continue
            pending.append((row.name, row.request))
            if len(pending) == self._batch:
                answer()
        answer()
        write_answers(shard, self._job.folder, names, answers, self._engine)
        self._job.finish(shard, failed)
        return {"rows": np.array([shard.rows]), "failed": np.array([len(failed)])}
