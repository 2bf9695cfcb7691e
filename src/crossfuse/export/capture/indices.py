"""Which integer inputs are places in a table, and how far the table goes.

PyTorch refuses a negative id in an embedding, in ``index_select``, ``gather``, ``scatter`` and
``one_hot``; ONNX counts it from the end. So the range is found here, where the operators can still
be told apart, and inputs are checked against it.

Rules:

1. An input that comes to such an operator whole, through operators that move or convert elements,
   must lie within the table; a constant added on the way shifts the range. It may have been joined
   with others. Several tables: within all of them.

It must not fire on ids that the model changes first (by ``where`` or ``clamp``, for padding of
−100, say), on parts of an input, whose other elements may be anything, nor on ``table[ids]``, where
PyTorch, too, counts negative ids from the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from crossfuse.graph.metadata import COUNTS, RANGE
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["IndexRange", "index_ranges", "note_ranges"]

_log = logging.getLogger(__name__)

_ATEN = torch.ops.aten


class IndexRange(NamedTuple):
    """The lowest and the highest index; None where the table's size is dynamic."""

    low: int
    high: int | None


class _Lookup(NamedTuple):
    """Which arguments of an operator are the table, its axis (None for the first) and the
    indices."""

    table: int
    axis: int | None
    indices: int


class _Indexed(NamedTuple):
    """What a node takes for indices, and how many places there are, where that is fixed."""

    indices: Any
    size: int | None


class _Origin(NamedTuple):
    """The placeholder that a value is, all of it, and what was added to it."""

    placeholder: torch.fx.Node
    shift: int


_LOOKUPS: dict[object, _Lookup] = {
    _ATEN.embedding.default: _Lookup(0, None, 1),
    _ATEN.embedding_bag.padding_idx: _Lookup(0, None, 1),
    _ATEN._embedding_bag.default: _Lookup(0, None, 1),
    _ATEN._embedding_bag_forward_only.default: _Lookup(0, None, 1),
    _ATEN.index_select.default: _Lookup(0, 1, 2),
    _ATEN.gather.default: _Lookup(0, 1, 2),
    _ATEN.scatter.src: _Lookup(0, 1, 2),
    _ATEN.scatter.value: _Lookup(0, 1, 2),
    _ATEN.scatter_add.default: _Lookup(0, 1, 2),
}

_WHOLE = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"),
        *("transpose", "permute", "t", "mT", "movedim", "expand", "expand_as", "repeat"),
        *("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy"),
        *("type_as", "view_as"),
    }
)
"""Operators behind which all elements of an input are there still, and no others."""


def index_ranges(program: ExportedProgram, spec: ModelSpec) -> dict[str, IndexRange]:
    """The range of every input that is found to be indices."""
    user = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    names = dict(zip(placeholders, spec.inputs, strict=True))
    found: dict[str, IndexRange] = {}
    for node in program.graph.nodes:
        indexed = _indexed(node)
        for origin in () if indexed is None else _origins(indexed.indices):
            if origin.placeholder not in names:
                continue
            name, shift = names[origin.placeholder], origin.shift
            size = None if indexed is None else indexed.size
            own = IndexRange(-shift, None if size is None else size - 1 - shift)
            found[name] = _within_both(found.get(name, own), own)
            _log.debug("%s holds indices: %s", name, found[name])
    return found


def _within_both(a: IndexRange, b: IndexRange) -> IndexRange:
    highs = [high for high in (a.high, b.high) if high is not None]
    return IndexRange(max(a.low, b.low), min(highs, default=None))


def note_ranges(
    model: ir.Model,
    ranges: Mapping[str, IndexRange],
    counts: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
) -> None:
    """Write to the graph's inputs, where the stages' specs take it from, what ids they may hold.

    Args:
        model: whose inputs are noted.
        ranges: of indices.
        counts: how many of some ids each row holds.
    """
    for value in model.graph.inputs:
        name = value.name or ""
        if name in ranges:
            low, high = ranges[name]
            value.metadata_props[RANGE] = f"{low}:{'' if high is None else high}"
        if counts.get(name):
            pairs = counts[name].items()
            value.metadata_props[COUNTS] = ",".join(f"{token}:{count}" for token, count in pairs)


def _indexed(node: torch.fx.Node) -> _Indexed | None:
    if node.target is _ATEN.one_hot.default:
        classes = node.args[1] if len(node.args) > 1 else -1
        return _Indexed(node.args[0], classes if isinstance(classes, int) and classes > 0 else None)
    if node.target not in _LOOKUPS or len(node.args) < 2:
        return None
    lookup = _LOOKUPS[node.target]
    value = getattr(node.args[lookup.table], "meta", {}).get("val")
    along = 0 if lookup.axis is None else node.args[lookup.axis]
    if value is None or not value.ndim or not isinstance(along, int):
        return None
    size = value.shape[along]
    return _Indexed(node.args[lookup.indices], size if isinstance(size, int) else None)


def _origins(value: Any, shift: int = 0) -> Iterator[_Origin]:
    """Go back from indices to the inputs that they are, through what changes no element, or all of
    them by one constant, and what joins them."""
    while isinstance(value, torch.fx.Node) and value.op == "call_function":
        name = _operator_name(value)
        if name in ("add", "sub"):
            added = _added_constant(value, name)
            if added is None:
                return
            value, shift = added.value, shift + added.constant
        elif _is_whole_slice(value, name) or _keeps_all_elements(value, name):
            value = value.args[0]
        elif name == "cat":
            for part in value.args[0]:  # type: ignore[union-attr]
                yield from _origins(part, shift)
            return
        else:
            return
    if isinstance(value, torch.fx.Node) and value.op == "placeholder":
        yield _Origin(value, shift)


class _Added(NamedTuple):
    """A value, and the constant that is added to it."""

    value: Any
    constant: int


def _operator_name(node: torch.fx.Node) -> str:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name.removeprefix("aten::")


def _added_constant(node: torch.fx.Node, name: str) -> _Added | None:
    """Of a sum or difference with a number."""
    if len(node.args) < 2 or node.kwargs:
        return None
    first, second = node.args[:2]
    if isinstance(second, int):
        return _Added(first, second if name == "add" else -second)
    return _Added(second, first) if isinstance(first, int) and name == "add" else None


def _is_whole_slice(node: torch.fx.Node, name: str) -> bool:
    return name == "slice" and node.args[2:] in ((), (0,), (0, 2**63 - 1))


def _keeps_all_elements(node: torch.fx.Node, name: str) -> bool:
    """It moves or converts elements, and does not round: indices are no floats."""
    kind = node.meta.get("val") if name in _WHOLE else None
    return kind is not None and not kind.is_floating_point()
