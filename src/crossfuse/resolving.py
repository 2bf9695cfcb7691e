"""From a source, as users name it, to the spec of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.arrays import load_arrays
from crossfuse.errors import Advice, InputError, Said, unknown
from crossfuse.models.registry import SIZES, ZOO, zoo_spec

if TYPE_CHECKING:
    from crossfuse.model_spec import ModelSpec

__all__ = ["describe", "resolve", "resolve_again"]

HUGGING_FACE = "hf:"


def resolve(
    source: ModelSpec | str,
    *,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    example: str | Path | None = None,
) -> ModelSpec:
    """The spec behind a source; the options are those of `export`.

    Raises:
        InputError: unknown name, or a factory that fails.
    """
    if not isinstance(source, str):
        return _given(source)
    from crossfuse.export.sources import factory_spec, is_factory, is_onnx

    if source.startswith(HUGGING_FACE):
        from crossfuse.export.huggingface.source import huggingface_spec

        return huggingface_spec(source.removeprefix(HUGGING_FACE), task=task, trust_remote_code=trust_remote_code)
    if is_onnx(source):
        from crossfuse.export.onnx_files import onnx_spec

        return onnx_spec(source, None if example is None else load_arrays(Path(example)))
    if is_factory(source):
        return factory_spec(source)
    if source not in ZOO:
        raise unknown(
            "unknown source",
            source,
            ZOO,
            expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, package.module:factory, path/file.py:factory or "
            "model.onnx",
            do=_meant(source),
        )
    return zoo_spec(source, size, seed, checkpoint)


def _given(source: object) -> ModelSpec:
    from crossfuse.model_spec import ModelSpec

    if isinstance(source, ModelSpec):
        return source
    got = type(source).__name__
    if hasattr(source, "forward"):
        do = "Give crossfuse.ModelSpec(module, inputs={name: example tensor, ...})"
        raise InputError("a module alone is no source: its inputs are not known", got=got, do=do)
    if callable(source):
        raise InputError("a function is no source", got=got, expected="what it returns: a crossfuse.ModelSpec", do="Call it")
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
    source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None, drop_outputs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What the manifest says about a source; the options are those of `export`."""
    return _described(source, size, seed, checkpoint, task) | ({"drop_outputs": list(drop_outputs)} if drop_outputs else {})


def _described(source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None) -> dict[str, Any]:
    if not isinstance(source, str):
        return {"kind": "spec", "name": source.name}
    if source in ZOO:
        about: dict[str, Any] = {"kind": "zoo", "name": source}
        return about | ({"checkpoint": checkpoint} if checkpoint else {"size": size, "seed": seed})
    if source.startswith(HUGGING_FACE):
        return {"kind": "huggingface", "name": source} | ({"task": task} if task else {})
    return {"kind": "onnx" if source.endswith(".onnx") else "factory", "name": source}


def resolve_again(
    source: ModelSpec | str | None, about: Mapping[str, Any], *, checkpoint: str | None = None, task: str | None = None
) -> ModelSpec:
    """The spec of the model that a bundle was exported from, for `verify` and `profile`.

    A bundle may come from anywhere, so what it says about its source names no code, file or address here: of it comes the name
    of a zoo model, with its size and seed, and nothing else. The rest is the caller's to say.

    Args:
        source: as for `export`; None for the zoo model that the bundle names.
        about: what the manifest says about the source.
        checkpoint, task: as for `export`.

    Raises:
        InputError: the bundle names no zoo model, or was made with a checkpoint or task that isn't given.
    """
    size, seed = about.get("size", SIZES[-1]), about.get("seed", 0)
    if size not in SIZES or type(seed) is not int:
        raise InputError("the bundle names a size or seed that no zoo model has", got=f"{size!r}, {seed!r}")
    if source is None:
        name = str(about.get("name"))
        if about.get("kind") != "zoo" or name not in ZOO:
            raise InputError(
                "the model that the bundle was exported from is loaded again only where it is the zoo's: a bundle may come "
                "from anywhere, so no code, file or address that it names is used",
                got=f"{about.get('kind')} {name}",
                do=Advice("If you trust that, name it yourself: {}", Said("--source SOURCE", "source=...")),
            )
        source = name
    for option, given, matters in (
        ("checkpoint", checkpoint, isinstance(source, str) and source in ZOO and about.get("name") == source),
        ("task", task, isinstance(source, str) and source.startswith(HUGGING_FACE)),
    ):
        if matters and given is None and about.get(option) is not None:
            raise InputError(
                f"the bundle was exported with a {option}, which is not taken from it: it may come from anywhere",
                got=about[option],
                do=Advice(
                    "If you trust that, name it yourself: {} ({} too, unless it is the zoo's)",
                    Said(f"--{option}", f"{option}=..."),
                    Said("--source", "source=..."),
                ),
            )
    return resolve(source, size=size, seed=seed, checkpoint=checkpoint, task=task)
