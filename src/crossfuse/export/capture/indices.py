"""Which integer inputs are places in a table, and how far the table goes.

PyTorch refuses a negative id in an embedding, in ``index_select``, ``gather``, ``scatter`` and
``one_hot``; ONNX counts it from the end. So the range is found here, where the operators can still
be told apart, and inputs are checked against it.

Rules:

1. An input that comes to such an operator whole, through operators that move or convert elements,
   must lie within the table; a constant added on the way shifts the range. Several tables: within
   all of them.

It must not fire on ids that the model changes first (by ``where`` or ``clamp``, for padding of
−100, say), on parts of an input, whose other elements may be anything, nor on ``table[ids]``, where
PyTorch, too, counts negative ids from the end.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from crossfuse.graph.metadata import RANGE
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["index_ranges", "note_ranges"]

Range = tuple[int, int | None]
"""The lowest and the highest index; None where the table's size is dynamic."""

_ATEN = torch.ops.aten
_TABLES: dict[object, tuple[int, int | None, int]] = {
    _ATEN.embedding.default: (0, None, 1),
    _ATEN.embedding_bag.padding_idx: (0, None, 1),
    _ATEN._embedding_bag.default: (0, None, 1),
    _ATEN._embedding_bag_forward_only.default: (0, None, 1),
    _ATEN.index_select.default: (0, 1, 2),
    _ATEN.gather.default: (0, 1, 2),
    _ATEN.scatter.src: (0, 1, 2),
    _ATEN.scatter.value: (0, 1, 2),
    _ATEN.scatter_add.default: (0, 1, 2),
}
"""Operator → which arguments are the table, its axis (None for the first) and the indices."""

_WHOLE = frozenset({"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "transpose", "permute",
                    "t", "expand", "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "type_as",
                    "repeat", "view_as", "expand_as", "mT", "movedim"})  # fmt: skip


def index_ranges(program: ExportedProgram, spec: ModelSpec) -> dict[str, Range]:
    """The range of every input that is found to be indices."""
    user = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    names = dict(zip(placeholders, spec.inputs, strict=True))
    found: dict[str, Range] = {}
    for node in program.graph.nodes:
        indexed = _indexed(node)
        if indexed is None:
            continue
        indices, size = indexed
        origin = _origin(indices)
        if origin is None or origin[0] not in names:
            continue
        name, shift = names[origin[0]], origin[1]
        low, high = found.get(name, (-shift, None))
        own = None if size is None else size - 1 - shift
        found[name] = (
            max(low, -shift),
            own if high is None else high if own is None else min(high, own),
        )
    return found


def note_ranges(model: ir.Model, ranges: dict[str, Range]) -> None:
    """Write the ranges to the graph's inputs, where the stages' specs take them from."""
    for value in model.graph.inputs:
        if value.name in ranges:
            low, high = ranges[value.name]
            value.metadata_props[RANGE] = f"{low}:{'' if high is None else high}"


def _indexed(node: torch.fx.Node) -> tuple[Any, int | None] | None:
    """What a node takes for indices, and how many places there are."""
    if node.target is _ATEN.one_hot.default:
        classes = node.args[1] if len(node.args) > 1 else -1
        return node.args[0], classes if isinstance(classes, int) and classes > 0 else None
    if node.target not in _TABLES or len(node.args) < 2:
        return None
    table, axis, indices = _TABLES[node.target]
    value = getattr(node.args[table], "meta", {}).get("val")
    along = 0 if axis is None else node.args[axis]
    if value is None or not value.ndim or not isinstance(along, int):
        return None
    size = value.shape[along]
    return node.args[indices], size if isinstance(size, int) else None


def _origin(value: Any) -> tuple[torch.fx.Node, int] | None:
    """The placeholder that a value is, all of it, and what was added to it."""
    shift = 0
    while isinstance(value, torch.fx.Node) and value.op == "call_function":
        target = value.target
        name = (
            target._schema.name.removeprefix("aten::")
            if isinstance(target, torch._ops.OpOverload)
            else ""
        )
        if name in ("add", "sub") and len(value.args) > 1 and not value.kwargs:
            first, second = value.args[:2]
            if isinstance(second, int):
                shift += second if name == "add" else -second
            elif isinstance(first, int) and name == "add":
                shift, first = shift + first, second
            else:
                return None
            value = first
        elif (name == "slice" and value.args[2:] in ((), (0,), (0, 2**63 - 1))) or (
            name in _WHOLE
            and (kind := value.meta.get("val")) is not None
            and not kind.is_floating_point()
        ):
            value = value.args[0]
        else:
            return None
    return (
        (value, shift) if isinstance(value, torch.fx.Node) and value.op == "placeholder" else None
    )
