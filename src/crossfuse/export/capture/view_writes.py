"""Writes into tensors that a program makes itself, and into views of these, in functional form:
``scores[:, :m] = x`` becomes a new tensor, which all that follows reads.

Rules:

1. The tensor is an operator's own new one, not an input, a weight or a view of another.
2. What is written becomes the functional operator's result, on the view as it was; it is scattered
back view by view, and everything behind the write reads the new tensor.
3. A view taken before the write and read behind it is taken again, of the new tensor.

It must not fire where a view has no operator that scatters into it (``view``, ``expand``), nor
where what is read behind the write may or may not be a view (``reshape``). Such writes are left as
they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

__all__ = ["functional_writes", "written_over"]

ATEN = torch.ops.aten
_SCATTER: dict[Any, Any] = {
    ATEN.slice.Tensor: ATEN.slice_scatter.default,
    ATEN.select.int: ATEN.select_scatter.default,
    ATEN.diagonal.default: ATEN.diagonal_scatter.default,
}
_INVERSE: dict[Any, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    ATEN.transpose.int: lambda a, b: (ATEN.transpose.int, (a, b)),
    ATEN.unsqueeze.default: lambda axis: (ATEN.squeeze.dim, (axis,)),
    ATEN.squeeze.dim: lambda axis: (ATEN.unsqueeze.default, (axis,)),
    ATEN.permute.default: lambda axes: (ATEN.permute.default, (_inverted(axes),)),
}
"""A view's operator → the one that leads back, with its arguments behind the tensor."""

_NEW = (ATEN.linear.default, ATEN.matmul.default, ATEN.softmax.int, ATEN.log_softmax.int)
"""Composites that never return their argument."""

Way = tuple[fx.Node, ...]
"""From a tensor's own view to a view of that, and so on."""


def functional_writes(graph: fx.Graph) -> set[fx.Node]:
    """Give writes their functional forms, in place; those that don't match stay.

    Returns:
        the new nodes; each has the fake value of what it stands for, whose strides may differ.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    made: set[fx.Node] = set()
    for node in list(graph.nodes):
        write = _write_of(node)
        if write is not None and write.leaves_views(places):
            made |= write.replace(graph, places)
    return made


def written_over(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``tensor.copy_(source)`` leaves in the tensor."""
    return source.to(tensor.dtype).expand(tensor.shape)


@dataclass(frozen=True)
class _Write:
    """One write.

    Attributes:
        node: the operator that writes.
        form: its functional form.
        base: the tensor that is written.
        views: from the base's own view to what the operator is given; none where it is the base.
    """

    node: fx.Node
    form: OpOverload
    base: fx.Node
    views: Way

    def leaves_views(self, places: Mapping[fx.Node, int]) -> bool:
        """All that is read behind the write can be taken again."""
        return all(
            part is self.node or _is_view(part) for way in self._read_behind(places) for part in way
        )

    def _read_behind(self, places: Mapping[fx.Node, int]) -> list[Way]:
        """Ways to what shares the tensor's memory, was there before the write (or is its result),
        and is read behind it."""
        here = places[self.node]
        return [
            way
            for way in _aliases(self.base)
            if places[way[-1]] <= here and any(places[user] > here for user in way[-1].users)
        ]

    def replace(self, graph: fx.Graph, places: dict[fx.Node, int]) -> set[fx.Node]:
        """Put the functional form in its place, and what follows on new tensors; all that is
        new."""
        node, here = self.node, places[self.node]
        behind = self._read_behind(places)
        with graph.inserting_before(node):
            part = graph.call_function(self.form, node.args, node.kwargs)
            made = {part: self.views[-1] if self.views else self.base}
            steps = list(zip((self.base, *self.views), self.views, strict=False))
            for before, view in reversed(steps):
                part = _scattered(graph, before, view, part)
                made[part] = before
            again = {self.base: part}
            for old in dict.fromkeys(old for way in behind for old in way):
                if old is node:
                    again[old] = again[old.args[0]]  # type: ignore[index]
                else:
                    again[old] = graph.node_copy(old, lambda n: again.get(n, n))
                    made[again[old]] = old
        for new, old in made.items():
            new.meta = {**node.meta, "val": old.meta["val"]}
            places[new] = here
        for old in (self.base, *(way[-1] for way in behind)):
            old.replace_all_uses_with(again[old], delete_user_cb=lambda n: places[n] > here)
        graph.erase_node(node)
        return {*made}


def _write_of(node: fx.Node) -> _Write | None:
    """The write with the tensor that it reaches; None where that is not the program's own."""
    form = _functional(node.target)
    if form is None:
        return None
    views: list[fx.Node] = []
    reached: Any = node.args[0]
    while isinstance(reached, fx.Node) and _can_be_written(reached):
        views.append(reached)
        reached = reached.args[0]
    if not isinstance(reached, fx.Node) or not isinstance(reached.target, OpOverload):
        return None
    own = not reached.target._schema.is_mutable and not _may_alias(reached.target)
    return _Write(node, form, reached, tuple(reversed(views))) if own else None


def _can_be_written(view: fx.Node) -> bool:
    """Something leads back from the view to what it is of."""
    if view.target is ATEN.squeeze.dim:  # does nothing to an axis of another size than 1
        of: Any = view.args[0]
        return bool(view.meta["val"].ndim < of.meta["val"].ndim)
    return view.target in _SCATTER or (view.target in _INVERSE and not view.kwargs)


def _functional(target: object) -> OpOverload | None:
    """The functional form of an operator that writes into its first argument and returns it:
    ``add_`` → ``add``."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(ATEN, name[:-1], None) if name.endswith("_") else None
    if packet is None or target._overloadname not in packet.overloads():
        return None
    found: OpOverload = getattr(packet, target._overloadname)
    return found


def _aliases(tensor: fx.Node, way: Way = ()) -> Iterator[Way]:
    """Ways to all that may share the tensor's memory."""
    for user in tensor.users:
        if user.op == "call_function" and (
            not isinstance(user.target, OpOverload) or _may_alias(user.target)
        ):
            yield (*way, user)
            yield from _aliases(user, (*way, user))


def _may_alias(target: OpOverload) -> bool:
    """The operator may return its argument, or a view of it."""
    return target not in _NEW and (
        target._can_decompose() or any(r.alias_info for r in target._schema.returns)
    )


def _is_view(node: fx.Node) -> bool:
    """It returns a view for certain, or is one of several."""
    target = node.target
    return target is operator.getitem or (
        isinstance(target, OpOverload)
        and not target._schema.is_mutable
        and not target._can_decompose()
    )


def _scattered(graph: fx.Graph, before: fx.Node, view: fx.Node, part: fx.Node) -> fx.Node:
    """The tensor with the view's part replaced."""
    if view.target in _SCATTER:
        return graph.call_function(
            _SCATTER[view.target], (before, part, *view.args[1:]), dict(view.kwargs)
        )
    target, arguments = _INVERSE[view.target](*view.args[1:])
    return graph.call_function(target, (part, *arguments))


def _inverted(axes: list[int]) -> list[int]:
    return [
        place for _, place in sorted((axis % len(axes), place) for place, axis in enumerate(axes))
    ]
