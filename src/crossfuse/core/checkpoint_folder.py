"""A checkpoint's folder, looked at before any library reads it: plain safetensors inside it, and
nothing that leads elsewhere.

Libraries follow what an index, a configuration or a link names: pickles, files of other folders,
code of other repositories. So whatever they would read is checked here, by name and by what it
resolves to:

1. Weights are ``model.safetensors``, or the files that ``model.safetensors.index.json`` names:
   plain names that end in ``.safetensors``, of regular files that begin as safetensors do. Other
   libraries have other names for the two (`WeightNames`).
2. A link may lead within the folder, or, in a model hub's cache, to the blobs of the same
repository. Nowhere else.
3. Adapters, the parts of distributed checkpoints and configurations that ask for another
repository's code are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossfuse.core.safetensors_files import require_whole
from crossfuse.errors import InputError

__all__ = [
    "ADAPTER",
    "CONFIG",
    "INDEX",
    "WEIGHTS",
    "WeightNames",
    "entries_of",
    "read_json",
    "require_inside",
    "require_own_code",
    "require_plain",
    "weight_files",
]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class WeightNames:
    """How a library calls the file of a checkpoint's weights, and the index of its parts."""

    weights: str = WEIGHTS
    index: str = INDEX


_TRANSFORMERS = WeightNames()

_READ = (".json", ".safetensors", ".py")
"""Endings of files that libraries read."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SAVE_AGAIN = (
    "Where you trust it, load it with its library and save it again with "
    "save_pretrained, which writes safetensors"
)
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_DISTRIBUTED = re.compile(r"\.metadata|.*\.distcp|shard-\d+-model-\d+-of-\d+\.safetensors")
_HUB_FOLDERS = ("snapshots", "blobs")


def require_plain(
    folder: Path, *, complete: bool = True, names: WeightNames = _TRANSFORMERS
) -> None:
    """Check by name what a library will read in a folder; the weights' own beginnings are for
    `weight_files`.

    Args:
        folder: with a configuration and weights.
        complete: the weights must be there; in a hub's cache they may still have to be downloaded.
        names: of the weights.

    Raises:
        InputError: naming the file or entry that can't be used.
    """
    _refuse_other_kinds(folder, names)
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_READ):
            require_inside(path, folder)
    if not (folder / CONFIG).is_file():
        raise InputError(
            "the folder holds no model", where=folder, expected=f"{CONFIG} and *.safetensors"
        )
    settings = read_json(folder / CONFIG)
    require_own_code(settings, folder / CONFIG)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _shards(index)
    named = settings.get("transformers_weights")
    if named is not None and not (
        isinstance(named, str) and _is_plain(named.removesuffix(".index.json"))
    ):
        raise _unfit(
            "the configuration names weights that can't be loaded", folder / CONFIG, repr(named)
        )
    if complete:
        _present(folder, names)


def weight_files(folder: Path, names: WeightNames = _TRANSFORMERS) -> list[Path]:
    """The safetensors files of a folder, checked: those of the index, or ``model.safetensors``,
    which goes first.

    Raises:
        InputError: there are none, or one that can't be used.
    """
    paths = _present(folder, names)
    for path in paths:
        require_whole(path)
    return paths


def _present(folder: Path, names: WeightNames) -> list[Path]:
    """Weights that are regular files inside the folder."""
    weights, index = folder / names.weights, folder / names.index
    shards = _shards(index) if index.exists() or index.is_symlink() else []
    if weights.exists() or not shards:
        if not weights.exists() and (others := sorted(folder.glob("*.safetensors"))):
            raise InputError(
                "the checkpoint's weights have another name",
                where=folder,
                got=", ".join(path.name for path in others[:5]),
                expected=f"{names.weights}, or {names.index} that names its parts",
            )
        shards = [weights]
    for path in shards:
        require_inside(path, folder)
        if not path.is_file():
            raise _absent(path)
    return shards


def _absent(path: Path) -> InputError:
    folder = path.parent
    pickles = (
        sorted({p.name for p in folder.iterdir() if p.name.endswith(_PICKLES)})
        if folder.is_dir()
        else []
    )
    if not pickles:
        return InputError("the checkpoint has no safetensors file", where=path)
    return InputError(
        "the checkpoint holds no safetensors, and pickles are never loaded: they can run any code",
        where=folder,
        got=", ".join(pickles),
        expected=path.name,
        do=_SAVE_AGAIN,
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """An object from a JSON file.

    Raises:
        InputError: no such file, or something else in it.
    """
    if not path.is_file():
        raise InputError("the checkpoint folder has no such file", where=path)
    require_inside(path, path.parent)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is not valid JSON: {error}", where=path) from error
    if not isinstance(data, dict):
        raise InputError("the file holds no JSON object", where=path, got=type(data).__name__)
    return data


def _refuse_other_kinds(folder: Path, names: WeightNames) -> None:
    """What libraries would load in place of the weights, or in addition to them."""
    adapter = folder / ADAPTER
    if adapter.exists() or adapter.is_symlink():
        raise InputError(
            "the folder holds an adapter, which names another model to load",
            where=adapter,
            expected="a whole model",
            do="Merge the adapter into its model (peft: merge_and_unload) and save that with "
            "save_pretrained",
        )
    parts = (
        sorted(path.name for path in folder.iterdir() if _DISTRIBUTED.fullmatch(path.name))
        if folder.is_dir()
        else []
    )
    if parts:
        raise InputError(
            "the folder holds a distributed checkpoint, which would be read in place of the "
            "weights",
            where=folder,
            got=", ".join(parts[:3]),
            expected=f"{names.weights}, or {names.index} that names its parts",
            do=_SAVE_AGAIN,
        )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, checked by name."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            "the index names no weights",
            where=index,
            expected="a weight_map of tensors and their files",
        )
    names = {str(name): name for name in weight_map.values()}
    for text, name in sorted(names.items()):
        if not _is_plain(name):
            raise _unfit("the index names a file that can't be loaded", index, repr(text))
        require_inside(index.parent / text, index.parent)
    return [index.parent / text for text in sorted(names)]


def _is_plain(name: object) -> bool:
    """A file's name without a folder that ends in ``.safetensors``."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name.isprintable()
        and not name.startswith(".")
        and not any(character in name for character in "/\\:")
    )


def _unfit(what: str, where: Path, got: str) -> InputError:
    pickled = got.strip("'\"").endswith(_PICKLES)
    return InputError(
        what,
        where=where,
        got=got + (", a pickle, which can run any code" if pickled else ""),
        expected="plain names of *.safetensors files in the same folder",
        do=_SAVE_AGAIN,
    )


def require_inside(path: Path, folder: Path) -> None:
    """What a path resolves to is in the folder, or a blob of the same repository in a hub's cache.

    Raises:
        InputError: it leads elsewhere, or to nothing.
    """
    root = folder.resolve()
    try:
        real = path.resolve(strict=path.is_symlink())
    except (OSError, RuntimeError) as error:
        raise InputError("the checkpoint's file is a link to nothing", where=path) from error
    if real.is_relative_to(root):
        return
    # The folder of a snapshot, or of a component in one.
    for revision in (root, root.parent):
        snapshots = revision.parent
        if snapshots.name == _HUB_FOLDERS[0] and real.parent == snapshots.parent / _HUB_FOLDERS[1]:
            return
    raise InputError(
        "the checkpoint's file is a link that leads out of its folder",
        where=path,
        got=real,
        expected=f"a file in {root}",
        do="Copy the file to where the link is, if it is yours",
    )


def require_own_code(settings: Mapping[str, Any], where: Path) -> None:
    """No entry of a configuration, at any depth, asks for another repository's code.

    Raises:
        InputError: naming the entry.
    """
    for key, value in entries_of(settings):
        if any(name in key for name in _IMPLEMENTATIONS):
            for text in value.values() if isinstance(value, dict) else (value,):
                if isinstance(text, str) and ("/" in text or ":" in text or "@" in text):
                    raise InputError(
                        "the configuration asks for code of another repository",
                        where=f"{where}, {key}",
                        got=repr(text),
                        do="Take the entry out; the library then uses its own",
                    )
        if key == "auto_map":
            for text in _texts(value):
                if "--" in text or "/" in text or ".." in text:
                    raise InputError(
                        "the configuration asks for code of another repository",
                        where=f"{where}, auto_map",
                        got=repr(text),
                        expected="code in the checkpoint's own folder, or none",
                        do="Save the model again with its own code, after reading it",
                    )


def entries_of(value: object) -> Iterator[tuple[str, Any]]:
    """Keys and values of all objects inside a JSON value, at any depth."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield from item.items()
            todo += item.values()
        elif isinstance(item, list):
            todo += item


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _texts(item)
