"""The Python backend's model: Triton's requests to a `RequestEngine`, and back.

Imported by the server, where Triton's module is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from crossfuse.errors import CrossfuseError, InputError
from crossfuse.runtime.generation.scheduler import QueueFullError
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.metrics import BATCHES, SECONDS
from crossfuse.serve.request_engine import (
    Request,
    RequestEngine,
    UnexpectedError,
    UnknownContextError,
)

__all__ = ["TritonPythonModel", "folder_of", "opened_engine", "refused", "settings_of"]


class TritonPythonModel:
    """What Triton's Python backend looks for in ``model.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that lies beside ``model.py``."""
        self._engine = opened_engine(args, settings_of(json.loads(args["model_config"])))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests that Triton hands over."""
        asked: list[Request | CrossfuseError] = [self._read(request) for request in requests]
        good = [request for request in asked if isinstance(request, Request)]
        answers = iter(self._engine.answer(good))
        return [
            _answered(next(answers) if isinstance(request, Request) else request)
            for request in asked
        ]

    def finalize(self) -> None:
        """Release the engines."""
        self._engine.session.close()

    def _read(self, request: Any) -> Request | CrossfuseError:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            parameters = json.loads(request.parameters() or "{}")
        except Exception as error:  # noqa: BLE001 -- whatever the server's module raises, it belongs to this request alone
            return InputError(f"the request can't be read: {error}")
        context_id = parameters.get("context_id") if isinstance(parameters, dict) else None
        if context_id is not None and not isinstance(context_id, str):
            return InputError("the request is malformed", where="context_id", expected="str")
        return Request(inputs, context_id)


class _Metrics:
    """Triton's own metrics endpoint shows what the engine counts."""

    def __init__(self, model: str) -> None:
        def family(name: str, about: str, kind: Any) -> Any:
            return pb_utils.MetricFamily(name=f"crossfuse_{name}", description=about, kind=kind)

        counter, gauge, histogram = (
            getattr(pb_utils.MetricFamily, kind) for kind in ("COUNTER", "GAUGE", "HISTOGRAM")
        )
        labels = {"model": model}
        # A family lives as long as it is referenced.
        self._families = {
            "seconds": family("stage_seconds", "Time of a stage's executions", histogram),
            "rows": family("batch_rows", "Queries answered by one call", histogram),
            "hits": family("context_cache_hits", "Contexts found in the cache", counter),
            "misses": family("context_cache_misses", "Contexts encoded", counter),
            "nbytes": family("context_cache_bytes", "Bytes of kept contexts", gauge),
        }
        self._stages = {
            stage: self._families["seconds"].Metric(
                labels=labels | {"stage": stage}, buckets=list(SECONDS)
            )
            for stage in ("context", "query", "model")
        }
        self._rows = self._families["rows"].Metric(
            labels=labels, buckets=[float(bound) for bound in BATCHES]
        )
        self._counts = {
            name: self._families[name].Metric(labels=labels)
            for name in ("hits", "misses", "nbytes")
        }

    def stage(self, name: str, seconds: float) -> None:
        self._stages[name].observe(seconds)

    def batch(self, rows: int) -> None:
        self._rows.observe(float(rows))

    def cache(self, hit: bool, nbytes: int, kept: int) -> None:
        self._counts["hits" if hit else "misses"].increment(1)
        self._counts["nbytes"].set(nbytes)


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a model's configuration."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def folder_of(args: Mapping[str, str]) -> Path:
    """The bundle that lies beside ``model.py``."""
    return Path(args["model_repository"]) / args["model_version"] / "bundle"


def opened_engine(args: Mapping[str, str], given: Mapping[str, str]) -> RequestEngine:
    """Load the bundle as its configuration says.

    Args:
        args: what Triton tells a model at its start.
        given: the configuration's parameters.
    """
    device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
    options = EngineOptions(
        target=given["target"],
        threads=int(given["threads"]) if given.get("threads") else None,
        cache_mb=int(given["cache_mb"]),
        merge=given["merge"] == "true",
        max_rows=int(given["max_rows"]),
        device=device,
    )
    limits = Limits(max_batch=int(given["max_batch"]), allow_nan=given["allow_nan"] == "true")
    meter = _Metrics(args["model_name"])
    return open_engine(folder_of(args), options, limits=limits, meter=meter, trial=False)


def _answered(answer: dict[str, Any] | CrossfuseError) -> Any:
    try:
        return _respond(answer)
    except Exception as error:  # noqa: BLE001 -- whatever the server's module raises, it belongs to this request alone
        return _respond(UnexpectedError(f"the answer can't be given: {error}"))


def _respond(answer: dict[str, Any] | CrossfuseError) -> Any:
    if isinstance(answer, CrossfuseError):
        return refused(answer)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items()]
    )


def refused(error: CrossfuseError) -> Any:
    """The response that says what is wrong."""
    codes = pb_utils.TritonError
    code = codes.NOT_FOUND if isinstance(error, UnknownContextError) else codes.INVALID_ARG
    if isinstance(error, QueueFullError):
        code = codes.UNAVAILABLE
    elif isinstance(error, UnexpectedError) or not isinstance(error, InputError):
        code = codes.INTERNAL
    return pb_utils.InferenceResponse(error=codes(str(error), code))
