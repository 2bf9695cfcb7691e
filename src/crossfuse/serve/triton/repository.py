"""A model repository for Triton, made of a bundle: ``NAME`` over the Python backend, and native
models where graphs allow."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.files import put_in_place
from crossfuse.core.target import Target
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.runtime.backends import best_target, target_of_bundle
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, boundary, largest_batch
from crossfuse.serve.merging import Merging
from crossfuse.serve.triton.config import ModelConfig, WarmUp

__all__ = ["TritonOptions", "write_repository"]

_NATIVE_FILES = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
_SUFFIXES = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
_MARK = "# Written by crossfuse.\n"


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
    """

    name: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    instances: int = 1
    queue_ms: float = 2.0
    native: bool = True


def write_repository(
    bundle: str | Path | Bundle, repository: str | Path, options: TritonOptions | None = None
) -> list[str]:
    """Put a bundle into a model repository, whose other models stay.

    Returns:
        names of the models written.

    Raises:
        InputError: a name that Triton can't take, or a folder in the way that crossfuse didn't
            write.
        BundleError: as :func:`crossfuse.runtime.load`.
    """
    chosen = options or TritonOptions()
    opened = open_bundle(bundle)
    opened.verified(opened.manifest.files)
    root = Path(repository)
    name = chosen.name or re.sub(r"[^\w.-]+", "_", opened.manifest.name)
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise InputError(
            "a model's name must be letters, digits, dots, dashes and underscores", got=repr(name)
        )
    target = chosen.engine.target or best_target(opened.targets)
    entry = opened.target(target)
    known = target_of_bundle(target, entry.package)
    inputs = smallest_inputs(opened)
    root.mkdir(parents=True, exist_ok=True)
    models = [_python_model(opened, name, known, chosen)]
    if chosen.native and set(entry.stages) == {"model"} and known.triton is not None:
        models.append(_native_model(opened, name, known, known.triton, chosen))
    for config in models:
        _put_in_place(root, config, opened, target, inputs)
    text = (
        files("crossfuse.serve.triton").joinpath("README.template.md").read_text(encoding="utf-8")
    )
    (root / "README.md").write_text(
        text.replace("@@MODELS@@", _described(models)).replace("@@NAME@@", name), encoding="utf-8"
    )
    return [config.name for config in models]


def _python_model(bundle: Bundle, name: str, target: Target, options: TritonOptions) -> ModelConfig:
    context, queries, outputs = boundary(bundle.manifest)
    inputs = (*context, *queries)
    engine = options.engine
    parameters = {
        "target": target.name,
        "threads": "" if engine.threads is None else str(engine.threads),
        "cache_mb": str(engine.cache_mb),
        "merge": "true" if engine.merge else "false",
        "max_rows": str(engine.max_rows),
        "max_batch": str(options.limits.max_batch),
        "allow_nan": "true" if options.limits.allow_nan else "false",
    }
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
        parameters=parameters,
    )


def _native_model(
    bundle: Bundle, name: str, target: Target, platform: str, options: TritonOptions
) -> ModelConfig:
    stage = bundle.manifest.stages["model"]
    return ModelConfig(
        f"{name}-{_SUFFIXES[platform]}",
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


def _put_in_place(
    root: Path,
    config: ModelConfig,
    bundle: Bundle,
    target: str,
    inputs: Mapping[str, NDArray[Any]] | None,
) -> None:
    """Write one model's folder, whole, in place of an older one of ours."""
    folder = root / config.name
    old = folder / "config.pbtxt"
    if folder.exists() and not (
        old.is_file() and old.read_text(encoding="utf-8").startswith(_MARK)
    ):
        raise InputError(
            "the repository holds a model of this name that crossfuse didn't write",
            where=folder,
            do=Advice("Use {}", Said("--name", "name")),
        )
    partial = root / f".{config.name}.partial-{secrets.token_hex(6)}"
    try:
        _write_model(partial, config, bundle, target, inputs)
        put_in_place(partial, folder)
    except OSError as error:
        raise InputError(
            f"the repository can't be written: {error.strerror or error}", where=folder
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_model(
    folder: Path,
    config: ModelConfig,
    bundle: Bundle,
    target: str,
    inputs: Mapping[str, NDArray[Any]] | None,
) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    if inputs is not None:
        config = replace(config, warm_up=_write_warm_up(folder / "warmup", config, inputs))
    entry = bundle.target(target)
    if config.backend == "python":
        program = (
            "from crossfuse.serve.triton.model import TritonPythonModel\n\n__all__ = "
            '["TritonPythonModel"]\n'
        )
        (version / "model.py").write_text(program, encoding="utf-8")
        with write_bundle(version / "bundle") as writer:
            names = list(bundle.manifest.files)
            writer.adopt(bundle, names, copied=names)
            writer.commit(bundle.manifest)
    else:
        graph, *others = (bundle.path / name for name in (entry.stages["model"], *entry.files))
        shutil.copyfile(graph, version / str(config.file))
        for path in others:
            if path != graph:
                shutil.copyfile(path, version / path.name)
    (folder / "config.pbtxt").write_text(_MARK + config.text(), encoding="utf-8")


def _write_warm_up(folder: Path, config: ModelConfig, inputs: Mapping[str, NDArray[Any]]) -> WarmUp:
    """The reference's smallest inputs as raw bytes; of a batch, the first sample."""
    folder.mkdir()
    names, shapes = {}, {}
    for i, spec in enumerate(config.inputs):
        array = np.ascontiguousarray(
            inputs[spec.name][:1] if config.max_batch else inputs[spec.name]
        )
        names[spec.name] = f"input-{i}"
        shapes[spec.name] = array.shape
        (folder / names[spec.name]).write_bytes(array.tobytes())
    return WarmUp(names, shapes)


def _described(models: Sequence[ModelConfig]) -> str:
    lines = []
    for config in models:
        batches = (
            f"merges requests up to a batch of {config.max_batch}"
            if config.max_batch
            else "does not merge requests"
        )
        lines.append(
            f"- `{config.name}`: {config.backend} backend, {config.instances} instance(s); Triton "
            f"{batches}"
        )
    return "\n".join(lines)
