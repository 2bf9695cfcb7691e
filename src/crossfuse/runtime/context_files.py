"""Contexts on disk: safetensors files that belong to one bundle and target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from crossfuse.bundle.manifest import StageSpec
from crossfuse.core.dimensions import is_name, size_at
from crossfuse.core.tensor_file import Stored, TensorFile, read_tensors, write_tensors
from crossfuse.core.tensors import Dim, TensorSpec, names_of
from crossfuse.errors import InputError
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.stage import Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Loaded", "Of", "load_tensors", "placed", "refuse_pickling", "save_tensors"]

_KIND, _FORM = "crossfuse.context", "1"
_ADVICE = "Encode the input again with this bundle"


class Of(NamedTuple):
    """What there is to say of contexts beside their tensors.

    Attributes:
        owner: which bundle and target computed them.
        contexts: how many there are.
        sizes: of the context inputs' named dimensions.
        before: ``[contexts, tokens]``: ids in front of every prompt, where they are known.
    """

    owner: str
    contexts: int
    sizes: Mapping[str, int]
    before: NDArray[np.int64] | None = None


class Loaded(NamedTuple):
    """A context as a file holds it.

    Attributes:
        tensors: by name.
        about: them.
    """

    tensors: dict[str, Stored]
    about: Of


def save_tensors(path: Path, tensors: Mapping[str, Any], of: Of) -> None:
    """Write contexts to a file.

    Args:
        path: of the file.
        tensors: by name.
        of: what else there is to say.

    Raises:
        InputError: the file can't be written.
    """
    about = {
        _KIND: _FORM,
        "owner": of.owner,
        "count": str(of.contexts),
        "sizes": json.dumps(dict(of.sizes), sort_keys=True),
    }
    if of.before is not None:
        about["before"] = json.dumps(of.before.tolist())
    write_tensors(path, {name: _on_host(tensor) for name, tensor in tensors.items()}, about)


def load_tensors(
    path: Path, stage: StageSpec, batch: str | None, dims: Mapping[str, Dim], owner: str
) -> Loaded:
    """Read contexts from a file.

    Args:
        path: of the file.
        stage: the session's context stage.
        batch: the dimension that counts contexts, if there is one.
        dims: ranges of the named dimensions.
        owner: the session's bundle and target.

    Raises:
        InputError: no file of contexts, a damaged one, or one of another bundle or target.
    """
    file = read_tensors(path)
    _require_context(file, path)
    if file.about["owner"] != owner:
        raise InputError(
            "the context was encoded by another bundle or target",
            where=path,
            got=_short(file.about["owner"]),
            expected=_short(owner),
            do=_ADVICE,
        )
    count, sizes = int(file.about["count"]), json.loads(file.about["sizes"])
    _require_sizes(path, stage, sizes, dims)
    specs = stage.outputs
    if set(file.tensors) != set(names_of(specs)):
        raise _unfit(path, ", ".join(sorted(file.tensors)), ", ".join(names_of(specs)))
    known = {**sizes, **({} if batch is None else {batch: count})}
    for spec in specs:
        _require_tensor(path, spec, file.tensors[spec.name], known)
    of = Of(owner, count, sizes, _before(file, path, count))
    return Loaded({spec.name: file.tensors[spec.name] for spec in specs}, of)


def _before(file: TensorFile, path: Path, count: int) -> NDArray[np.int64] | None:
    """Ids in front of the prompts, a row for each context."""
    if "before" not in file.about:
        return None
    try:
        ids = np.asarray(json.loads(file.about["before"]))
    except (ValueError, RecursionError) as error:
        raise _unfit(path, "other ids in front of prompts", f"{count} rows of them") from error
    if ids.ndim != 2 or len(ids) != count or ids.dtype != np.int64 or (ids < 0).any():
        raise _unfit(path, f"ids {list(ids.shape)} in front of prompts", f"{count} rows of them")
    ids.flags.writeable = False
    return ids


def _require_sizes(
    path: Path, stage: StageSpec, sizes: Mapping[str, int], dims: Mapping[str, Dim]
) -> None:
    """The sizes are those of the context inputs' dimensions, each in its range."""
    named = {dim for spec in stage.inputs for dim in spec.shape if isinstance(dim, str)}
    if set(sizes) != named:
        raise _unfit(path, ", ".join(sorted(sizes)), ", ".join(sorted(named)))
    for name, size in sizes.items():
        if name in dims:
            dims[name].check(size, str(path))


def _require_tensor(path: Path, spec: TensorSpec, stored: Stored, known: dict[str, int]) -> None:
    """A tensor has its dtype, and a shape that goes with all that is known of sizes by now."""
    shape = stored.array.shape
    fits = stored.dtype == spec.dtype and len(shape) == len(spec.shape)
    for dim, size in zip(spec.shape, shape, strict=False):
        expected = size_at(dim, known)
        if expected is None and isinstance(dim, str) and is_name(dim):
            known[dim] = size
        elif expected is not None:
            fits = fits and expected == size
    if not fits:
        raise _unfit(path, f"{spec.name}: {stored.dtype}{list(shape)}", f"{spec} at {known}")


def placed(stored: Stored, engine: Stage) -> Any:
    """A tensor of a file where an engine computes: on its GPU, or read-only on the host."""
    if engine.on_device:
        return engine.empty(stored.array.shape, stored.dtype).write(stored.array)
    array = stored.array.view()
    array.flags.writeable = False
    return array


def refuse_pickling(what: str, do: str) -> NoReturn:
    """What pickling (or copying by its means) a context or state raises.

    Raises:
        InputError: always.
    """
    raise InputError(f"{what} is not pickled: pickles run code where they are read", do=do)


def _on_host(tensor: Any) -> Stored:
    if not isinstance(tensor, DeviceArray):
        return Stored(str(tensor.dtype), tensor)
    return Stored(tensor.dtype, tensor.bits())


def _require_context(file: TensorFile, path: Path) -> None:
    about = file.about
    try:
        known = about.get(_KIND) == _FORM and int(about["count"]) > 0
        sizes = json.loads(about["sizes"])
        known = known and all(type(size) is int and size > 0 for size in sizes.values())
    except (KeyError, ValueError, AttributeError, RecursionError):
        known = False
    if not known or "owner" not in about:
        raise InputError(
            "the file holds no context of this version",
            where=path,
            do="Write it with context.save, and read it with the same version of crossfuse",
        )


def _short(owner: str) -> str:
    """The target, and so much of the digest that it can be told."""
    target, _, digest = owner.partition(" ")
    return f"{target} {digest[:12]}…" if digest else target


def _unfit(path: Path, got: object, expected: object) -> InputError:
    return InputError(
        "the context's tensors are not the session's",
        where=path,
        got=got,
        expected=expected,
        do=_ADVICE,
    )
