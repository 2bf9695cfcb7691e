"""Which kind of source something is: decided here, once per command, and nowhere else."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from crossfuse.errors import Advice, InputError, Said, unknown
from crossfuse.models.registry import ZOO

__all__ = ["DIFFUSERS", "HUGGING_FACE", "SourceKind", "kind_of"]

HUGGING_FACE = "hf:"
"""What names of checkpoints of `transformers` begin with."""

DIFFUSERS = "diffusers:"
"""What names of folders in the format of `diffusers` begin with."""


class SourceKind(Enum):
    """What a source is; the values are the manifest's words."""

    ZOO = "zoo"
    HUGGINGFACE = "huggingface"
    DIFFUSERS = "diffusers"
    ONNX = "onnx"
    FACTORY = "factory"
    SPEC = "spec"


def kind_of(source: object) -> SourceKind:
    """Which kind of source something is.

    Raises:
        InputError: none.
    """
    from crossfuse.export.sources.factory import is_factory, is_onnx
    from crossfuse.spec.model_spec import ModelSpec

    if isinstance(source, ModelSpec):
        return SourceKind.SPEC
    if not isinstance(source, str):
        raise _no_source(source)
    if source.startswith(HUGGING_FACE):
        return SourceKind.HUGGINGFACE
    if source.startswith(DIFFUSERS):
        return SourceKind.DIFFUSERS
    if source in ZOO:
        return SourceKind.ZOO
    if is_onnx(source):
        return SourceKind.ONNX
    if is_factory(source):
        return SourceKind.FACTORY
    raise unknown(
        "unknown source",
        source,
        ZOO,
        expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, diffusers:FOLDER[/COMPONENT], "
        "package.module:factory, path/file.py:factory or model.onnx",
        do=_meant(source),
    )


def _no_source(source: object) -> InputError:
    """The error for something that is neither a text nor a spec."""
    got = type(source).__name__
    if hasattr(source, "forward"):
        do = "Give crossfuse.ModelSpec(module, inputs={name: example tensor, ...})"
        return InputError("a module alone is no source: its inputs are not known", got=got, do=do)
    if callable(source):
        return InputError(
            "a function is no source",
            got=got,
            expected="what it returns: a crossfuse.ModelSpec",
            do="Call it",
        )
    return InputError("a source is a crossfuse.ModelSpec or a text", got=got)


def _meant(source: str) -> str | Advice:
    """Advice about a source that is none: what it may have been meant to be."""
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        build = Said("`crossfuse build`", "crossfuse.build")
        return Advice("It is a folder with a bundle; {} adds a target to one", build)
    if (folder / "model_index.json").is_file():
        return f"A pipeline of diffusers is named diffusers:{source}"
    if source and (folder.is_dir() or source.count("/") == 1):
        return f"A checkpoint of transformers is named hf:{source}"
    return "A function in a module is named package.module:factory" if "." in source else _LIST


_LIST = Advice("{} lists the zoo", Said("`crossfuse models`", "crossfuse.models.registry.ZOO"))
