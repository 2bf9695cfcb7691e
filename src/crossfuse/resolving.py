"""From a source, as users name it, to the spec of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.arrays import load_arrays
from crossfuse.checkpoint_weights import MISSING
from crossfuse.errors import InputError
from crossfuse.models.registry import ZOO, zoo_spec

if TYPE_CHECKING:
    from crossfuse.model_spec import ModelSpec

__all__ = ["accepted", "describe", "options_of", "resolve"]

HUGGING_FACE = "hf:"


def resolve(
    source: ModelSpec | str,
    *,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    example: str | Path | None = None,
) -> ModelSpec:
    """The spec behind a source; the options are those of `export`.

    Raises:
        InputError: unknown name, or a factory that fails.
    """
    if not isinstance(source, str):
        return source
    from crossfuse.export.sources import factory_spec, is_factory, is_onnx

    if source.startswith(HUGGING_FACE):
        from crossfuse.export.huggingface.source import huggingface_spec

        return huggingface_spec(
            source.removeprefix(HUGGING_FACE), task=task, trust_remote_code=trust_remote_code, allow_missing=allow_missing
        )
    if is_onnx(source):
        from crossfuse.export.onnx_files import onnx_spec

        return onnx_spec(source, None if example is None else load_arrays(Path(example)))
    if is_factory(source):
        return factory_spec(source)
    if source not in ZOO:
        raise InputError(
            "unknown source",
            got=repr(source),
            expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, package.module:factory, path/file.py:factory or "
            "model.onnx",
            do="See `crossfuse models`",
        )
    return zoo_spec(source, size, seed, checkpoint, allow_missing=allow_missing)


def accepted(spec: ModelSpec, step: Callable[[str], None] = lambda _: None) -> ModelSpec:
    """The spec as an export takes it: of a module whose results depend on its inputs alone, its half floats widened.

    Raises:
        InputError: the module is random, or in half precision and can't be widened.
    """
    from crossfuse.export.half_sources import widened
    from crossfuse.verify.repeatable import require_repeatable

    step("running the model twice")
    require_repeatable(spec)
    return widened(spec)


def options_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which a manifest's source is resolved again; weights that were missing then may be missing now."""
    found = {key: about[key] for key in ("size", "seed", "checkpoint", "task") if key in about}
    return found | ({"allow_missing": True} if about.get(MISSING) else {})


def describe(source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None) -> dict[str, Any]:
    """What the manifest says about a source; the options are those of `export`."""
    if not isinstance(source, str):
        return {"kind": "spec", "name": source.name}
    if source in ZOO:
        about: dict[str, Any] = {"kind": "zoo", "name": source}
        return about | ({"checkpoint": checkpoint} if checkpoint else {"size": size, "seed": seed})
    if source.startswith(HUGGING_FACE):
        return {"kind": "huggingface", "name": source} | ({"task": task} if task else {})
    return {"kind": "onnx" if source.endswith(".onnx") else "factory", "name": source}
