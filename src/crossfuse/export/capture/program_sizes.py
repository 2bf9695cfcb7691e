"""The node of each size in an exported program, so that none is computed twice."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["NUMBER_OF_ELEMENTS", "ProgramSizes"]

NUMBER_OF_ELEMENTS = torch.ops.aten.sym_numel.default
"""The operator that gives how many elements a tensor has."""


class ProgramSizes:
    """The node of each size, by its expression; sums and products of the inputs' dimensions are
    computed from those."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._nodes: dict[str, fx.Node] = {}
        self._axes: dict[str, tuple[fx.Node, int]] = {}
        for node in graph.nodes:
            if node.op != "placeholder":
                break
            self._last_input = node
            if isinstance(node.meta.get("val"), Tensor):
                self._axes |= {
                    str(n): (node, i)
                    for i, n in enumerate(node.meta["val"].shape)
                    if isinstance(n, torch.SymInt)
                }

    def shared(self, node: fx.Node) -> fx.Node:
        """The node of this size that is to be used; another one takes its place."""
        size = node.meta.get("val")
        if not isinstance(size, torch.SymInt) or node.target is NUMBER_OF_ELEMENTS:
            return node
        key = str(size)
        if key not in self._nodes:
            read = node.target is torch.ops.aten.sym_size.int
            computed = self._computed(size.node.expr, node) if read or key in self._axes else None
            self._nodes[key] = computed if isinstance(computed, fx.Node) else node
        if (known := self._nodes[key]) is not node:
            node.replace_all_uses_with(known)
            self._graph.erase_node(node)
        return known

    def _computed(self, expression: Any, before: fx.Node) -> fx.Node | int | None:
        """A sum or product of inputs' dimensions; None where it is something else."""
        if expression.is_Integer:
            return int(expression)
        key = str(expression)
        if key in self._nodes:
            return self._nodes[key]
        if key in self._axes:
            self._nodes[key] = self._of_input(key)
            return self._nodes[key]
        if not (expression.is_Add or expression.is_Mul):
            return None
        operate: Callable[[Any, Any], Any] = operator.add if expression.is_Add else operator.mul
        first, *others = [self._computed(part, before) for part in expression.args]
        for other in others:
            if first is None or other is None:
                return None
            with self._graph.inserting_before(before):
                both = self._graph.call_function(operate, (first, other))
            both.meta["val"] = operate(_size(first), _size(other))
            first = both
        return first

    def _of_input(self, key: str) -> fx.Node:
        tensor, axis = self._axes[key]
        with self._graph.inserting_after(self._last_input):
            node = self._graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
        node.meta["val"] = tensor.meta["val"].shape[axis]
        return node


def _size(part: fx.Node | int) -> Any:
    return part if isinstance(part, int) else part.meta["val"]
