"""What Triton is told of a bundle's models: one that answers, one that generates, and native ones
where graphs allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from crossfuse.bundle.store import Bundle
from crossfuse.core.target import Target
from crossfuse.core.tensors import TensorSpec
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, boundary, largest_batch
from crossfuse.serve.merging import Merging
from crossfuse.serve.triton.config import TEXT, TEXT_OUT, ModelConfig, TextSpec

__all__ = [
    "GENERATES",
    "SUFFIXES",
    "TritonOptions",
    "generation_model",
    "native_model",
    "python_model",
]

_NATIVE_FILES = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
SUFFIXES = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
"""What the names of native models end in, by platform."""

GENERATES = "generate"
"""What the name of the model that generates ends in."""


@dataclass(frozen=True)
class TritonOptions:
    """How Triton runs the models.

    Args:
        name: of the model; the bundle's where omitted.
        engine: how the bundle is opened.
        limits: of a request.
        instances: copies of the model, each a process with a cache of its own.
        queue_ms: how long a request may wait for others to share a call with.
        native: whether to add models of Triton's own backends.
        slots: of a bundle that decodes, sequences that the model which generates has side by side;
            0 for no such model.
    """

    name: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    instances: int = 1
    queue_ms: float = 2.0
    native: bool = True
    slots: int = 8


def python_model(bundle: Bundle, name: str, target: Target, options: TritonOptions) -> ModelConfig:
    """Over the Python backend: it answers as a session does."""
    context, queries, outputs = boundary(bundle.manifest)
    inputs = (*context, *queries)
    return ModelConfig(
        name,
        "python",
        inputs,
        outputs,
        max_batch=0 if context else _max_batch(bundle, inputs, outputs, options),
        optional=[spec.name for spec in context],
        instances=options.instances,
        gpu=target.needs_gpu,
        queue_ms=options.queue_ms,
        parameters=_parameters(target, options),
    )


def generation_model(
    bundle: Bundle, name: str, target: Target, options: TritonOptions
) -> ModelConfig:
    """Over the Python backend. Tensors come flat, as Triton's generate extension has no others."""
    manifest = bundle.manifest
    assert manifest.decode is not None
    context = manifest.stages["context"].inputs
    flat = [TensorSpec(spec.name, spec.dtype, ("numbers",)) for spec in context]
    prompt = TensorSpec(manifest.decode.tokens, "int64", ("tokens",))
    inputs: list[TensorSpec | TextSpec] = [TextSpec(TEXT), prompt, *flat]
    outputs: list[TensorSpec | TextSpec] = [
        TextSpec(TEXT_OUT),
        TensorSpec("tokens", "int64", ("tokens",)),
        TensorSpec("log_probs", "float32", ("tokens",)),
        TensorSpec("ended", "bool", (1,)),
    ]
    own = {"slots": str(options.slots), "max_queue": str(options.limits.max_queue)}
    return ModelConfig(
        f"{name}-{GENERATES}",
        "python",
        inputs,
        outputs,
        optional=[spec.name for spec in inputs],
        instances=options.instances,
        gpu=target.needs_gpu,
        parameters={**_parameters(target, options), **own},
        decoupled=True,
    )


def _parameters(target: Target, options: TritonOptions) -> dict[str, str]:
    engine = options.engine
    return {
        "target": target.name,
        "threads": "" if engine.threads is None else str(engine.threads),
        "cache_mb": str(engine.cache_mb),
        "merge": "true" if engine.merge else "false",
        "max_rows": str(engine.max_rows),
        "max_batch": str(options.limits.max_batch),
        "allow_nan": "true" if options.limits.allow_nan else "false",
    }


def native_model(
    bundle: Bundle, name: str, target: Target, platform: str, options: TritonOptions
) -> ModelConfig:
    """Over a backend of Triton's own, which ``platform`` names."""
    stage = bundle.manifest.stages["model"]
    return ModelConfig(
        f"{name}-{SUFFIXES[platform]}",
        platform,
        stage.inputs,
        stage.outputs,
        max_batch=_max_batch(bundle, stage.inputs, stage.outputs, options),
        instances=options.instances,
        gpu=target.needs_gpu,
        queue_ms=options.queue_ms,
        file=_NATIVE_FILES[platform],
    )


def _max_batch(
    bundle: Bundle,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    options: TritonOptions,
) -> int:
    """The largest batch that Triton may make, or 0 for none.

    Its batch is the first axis of every tensor, and as small as 1.
    """
    merging = Merging(inputs, outputs)
    if merging.dim is None or len(merging.batched) < len(inputs) or not options.engine.merge:
        return 0
    dim = bundle.manifest.dims.get(merging.dim)
    if dim is not None and dim.min > 1:
        return 0
    return min(options.engine.max_rows, largest_batch(bundle.manifest, options.engine.max_rows))
