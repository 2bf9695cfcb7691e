"""What a text after ``diffusers:`` names: a model's folder, or the denoiser or another component of
a pipeline's folder, and of an autoencoder which half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossfuse.core.checkpoint_folder import CONFIG, read_json
from crossfuse.errors import InputError

__all__ = ["HALVES", "Located", "locate"]

PIPELINE = "model_index.json"

HALVES = ("encoder", "decoder")
"""Of an autoencoder: each is a source of its own."""

_DENOISERS = ("unet", "transformer", "prior")
"""Components that a pipeline calls at every step."""


@dataclass(frozen=True)
class Located:
    """A model's folder, with ``config.json`` and weights.

    Attributes:
        folder: of the model.
        half: of an autoencoder, one of `HALVES`; None where the text names none.
    """

    folder: Path
    half: str | None = None


def locate(text: str) -> Located:
    """The folder of a model.

    Args:
        text: a folder, a pipeline's folder with or without ``/component``, and behind an
            autoencoder ``/encoder`` or ``/decoder``.

    Raises:
        InputError: no such folder or component, one that is no model of diffusers, or a pipeline
            without a denoiser.
    """
    folder, half = Path(text), None
    if not folder.is_dir() and folder.name in HALVES and folder.parent.is_dir():
        folder, half = folder.parent, folder.name
    if not folder.is_dir():
        raise _absent(folder)
    if (folder / PIPELINE).is_file():
        if half is not None:
            raise InputError(
                "a pipeline has no halves, its autoencoder has",
                where=text,
                do=f"Name the autoencoder: {folder}/vae/{half}",
            )
        folder = folder / _denoiser(folder)
    if (folder.parent / PIPELINE).is_file():
        _require_own(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(
            "the folder holds no model of diffusers",
            where=folder,
            expected=f"{CONFIG}, or {PIPELINE} of a pipeline",
        )
    return Located(folder, half)


def _components(pipeline: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each component of a pipeline that is there."""
    index: Mapping[str, Any] = read_json(pipeline / PIPELINE)
    found = {}
    for name, made_by in index.items():
        if not isinstance(made_by, list) or len(made_by) != 2:
            continue
        library, kind = made_by
        if isinstance(library, str) and isinstance(kind, str) and (pipeline / name).is_dir():
            found[name] = (library, kind)
    return found


def _denoiser(pipeline: Path) -> str:
    """The component that a pipeline's own name stands for."""
    components = _components(pipeline)
    found = next((name for name in _DENOISERS if name in components), None)
    if found is None:
        raise InputError(
            "the pipeline has no denoiser that its own name could stand for",
            where=pipeline,
            got=", ".join(sorted(components)),
            expected=", ".join(_DENOISERS),
            do=f"Name a component: diffusers:{pipeline}/COMPONENT",
        )
    return found


def _require_own(folder: Path) -> None:
    """A pipeline's component is in its folder, and a model of diffusers."""
    if not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise InputError(
            "the pipeline's component is a link that leads out of its folder",
            where=folder,
            got=folder.resolve(),
            do="Name the component's own folder, if it is yours",
        )
    library, kind = _components(folder.parent).get(folder.name, ("diffusers", ""))
    if library == "transformers":
        raise InputError(
            "the component is a model of transformers",
            where=folder,
            got=kind,
            do=f"Name it as one: hf:{folder}",
        )


def _absent(folder: Path) -> InputError:
    parent = folder.parent
    if (parent / PIPELINE).is_file():
        return InputError(
            "the pipeline has no such component",
            where=parent,
            got=folder.name,
            expected=", ".join(sorted(_components(parent))),
        )
    return InputError(
        "there is no such folder",
        where=folder,
        expected="a folder of a model or a pipeline of diffusers: its hub's identifiers are not "
        "looked up",
        do="Download it, then name the folder",
    )
