"""From a source, as users name it, to the spec of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from crossfuse.core.checkpoint_weights import MISSING
from crossfuse.core.npz import load_arrays
from crossfuse.errors import Advice, InputError, Said, unknown
from crossfuse.models.registry import SIZES, ZOO, zoo_spec

if TYPE_CHECKING:
    from torch import Tensor

    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Examples", "accepted", "describe", "resolve", "resolve_again", "with_tensors"]

Examples = str | Path | Iterable[str | Path] | None
"""NPZ files of real inputs."""

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
    example: Examples = (),
) -> ModelSpec:
    """The spec behind a source; the options are those of `export`.

    Raises:
        InputError: unknown name, a factory that fails, or examples that the model doesn't take.
    """
    files = (
        [Path(example)]
        if isinstance(example, str | Path)
        else [Path(file) for file in example or ()]
    )
    arrays = [(str(file), load_arrays(file)) for file in files]
    if isinstance(source, str) and source.endswith(".onnx"):
        from crossfuse.export.sources.onnx_file.load import onnx_spec

        return _with_examples(onnx_spec(source, arrays[0][1] if arrays else None), arrays[1:])
    if not isinstance(source, str):
        return _with_examples(_given(source), arrays)
    return _with_examples(
        _named(source, size, seed, checkpoint, task, trust_remote_code, allow_missing), arrays
    )


def with_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors."""
    import numpy as np
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _with_examples(
    spec: ModelSpec, examples: Sequence[tuple[str, Mapping[str, NDArray[Any]]]]
) -> ModelSpec:
    """The spec with real inputs from files among its examples."""
    if not examples:
        return spec
    tensors = []
    for where, arrays in examples:
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise InputError(
                    "an input has a dtype that no tensor has",
                    where=f"{where}, {name}",
                    got=array.dtype,
                )
        tensors.append(with_tensors(arrays))
        spec.sizes_of(tensors[-1], where)
    return replace(spec, examples=(*spec.examples, *tensors))


def _named(
    source: str,
    size: str,
    seed: int,
    checkpoint: str | None,
    task: str | None,
    trust_remote_code: bool,
    allow_missing: bool,
) -> ModelSpec:
    from crossfuse.export.sources.factory import factory_spec, is_factory

    if source.startswith(HUGGING_FACE):
        from crossfuse.export.sources.huggingface.spec import huggingface_spec

        return huggingface_spec(
            source.removeprefix(HUGGING_FACE),
            task=task,
            trust_remote_code=trust_remote_code,
            allow_missing=allow_missing,
        )
    if is_factory(source):
        return factory_spec(source)
    if source not in ZOO:
        raise unknown(
            "unknown source",
            source,
            ZOO,
            expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, package.module:factory, "
            "path/file.py:factory or "
            "model.onnx",
            do=_meant(source),
        )
    return zoo_spec(source, size, seed, checkpoint, allow_missing=allow_missing)


def accepted(spec: ModelSpec, step: Callable[[str], None] = lambda _: None) -> ModelSpec:
    """The spec as an export takes it: of a module whose results depend on its inputs alone, its
    half floats widened.

    Raises:
        InputError: the module is random, or in half precision and can't be widened.
    """
    from crossfuse.export.capture.half_sources import widened
    from crossfuse.parity.repeatable import require_repeatable

    step("running the model twice")
    require_repeatable(spec)
    return widened(spec)


def _given(source: object) -> ModelSpec:
    from crossfuse.spec.model_spec import ModelSpec

    if isinstance(source, ModelSpec):
        return source
    got = type(source).__name__
    if hasattr(source, "forward"):
        do = "Give crossfuse.ModelSpec(module, inputs={name: example tensor, ...})"
        raise InputError("a module alone is no source: its inputs are not known", got=got, do=do)
    if callable(source):
        raise InputError(
            "a function is no source",
            got=got,
            expected="what it returns: a crossfuse.ModelSpec",
            do="Call it",
        )
    raise InputError("a source is a crossfuse.ModelSpec or a text", got=got)


def _meant(source: str) -> str | Advice:
    """Advice about a source that is none: what it may have been meant to be."""
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        build = Said("`crossfuse build`", "crossfuse.build")
        return Advice("It is a folder with a bundle; {} adds a target to one", build)
    if folder.is_dir() or source.count("/") == 1:
        return f"A checkpoint of transformers is named hf:{source}"
    return "A function in a module is named package.module:factory" if "." in source else _LIST


_LIST = Advice("{} lists the zoo", Said("`crossfuse models`", "crossfuse.models.registry.ZOO"))


def describe(
    source: ModelSpec | str,
    size: str,
    seed: int,
    checkpoint: str | None,
    task: str | None,
    drop_outputs: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What the manifest says about a source; the options are those of `export`."""
    return _described(source, size, seed, checkpoint, task) | (
        {"drop_outputs": list(drop_outputs)} if drop_outputs else {}
    )


def _described(
    source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None
) -> dict[str, Any]:
    if not isinstance(source, str):
        return {"kind": "spec", "name": source.name}
    if source in ZOO:
        about: dict[str, Any] = {"kind": "zoo", "name": source}
        return about | ({"checkpoint": checkpoint} if checkpoint else {"size": size, "seed": seed})
    if source.startswith(HUGGING_FACE):
        return {"kind": "huggingface", "name": source} | ({"task": task} if task else {})
    return {"kind": "onnx" if source.endswith(".onnx") else "factory", "name": source}


def resolve_again(
    source: ModelSpec | str | None,
    about: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    task: str | None = None,
) -> ModelSpec:
    """The spec of the model that a bundle was exported from, for `verify` and `profile`.

    A bundle may come from anywhere, so what it says about its source names no code, file or address
    here: of it comes the name of a zoo model, with its size and seed, and nothing else. The rest is
    the caller's to say.

    Args:
        source: as for `export`; None for the zoo model that the bundle names.
        about: what the manifest says about the source.
        checkpoint, task: as for `export`.

    Raises:
        InputError: the bundle names no zoo model, or was made with a checkpoint or task that isn't
            given.
    """
    size, seed = about.get("size", SIZES[-1]), about.get("seed", 0)
    if size not in SIZES or type(seed) is not int:
        raise InputError(
            "the bundle names a size or seed that no zoo model has", got=f"{size!r}, {seed!r}"
        )
    if source is None:
        name = str(about.get("name"))
        if about.get("kind") != "zoo" or name not in ZOO:
            raise InputError(
                "the model that the bundle was exported from is loaded again only where it is the "
                "zoo's: a bundle may come "
                "from anywhere, so no code, file or address that it names is used",
                got=f"{about.get('kind')} {name}",
                do=Advice(
                    "If you trust that, name it yourself: {}", Said("--source SOURCE", "source=...")
                ),
            )
        source = name
    for option, given, matters in (
        (
            "checkpoint",
            checkpoint,
            isinstance(source, str) and source in ZOO and about.get("name") == source,
        ),
        ("task", task, isinstance(source, str) and source.startswith(HUGGING_FACE)),
    ):
        if matters and given is None and about.get(option) is not None:
            raise InputError(
                f"the bundle was exported with a {option}, which is not taken from it: it may come "
                "from anywhere",
                got=about[option],
                do=Advice(
                    "If you trust that, name it yourself: {} ({} too, unless it is the zoo's)",
                    Said(f"--{option}", f"{option}=..."),
                    Said("--source", "source=..."),
                ),
            )
    # Weights that were missing then may be missing now.
    return resolve(
        source,
        size=size,
        seed=seed,
        checkpoint=checkpoint,
        task=task,
        allow_missing=bool(about.get(MISSING)),
    )
