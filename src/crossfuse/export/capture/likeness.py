"""Which calls of an operator are alike: those that a trace can't tell from each other.

Rules:

1. Alike are calls of one operator with the same numbers, the same operands where one stands twice,
   and tensors of the same kind, type, device, sizes, strides and offset. Sizes that are symbols
   are compared as expressions: to compare them as numbers would make a guard.

A call is like no other where a tensor's content is known to the trace (PyTorch computes with it,
and a body may hold what came out), or where it is of a kind that isn't known here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten

__all__ = ["likeness"]

_NUMBERS = (int, float, bool, str, type(None))
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _UnlikeError(Exception):
    """It is like no other."""


def likeness(node: fx.Node, inputs: Sequence[fx.Node]) -> Hashable | None:
    """What calls alike share; None for one that is like no other.

    Args:
        node: a call with fake values, whose target can be hashed.
        inputs: the nodes that it reads, each once.
    """
    places = {given: place for place, given in enumerate(inputs)}
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: f"input {places[n]}")
    try:
        return node.target, repr(arguments), tuple(_kind(n.meta["val"]) for n in inputs)
    except _UnlikeError:
        return None


def _kind(value: Any) -> Hashable:
    if not isinstance(value, tuple | list | dict):
        return _leaf_kind(value)
    leaves, structure = tree_flatten(value)
    return str(structure), tuple(_leaf_kind(leaf) for leaf in leaves)


def _leaf_kind(leaf: Any) -> Hashable:
    if isinstance(leaf, _SYMBOLS):
        return type(leaf), leaf.node.expr
    if isinstance(leaf, _NUMBERS):
        return type(leaf), leaf
    if type(leaf) is not FakeTensor or leaf.constant is not None or leaf.layout != torch.strided:
        raise _UnlikeError
    return (
        *(leaf.dtype, leaf.device, leaf.requires_grad, leaf.is_conj(), leaf.is_neg()),
        *(_expressions(leaf.shape), _expressions(leaf.stride())),
        _expressions([leaf.storage_offset()]),
    )


def _expressions(sizes: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in sizes)
