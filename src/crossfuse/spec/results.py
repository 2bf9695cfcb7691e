"""What a module returns, as tensors by name.

Rules:

1. A dict's values are named by their keys, a dataclass's and a named tuple's by their fields, what
   is inside of another container ``outer_inner``; of a lone tensor the name is ``output``.
2. A number becomes a tensor without axes; ``None`` is left out.
3. A name that an input has gets ``_out`` behind it, and one that another output has a number: a
   graph has each name once, and inputs keep theirs.
4. A list whose parts are all dropped is left out, however long: one tensor per row, say, which no
   graph can give.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from crossfuse.core.tensors import DTYPES
from crossfuse.errors import Advice, InputError, Said
from crossfuse.spec.containers import opened

if TYPE_CHECKING:
    from torch import Tensor

    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["distinct_names", "named_outputs", "told_of"]


def named_outputs(
    result: object,
    inputs: Collection[str] = (),
    dropped: Callable[[str], bool] = lambda _: False,
) -> dict[str, Tensor]:
    """Tensors of a module's result by name, in order.

    Args:
        result: of the module.
        inputs: names that are taken.
        dropped: whether an output of a name is to be left out, and may therefore be no tensor; a
            zero stands for it.

    Raises:
        InputError: the result holds no tensor, or something that is neither a tensor or number nor
            a container of them.
    """
    found = [(name or "output", tensor) for name, tensor in _walk("", result, dropped)]
    if not found:
        raise InputError("the model returns no tensor", got=type(result).__name__)
    names = distinct_names([name for name, _ in found], inputs)
    return {name: tensor for name, (_, tensor) in zip(names, found, strict=True)}


def told_of(spec: ModelSpec, result: object) -> dict[str, Any]:
    """What the manifest tells of a module's boundary, where there is something: which arguments are
    fixed, and which outputs are not called as in a result of the module."""
    own = named_outputs(result, (), spec.is_dropped)
    pairs = zip(own, spec.outputs_of(result), strict=True)
    told = {
        "constants": spec.arguments.plain_constants(),
        "renamed_outputs": {a: b for a, b in pairs if a != b and not spec.is_dropped(b)},
    }
    return {key: value for key, value in told.items() if value}


def distinct_names(names: Iterable[str], inputs: Collection[str]) -> list[str]:
    """Outputs' names, each once and none of an input."""
    names = list(names)
    taken, own = {*inputs}, {*names}
    found: list[str] = []
    for name in names:
        base = f"{name}_out" if name in inputs else name
        chosen, i = base, 2
        while chosen in taken or (chosen != name and chosen in own):
            chosen, i = f"{base}_{i}", i + 1
        taken.add(chosen)
        found.append(chosen)
    return found


def _walk(name: str, value: object, dropped: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    if value is None:
        return
    content = opened(value)
    if content is None:
        yield name, _tensor(name, value, dropped(name))
        return
    places = isinstance(value, tuple | list) and not hasattr(value, "_fields")
    prefix = name or "output" if places else name
    parts = content.children
    if isinstance(value, list) and parts and all(dropped(f"{prefix}_{part}") for part in parts):
        return
    for part, item in parts.items():
        yield from _walk(f"{prefix}_{part}" if prefix else part, item, dropped)


def _tensor(name: str, value: object, dropped: bool) -> Tensor:
    """A tensor as it is; a number, or what stands for one while a module is traced, as a tensor;
    zero for what is dropped."""
    import torch

    if isinstance(value, torch.Tensor) and _dtype_of(value) in DTYPES:
        return value
    # Booleans first, which are integers to Python.
    for kinds, dtype in (
        ((bool, torch.SymBool), torch.bool),
        ((int, torch.SymInt), torch.int64),
        ((float, torch.SymFloat), torch.float32),
    ):
        if isinstance(value, kinds):
            return torch.scalar_tensor(value, dtype=dtype)  # type: ignore[arg-type]
    if dropped:
        return torch.scalar_tensor(0)
    leave_out = Said(f"--drop-output {name or 'output'}", f"drop_outputs=[{name or 'output'!r}]")
    if isinstance(value, torch.Tensor):
        instead = "torch.view_as_real of it" if value.is_complex() else "it in another type"
        raise InputError(
            "the model returns a tensor of a type that no bundle holds",
            where=name or "output",
            got=_dtype_of(value),
            expected=", ".join(DTYPES),
            do=Advice(f"Return {instead}, or leave it out of the export: {{}}", leave_out),
        )
    raise InputError(
        "the model returns something that is not a tensor",
        where=name or "output",
        got=type(value).__name__,
        expected="tensors and numbers, in dicts, dataclasses, named tuples, tuples or lists",
        do=Advice("Leave it out of what forward returns, or of the export: {}", leave_out),
    )


def _dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
