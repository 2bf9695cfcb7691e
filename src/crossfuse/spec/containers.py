"""What people put tensors into, opened and closed again: mappings, lists, tuples, named tuples,
dataclasses, and classes that are registered with PyTorch's pytrees. Inputs and results are read
with the same rules."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Opened", "leaves_of", "mapped", "opened"]


class Opened(NamedTuple):
    """A container's content.

    Attributes:
        children: by the name that each has in it: a key, a field, or a place.
        closed: makes the container again, of other children in the same order.
    """

    children: dict[str, Any]
    closed: Callable[[Sequence[Any]], Any]


def opened(value: object) -> Opened | None:
    """The content of a container; None of anything else, and of classes.

    1. A class registered with PyTorch's pytrees is opened and closed by its own functions, and its
       children are named by its keys, where it tells them, and else by their places.
    2. A mapping's children are named by its keys, as text.
    3. A dataclass's and a named tuple's are named by its fields, a tuple's and a list's by places.
    """
    from torch.utils._pytree import SUPPORTED_NODES

    if isinstance(value, type):
        return None
    node = SUPPORTED_NODES.get(type(value))
    if node is not None:
        children, context = node.flatten_fn(value)
        names = _registered_names(value, node, len(children))
        return Opened(
            dict(zip(names, children, strict=True)),
            lambda others: node.unflatten_fn(list(others), context),
        )
    if isinstance(value, Mapping):
        return Opened(
            {f"{key}": item for key, item in value.items()},
            lambda others: _mapping_like(value, others),
        )
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return Opened(
            {field: getattr(value, field) for field in fields if hasattr(value, field)},
            lambda others: _dataclass_like(value, others),
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Opened(
            dict(zip(value._fields, value, strict=True)), lambda others: type(value)(*others)
        )
    if isinstance(value, tuple | list):
        return Opened({str(i): item for i, item in enumerate(value)}, type(value))
    return None


def leaves_of(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """What is no container inside a value, with its name: ``a.b`` for the field or key ``b`` of
    ``a``, ``a.0`` for its first place."""
    content = opened(value)
    if content is None:
        yield name, value
        return
    for part, item in content.children.items():
        yield from leaves_of(f"{name}.{part}" if name else part, item)


def mapped(value: object, function: Callable[[str, Any], Any], name: str = "") -> Any:
    """The value with other leaves: those that the function gives for a name and a leaf."""
    content = opened(value)
    if content is None:
        return function(name, value)
    return content.closed(
        [
            mapped(item, function, f"{name}.{part}" if name else part)
            for part, item in content.children.items()
        ]
    )


def _registered_names(value: object, node: Any, count: int) -> list[str]:
    """Names of a registered container's children."""
    from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey

    if isinstance(value, Mapping) and len(value) == count:
        return [f"{key}" for key in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(value._fields)
    if node.flatten_with_keys_fn is None:
        return [str(i) for i in range(count)]
    names = []
    for i, (key, _) in enumerate(node.flatten_with_keys_fn(value)[0]):
        match key:
            case GetAttrKey():
                names.append(key.name)
            case MappingKey():
                names.append(f"{key.key}")
            case SequenceKey():
                names.append(str(key.idx))
            case _:
                names.append(str(i))
    return names if len(set(names)) == count else [str(i) for i in range(count)]


def _mapping_like(value: Mapping[Any, Any], children: Sequence[Any]) -> Any:
    items = dict(zip(value, children, strict=True))
    if not isinstance(value, MutableMapping):
        return items
    made = copy.copy(value)
    for key, child in items.items():
        made[key] = child
    return made


def _dataclass_like(value: Any, children: Sequence[Any]) -> Any:
    """A copy with other fields; what the class does when it is made is not done again."""
    made = copy.copy(value)
    fields = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    for field, child in zip(fields, children, strict=True):
        object.__setattr__(made, field, child)
    return made
