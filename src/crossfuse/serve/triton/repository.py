"""A model repository for Triton, made of a bundle: ``NAME`` over the Python backend, and native
models where graphs allow."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.files import REPLACED, locked, put_in_place, write_whole
from crossfuse.core.os_errors import help_for, reason_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.runtime.backends import best_target, target_of_bundle
from crossfuse.serve.generating import can_generate
from crossfuse.serve.triton.config import ModelConfig, WarmUp
from crossfuse.serve.triton.models import (
    GENERATES,
    SUFFIXES,
    TritonOptions,
    generation_model,
    native_model,
    python_model,
)

__all__ = ["TritonOptions", "write_repository"]

_MARK = "# Written by crossfuse.\n"
_LOCK = ".crossfuse-lock"
_MARKED = ".partial-"
_PARTIAL = re.compile(rf"\..+{re.escape(_MARKED)}[0-9a-f]{{12}}({re.escape(REPLACED)})?")
_OTHER_README = "README.crossfuse.md"


def write_repository(
    bundle: str | Path | Bundle, repository: str | Path, options: TritonOptions | None = None
) -> list[str]:
    """Put a bundle into a model repository, whose other models stay.

    Returns:
        names of the models written.

    Raises:
        InputError: a name that Triton can't take, a folder in the way that crossfuse didn't write,
            or a repository that can't be written.
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
    models = [python_model(opened, name, known, chosen)]
    if chosen.slots and can_generate(opened.manifest):
        models.append(generation_model(opened, name, known, chosen))
    if chosen.native and set(entry.stages) == {"model"} and known.triton is not None:
        models.append(native_model(opened, name, known, known.triton, chosen))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _written_by_one(root):
            _sweep(root)
            _put_in_place(root, models, opened, target, inputs)
            _remove_stale(root, name, {config.name for config in models})
            _write_readme(root, name, models)
    except OSError as error:
        raise InputError(
            f"the repository can't be written: {reason_of(error)}",
            where=root,
            do=help_for(error, writing=True),
        ) from error
    return [config.name for config in models]


@contextmanager
def _written_by_one(root: Path) -> Iterator[None]:
    """Nobody else writes the repository meanwhile."""
    lock = root / _LOCK
    with locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Remove what killed commands left; whoever holds the lock is the only one who writes."""
    for path in root.iterdir():
        if _PARTIAL.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if path.name.endswith(REPLACED):
                model = root / path.name[1:].partition(_MARKED)[0]
                if not model.exists():
                    path.rename(model)
                    continue
            shutil.rmtree(path, ignore_errors=True)


def _remove_stale(root: Path, name: str, written: Collection[str]) -> None:
    """Another model of an older bundle under this name would answer beside the new one."""
    for suffix in (*SUFFIXES.values(), GENERATES):
        folder = root / f"{name}-{suffix}"
        if folder.name not in written and _is_ours(folder):
            shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    about = folder / "config.pbtxt"
    return about.is_file() and about.read_text(encoding="utf-8").startswith(_MARK)


def _write_readme(root: Path, name: str, models: Sequence[ModelConfig]) -> None:
    """How to run and ask the repository's models; a README that crossfuse didn't write stays."""
    template = files("crossfuse.serve.triton").joinpath("README.template.md")
    text = template.read_text(encoding="utf-8")
    readme = root / "README.md"
    if os.path.lexists(readme) and not _is_readme_of_ours(readme, text.splitlines()[0]):
        readme = root / _OTHER_README
    written = {config.name for config in models}
    others = sorted(
        path.name for path in root.iterdir() if path.name not in written and _is_ours(path)
    )
    lines = [_described(models), *(f"- `{other}`: written before" for other in others)]
    write_whole(readme, text.replace("@@MODELS@@", "\n".join(lines)).replace("@@NAME@@", name))


def _is_readme_of_ours(readme: Path, first: str) -> bool:
    if readme.is_symlink() or not readme.is_file():
        return False
    return readme.read_text(encoding="utf-8", errors="replace").startswith(first)


def _put_in_place(
    root: Path,
    models: Sequence[ModelConfig],
    bundle: Bundle,
    target: str,
    inputs: Mapping[str, NDArray[Any]] | None,
) -> None:
    """Write the models' folders in place of older ones of ours, when all of them are there."""
    for config in models:
        folder = root / config.name
        if os.path.lexists(folder) and (folder.is_symlink() or not _is_ours(folder)):
            raise InputError(
                "the repository holds a model of this name that crossfuse didn't write",
                where=folder,
                do=Advice("Use {}", Said("--name", "name")),
            )
    partials = [
        (config, root / f".{config.name}{_MARKED}{secrets.token_hex(6)}") for config in models
    ]
    try:
        for config, partial in partials:
            _write_model(partial, config, bundle, target, inputs)
        for config, partial in partials:
            put_in_place(partial, root / config.name)
    finally:
        for _, partial in partials:
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
    if inputs is not None and not config.decoupled:
        config = replace(config, warm_up=_write_warm_up(folder / "warmup", config, inputs))
    entry = bundle.target(target)
    if config.backend == "python":
        module = "generation_model" if config.decoupled else "model"
        program = (
            f"from crossfuse.serve.triton.{module} import TritonPythonModel\n\n__all__ = "
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
            "streams what it generates"
            if config.decoupled
            else f"merges requests up to a batch of {config.max_batch}"
            if config.max_batch
            else "does not merge requests"
        )
        lines.append(
            f"- `{config.name}`: {config.backend} backend, {config.instances} instance(s); Triton "
            f"{batches}"
        )
    return "\n".join(lines)
