"""How a module is called: the arguments as the user gave them, and their tensors by flat names.

All the rest of an export knows tensors by name alone: ``a`` for an argument that is a tensor,
``a.b`` and ``a.0`` for what is inside of one. What is no tensor (numbers, texts, ``None``) stays as
it was given, and becomes part of what is exported.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crossfuse.core.tensors import Dim
from crossfuse.errors import InputError
from crossfuse.spec.containers import leaves_of, mapped, opened

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Arguments", "Constant"]

Constant = bool | int | float | str | None
"""What an argument may be, or hold, that is no tensor."""

_MOST_CONSTANTS = 256
"""More numbers than this are data, which belongs into a tensor."""


@dataclass(frozen=True)
class Arguments:
    """A call's arguments.

    Args:
        given: by the names of ``forward``'s parameters; tensors, numbers, texts and ``None``, and
            containers of them.

    Attributes:
        tensors: those in the arguments, by flat names, in order.
        constants: what else is in them, by flat names.

    Raises:
        InputError: an argument that is, or holds, something else; or two tensors of one name.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(init=False)
    constants: Mapping[str, Constant] = field(init=False)

    def __post_init__(self) -> None:
        tensors, constants = _sorted_out(self.given)
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "constants", constants)

    def flat(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Other arguments as tensors by flat names; they may be flat already.

        Raises:
            InputError: a constant that has another value than the one which is exported.
        """
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name in self.tensors or not isinstance(name, str):
                found[name] = value
                continue
            for part, leaf in leaves_of(name, value):
                if part not in self.constants or part in self.tensors:
                    found[part] = leaf
                elif not _equal(leaf, self.constants[part]):
                    raise InputError(
                        "an argument that is no tensor has another value",
                        where=f"{where}, {part}",
                        got=repr(leaf),
                        expected=repr(self.constants[part]),
                        do="What is no tensor is part of what is exported; give a number that "
                        "varies as a tensor",
                    )
        return found

    def flat_axes(self, dynamic: Any) -> Any:
        """Dynamic axes by flat names: those given for a container are of every tensor in it, or,
        in containers like it, of each one."""
        if not isinstance(dynamic, Mapping):
            return dynamic
        found: dict[str, Any] = {}
        for name, axes in dynamic.items():
            for part, own in self._axes_in(name, axes):
                known = found.get(part)
                if isinstance(known, Mapping) and isinstance(own, Mapping):
                    own = {**known, **own}
                found[part] = own
        return found

    def flat_names(self, names: Any) -> Any:
        """Names of tensors in place of the names of what holds them."""
        if not isinstance(names, tuple | list) or not all(isinstance(n, str) for n in names):
            return names
        found: dict[str, None] = {}
        for name in names:
            found |= dict.fromkeys(self._inside(name) or [name])
        return tuple(found)

    def plain_constants(self) -> dict[str, Constant]:
        """The constants as JSON has them: infinity and NaN as text."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.constants.items()
        }

    def call(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
        """What the module returns for other tensors in the arguments' places.

        Args:
            module: the user's, or a copy.
            tensors: by flat names.
        """
        args, kwargs = self.bound(module, tensors)
        return module(*args, **kwargs)

    def bound(
        self, module: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by keyword, with other tensors in them.

        By position are those alone that can't be given by name: parameters in front of a ``/`` or
        a ``*``, and what a ``*`` takes, an argument of its name.
        """
        values = {
            name: tensors[name]
            if name in tensors and name in self.tensors
            else mapped(value, lambda part, leaf: tensors.get(part, leaf), name)
            for name, value in (self.given or tensors).items()
        }
        return _by_position(module, values)

    def _inside(self, name: object) -> list[str]:
        """Tensors of a name, or inside what has it."""
        if name in self.tensors:
            return [str(name)]
        return [part for part in self.tensors if part.startswith(f"{name}.")]

    def _axes_in(self, name: Any, axes: Any) -> list[tuple[Any, Any]]:
        inside = self._inside(name)
        if name in self.tensors or not inside:
            none = axes is None and name in self.constants
            return [] if none else [(name, axes)]
        if isinstance(axes, Mapping) and all(isinstance(v, str | Dim) for v in axes.values()):
            return [(part, axes) for part in inside]
        content = opened(axes)
        if content is None:
            return [] if axes is None else [(name, axes)]
        return [
            found
            for part, own in content.children.items()
            for found in self._axes_in(f"{name}.{part}", own)
        ]


def _sorted_out(given: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Constant]]:
    """Tensors and constants by flat names.

    Raises:
        InputError: a leaf that is neither; two of one name.
    """
    import numpy as np
    from torch import Tensor

    tensors: dict[str, Tensor] = {}
    constants: dict[str, Constant] = {}
    for argument, value in given.items():
        for name, leaf in leaves_of(argument, value):
            if name in tensors or name in constants:
                raise InputError("two tensors of the arguments have one name", where=name)
            if isinstance(leaf, Tensor):
                tensors[name] = leaf
            elif isinstance(leaf, np.generic):
                constants[name] = leaf.item()
            elif leaf is None or isinstance(leaf, bool | int | float | str):
                constants[name] = leaf
            else:
                raise _unusable(name, leaf)
        own = sum(1 for name in constants if name.startswith(f"{argument}."))
        if own > _MOST_CONSTANTS:
            raise InputError(
                "an argument holds many numbers, which would be part of what is exported",
                where=f"inputs[{argument!r}]",
                got=f"{own} numbers",
                do="Give torch.tensor(numbers)",
            )
    return tensors, constants


def _unusable(name: str, leaf: object) -> InputError:
    import numpy as np

    kind = type(leaf).__name__
    do = (
        "Wrap the module in one whose forward takes tensors by name and makes of them what the "
        "model wants; what is no tensor belongs into the wrapper"
    )
    if any(kind_of.__name__ == "Cache" for kind_of in type(leaf).__mro__):
        do = (
            "Leave it out, and switch use_cache off: a bundle that decodes keeps keys and values by "
            "itself; a cache of the model's own goes in as tensors by name, of which a module "
            "around it makes the cache"
        )
    got = f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
    if isinstance(leaf, np.ndarray):
        got, do = "a NumPy array", "Give torch.from_numpy(array)"
    return InputError(
        "an example input can't be used",
        where=f"inputs[{name!r}]",
        got=got,
        expected="a torch.Tensor on the CPU, a number, a text or None, or a list, tuple, mapping "
        "or dataclass of these",
        do=do,
    )


def _equal(leaf: Any, constant: Constant) -> bool:
    if leaf is None or constant is None:
        return leaf is constant
    try:
        return bool(leaf == constant) or (leaf != leaf and constant != constant)
    except Exception:  # noqa: BLE001 -- another library's comparison, which may fail in any way
        return False


def _by_position(
    module: nn.Module, values: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a forward that is no Python function
        return (), values
    many = next((p for p in parameters if p.kind is p.VAR_POSITIONAL and p.name in values), None)
    last = max(
        (i for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_ONLY and p.name in values),
        default=-1,
    )
    if many is not None:
        last = parameters.index(many) - 1
    args = []
    for parameter in parameters[: last + 1]:
        value = values.pop(parameter.name, parameter.default)
        if value is parameter.empty:
            raise InputError(
                "an argument is missing that stands in front of others which go by position",
                where=parameter.name,
                do="Give an example of it among the inputs",
            )
        args.append(value)
    if many is not None:
        taken = values.pop(many.name)
        args.extend(taken if isinstance(taken, tuple | list) else [taken])
    return tuple(args), values
