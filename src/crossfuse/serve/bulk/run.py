"""``crossfuse map``: shards through a pool of workers on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.files import write_whole
from crossfuse.core.json_codec import JsonData
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.errors import CrossfuseError, Door, InputError
from crossfuse.serve.bulk.answering import Answering, require_generates
from crossfuse.serve.bulk.job import Job, open_job
from crossfuse.serve.bulk.questions import Question, list_questions, read_questions
from crossfuse.serve.bulk.rows import Shard, list_shards, read_rows, write_answers
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import (
    EngineOptions,
    open_engine,
    open_generation,
    ready_target,
)
from crossfuse.serve.request_engine import Request

__all__ = ["MapOptions", "MapPlan", "MapReport", "map_rows", "planned"]

_GO_ON = "Then run the same command again: it goes on"


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
        generate: settings of generation, in place of the bundle's own: each row gets a text. None:
            each row gets the model's outputs.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int = 16
    shard_rows: int = 64
    allow_nan: bool = False
    generate: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise InputError("an option must be positive", where=name, got=getattr(self, name))


@dataclass(frozen=True)
class MapReport(JsonData):
    """What a job came to: rows in all, of them failed, and those that an earlier run had done."""

    rows: int
    failed: int
    done_before: int
    output: str


@dataclass(frozen=True)
class MapPlan:
    """A job that was looked at and begun, before Ray runs: its bundle can be opened, its input read
    and its output written.

    Attributes:
        bundle: opened.
        engine: how workers open it.
        options: of the job.
        shards: of its input.
        job: its folder.
    """

    bundle: Bundle
    engine: EngineOptions
    options: MapOptions
    shards: list[Shard]
    job: Job

    def run(self, progress: Callable[[str], None] = lambda _: None) -> MapReport:
        """Answer every row that has no answer yet. Ray must be running.

        Raises:
            InputError: the output can't be written.
            BundleError: the bundle was damaged or replaced meanwhile.
        """
        todo = [shard for shard in self.shards if not self.job.is_done(shard)]
        total = sum(shard.rows for shard in self.shards)
        before = total - sum(shard.rows for shard in todo)
        done, failed = before, 0
        for result in self._finished(todo):
            _require_written(str(result["stopped"]), self.job.folder)
            done += int(result["rows"])
            failed += int(result["failed"])
            progress(f"{done} of {total} rows" + (f", {failed} failed" if failed else ""))
        failed = self.job.collect_failures(self.shards)
        return MapReport(total, failed, before, str(self.job.folder))

    def _finished(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """What workers say of each shard."""
        if not shards:
            return
        import ray.data

        options = self.options
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        about: list[Any] = [
            str(self.bundle.path.resolve()),
            str(self.job.folder.resolve()),
            asdict(self.engine),
            options.batch_size,
            options.allow_nan,
        ]
        texts = [] if options.generate is None else [json.dumps(options.generate)]
        rows = ray.data.from_items(
            [{"shard": json.dumps(asdict(shard))} for shard in shards],
            override_num_blocks=len(shards),
        )
        finished = rows.map_batches(
            _TextWorker if texts else _Worker,
            fn_constructor_args=(*about, *texts),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus or None,
        )
        yield from finished.iter_rows()


def planned(
    bundle: Path | Bundle, source: Path, output: Path, options: MapOptions | None = None
) -> MapPlan:
    """Look at all that a job needs, and begin it. Ray need not run.

    Raises:
        InputError: an input that can't be read as rows, an output that holds something else.
        BundleError: as :func:`crossfuse.runtime.load`.
    """
    chosen = options or MapOptions()
    threads = chosen.engine.threads or max(1, round(chosen.num_cpus))
    engine = replace(chosen.engine, threads=threads)
    opened = open_bundle(bundle)
    engine = replace(engine, target=ready_target(opened, engine))
    if chosen.generate is not None:
        require_generates(opened.manifest, chosen.generate)
    listed = list_shards if chosen.generate is None else list_questions
    shards = listed(source, chosen.shard_rows)
    job = open_job(output, opened.path, str(engine.target), shards, chosen.generate)
    return MapPlan(opened, engine, chosen, shards, job)


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
    return planned(bundle, source, output, options).run(progress)


def _require_written(stopped: str, folder: Path) -> None:
    """Raise what kept a worker from writing, as one error."""
    if stopped:
        reason, do = json.loads(stopped)
        raise InputError(
            f"the answers can't be written: {reason}",
            where=folder,
            do=f"{do}. {_GO_ON}" if do else "When they can, run the same command again: it goes on",
        )


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
        shard = _shard_of(batch)
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
        return _stored(
            self._job,
            shard,
            failed,
            lambda: write_answers(shard, self._job.folder, names, answers, self._engine),
        )


class _TextWorker:
    """An actor of the pool: a session that generates a text for each row, shard after shard."""

    def __init__(
        self,
        bundle: str,
        output: str,
        engine: Mapping[str, Any],
        batch_size: int,
        allow_nan: bool,
        settings: str,
    ) -> None:
        limits = Limits(max_batch=1 << 30, allow_nan=allow_nan)
        session, processor = open_generation(bundle, EngineOptions(**engine))
        self._answering = Answering(session, processor, json.loads(settings), batch_size, limits)
        self._job = Job(Path(output))

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shard = _shard_of(batch)
        failed: dict[str, str] = {}
        lines: list[str] = []

        def questions() -> Iterator[Question]:
            for name, found in read_questions(shard):
                if isinstance(found, InputError):
                    failed[name] = str(found)
                else:
                    yield found

        for name, answer in self._answering.answers(questions()):
            if isinstance(answer, CrossfuseError):
                failed[name] = str(answer)
            else:
                lines.append(json.dumps({"row": name, **answer}, ensure_ascii=False))

        def write() -> dict[str, str]:
            if lines:
                path = self._job.folder / f"part-{shard.index:06d}.jsonl"
                write_whole(path, "\n".join(lines) + "\n")
            return {}

        return _stored(self._job, shard, failed, write)


def _shard_of(batch: Mapping[str, NDArray[Any]]) -> Shard:
    (text,) = batch["shard"]
    data = json.loads(text)
    return Shard(**{**data, "files": tuple(data["files"])})


def _stored(
    job: Job, shard: Shard, failed: dict[str, str], write: Callable[[], Mapping[str, str]]
) -> dict[str, NDArray[Any]]:
    """Write a shard's answers and mark it; rows that can't be stored have failed, too."""
    stopped = ""
    try:
        failed |= write()
        job.finish(shard, failed)
    except (OSError, InputError) as error:
        # Not the row's fault, and the same for the next: told, because Ray would try again.
        stopped = json.dumps(_why(error))
    return {
        "rows": np.array([0 if stopped else shard.rows]),
        "failed": np.array([len(failed)]),
        "stopped": np.array([stopped]),
    }


def _why(error: OSError | InputError) -> tuple[str, str | None]:
    """What kept a worker from writing, and what helps."""
    if isinstance(error, OSError):
        return reason_of(error), help_for(error, writing=True)
    fields = error.fields(Door.COMMAND_LINE)
    return str(fields["what"]), fields["do"]
