"""What is computed of several samples of a batch at once, and so isn't the same for contexts that
are there once as for contexts repeated for their queries.

Rules, of a value that depends on context inputs alone and has the batch behind it:

1. The batch is one factor of one of its axes. Where none has it, the samples were joined; where two
   have it, they were paired; where an axis has a part of it, or more, they were moved.
2. No operator takes its samples in an order, or sums or compares along their axis.
3. No number is computed with how many samples there are; sizes of shapes may be.

What none of this is found in is taken to keep its samples apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.core.dimensions import size_at, symbols_in
from crossfuse.export.split.dependence import (
    READS_SIZES,
    Content,
    Dependence,
    shape_symbols,
    sizes_read,
)
from crossfuse.graph.attention_node import AttentionNode, is_attention
from crossfuse.graph.shapes import dims_of, rank_of

__all__ = ["Batch", "keeps_apart", "mixing", "no_axis_of_their_own", "runs_along"]

JOINED = "it joins the samples of the batch"
PAIRED = "it pairs the samples of the batch with each other"
MOVED = "it takes some samples of the batch, or adds to them"
COUNTED = "it is computed with the number of samples"
ALONG = "{} runs along the batch"

_ALONG_AXIS: Mapping[str, int] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK"), -1),
    **dict.fromkeys(("Gather", "GatherElements", "ScatterElements", "Compress"), 0),
}
"""Operators that work along one axis of their first input, and that axis by default."""

_FROM_AXIS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Operators that work along an axis and all behind it."""

_OVER_PLACES = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "Resize", "GridSample", "LRN"),
        *("AveragePool", "MaxPool", "LpPool", "InstanceNormalization", "GroupNormalization"),
    }
)
"""Operators that work along all axes of their first input but the first two."""

_END = 2**31 - 1
"""Slices that end there or behind end with their axis."""

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

_SHAPING = frozenset(
    {
        *("Reshape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Tile", "Pad", "Split", "Resize"),
        *("GatherND", "ScatterND", "Gather", "Transpose", "Identity", "CastLike", "Upsample"),
    }
)
"""Operators whose operands behind the first say where elements go, and are no numbers among
them."""


@dataclass(frozen=True)
class Batch:
    """The batch dimension of contexts and queries.

    Attributes:
        name: of the dimension.
        named: all dimensions of the graph's inputs; other names stand for sizes that are not known.
    """

    name: str
    named: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Graph, name: str) -> Batch:
        """The batch of a graph."""
        return cls(name, frozenset().union(*(shape_symbols(value) for value in graph.inputs)))

    def axes(self, value: ir.Value | None) -> list[int]:
        """The axes that the batch is a factor of."""
        return [a for a, dim in enumerate(dims_of(value) or ()) if self.name in symbols_in(dim)]

    def knows(self, dims: Sequence[int | str | None]) -> bool:
        """All sizes are numbers, or made of dimensions of inputs."""
        return all(dim is not None and symbols_in(dim) <= self.named for dim in dims)


_TAKES = frozenset({"Gather", "GatherND", "GatherElements"})
"""Operators that take elements at places."""


def mixing(
    graph: ir.Graph, dependence: Dependence, shared: str | None, *, met: bool = False
) -> dict[ir.Value, str]:
    """Values of the context alone that mix the samples of the batch, with the reason; not those
    that are made of such values.

    Args:
        graph: the whole graph.
        dependence: of its values.
        shared: the batch dimension of contexts and queries; None where they share none.
        met: ask of what is made of contexts and queries, too.
    """
    if shared is None:
        return {}
    numbers, batch = _numbers_of_samples(graph, shared), Batch.of(graph, shared)
    found: dict[ir.Value, str] = {}
    for node in graph:
        content = dependence.of(node.outputs[0])
        if Content.CONTEXT not in content or (content != Content.CONTEXT and not met):
            continue
        batched = [v for v in node.inputs if v is not None and batch.axes(v)]
        reason = COUNTED if _counts(node, numbers, dependence) else None
        if reason is not None:
            found.update(dict.fromkeys(_places_behind(node, numbers, dependence), COUNTED))
        if reason is None and any(Content.CONTEXT in dependence.of(v) for v in batched):
            reason = _along(node, batch) or _by_shapes(node, batch)
        if reason is not None:
            found.update(dict.fromkeys(node.outputs, reason))
    return found


def runs_along(node: ir.Node, batch: Batch) -> bool:
    """Whether an operator takes what stands along the axis in an order, or sums or compares it."""
    return _along(node, batch) is not None


def keeps_apart(value: ir.Value, batch: Batch) -> bool:
    """Whether a value's shape lets each of its elements belong to one place of the axis; also where
    the shape isn't known."""
    return _by_shape(value, batch) is None


def no_axis_of_their_own(values: Iterable[ir.Value], batch: Batch) -> dict[ir.Value, str]:
    """Values that can't have the contexts' batch in place of the queries', though they may have a
    batch, with the reason."""
    reasons = ((value, _no_axis_of_its_own(value, batch)) for value in values)
    return {value: reason for value, reason in reasons if reason is not None}


def _no_axis_of_its_own(value: ir.Value, batch: Batch) -> str | None:
    dims = dims_of(value)
    of_batch = [dim for dim in dims or () if batch.name in symbols_in(dim)]
    if dims is None or None in dims or (not of_batch and not batch.knows(dims)):
        return "its shape is not known"
    if of_batch in ([], [batch.name]):
        return None
    return f"the batch is no axis of its own in its shape [{', '.join(map(str, dims))}]"


def _by_shapes(node: ir.Node, batch: Batch) -> str | None:
    """What the shapes of a node's results say, of those that are in use."""
    used = [out for out in node.outputs if out.uses() or out.is_graph_output()]
    reasons = (_by_shape(out, batch) for out in used)
    return next((reason for reason in reasons if reason is not None), None)


def _by_shape(value: ir.Value, batch: Batch) -> str | None:
    """What a value's shape says of the samples behind it; None where nothing."""
    dims = dims_of(value)
    if dims is None:
        return None
    of_batch = [dim for dim in dims if batch.name in symbols_in(dim)]
    if len(of_batch) > 1:
        return PAIRED
    if of_batch:
        return None if _is_multiple(of_batch[0], batch.name) else MOVED
    return JOINED if batch.knows(dims) else None


def _is_multiple(dim: int | str | None, shared: str) -> bool:
    """A size is the batch times something, as far as numbers tell."""
    others = dict.fromkeys(symbols_in(dim), 7)
    sizes = [size_at(dim, {**others, shared: count}) for count in (0, 1, 2, 6)]
    if None in sizes:
        return True
    none, one, two, six = (size or 0 for size in sizes)
    return none == 0 and one > 0 and (two, six) == (2 * one, 6 * one)


def _along(node: ir.Node, batch: Batch) -> str | None:
    """The operator runs along the samples' axis."""
    check = _CHECKS.get("FusedAttention" if is_attention(node) else node.op_type)
    if check is None or not check(node, batch):
        return None
    return ALONG.format(node.op_type)


def _along_axis(node: ir.Node, batch: Batch) -> bool:
    axis = node.attributes.get_int("axis", _ALONG_AXIS[node.op_type]) or 0
    return axis % _rank(node) in batch.axes(node.inputs[0])


def _from_axis(node: ir.Node, batch: Batch) -> bool:
    axis = node.attributes.get_int("axis", -1)
    first = (-1 if axis is None else axis) % _rank(node)
    return any(a >= first for a in batch.axes(node.inputs[0]))


def _over_places(node: ir.Node, batch: Batch) -> bool:
    return any(axis > 1 for axis in batch.axes(node.inputs[0]))


def _recurrent(node: ir.Node, batch: Batch) -> bool:
    sequence = 1 if node.attributes.get_int("layout", 0) else 0
    return sequence in batch.axes(node.inputs[0])


def _cumulative(node: ir.Node, batch: Batch) -> bool:
    numbers, axes = _constant(node.inputs[1]), batch.axes(node.inputs[0])
    return bool(axes) if numbers is None else any(n % _rank(node) in axes for n in numbers)


def _sliced(node: ir.Node, batch: Batch) -> bool:
    """A slice of the batch with a step, or of a length that isn't known."""
    axes = batch.axes(node.inputs[0])
    starts, ends = _constant(node.inputs[1]), _constant(node.inputs[2])
    along = _constant(node.inputs[3]) if len(node.inputs) > 3 else list(range(_rank(node)))
    steps = _constant(node.inputs[4]) if len(node.inputs) > 4 else [1] * len(along or ())
    if along is None or steps is None:
        return bool(axes)
    dims = dims_of(node.outputs[0])
    for i, (axis, step) in enumerate(zip(along, steps, strict=False)):
        whole = starts is not None and ends is not None and (starts[i], step) == (0, 1)
        if axis % _rank(node) not in axes or (whole and ends is not None and ends[i] >= _END):
            continue
        if step != 1 or dims is None or not batch.knows([dims[axis % _rank(node)]]):
            return True
    return False


def _attends(node: ir.Node, batch: Batch) -> bool:
    """The samples are the keys of each other."""
    attention = AttentionNode(node)
    return any(1 in batch.axes(value) for value in (attention.key, attention.value))


_CHECKS: Mapping[str, Callable[[ir.Node, Batch], bool]] = {
    **dict.fromkeys(_ALONG_AXIS, _along_axis),
    **dict.fromkeys(_FROM_AXIS, _from_axis),
    **dict.fromkeys(_OVER_PLACES, _over_places),
    **dict.fromkeys(_RECURRENT, _recurrent),
    **dict.fromkeys(("CumSum", "CumProd"), _cumulative),
    "Slice": _sliced,
    "FusedAttention": _attends,
}


def _rank(node: ir.Node) -> int:
    return max(1, rank_of(node.inputs[0]) or 1)


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(n) for n in tensor.numpy().reshape(-1)]


def _numbers_of_samples(graph: ir.Graph, shared: str) -> set[ir.Value]:
    """Values of sizes and weights alone among whose elements is the number of samples, or what
    follows from it."""
    needs = sizes_read(graph)
    found: set[ir.Value] = set()
    for node in graph:
        if shared not in needs.get(node.outputs[0], ()):
            continue
        if node.op_type in READS_SIZES or any(v in found for v in _elements_of(node)):
            found.update(node.outputs)
    return found


def _elements_of(node: ir.Node) -> Sequence[ir.Value | None]:
    """The operands whose elements are among a node's."""
    if node.op_type == "ConstantOfShape":
        return ()
    return node.inputs[:1] if node.op_type in _SHAPING else node.inputs


def _counts(node: ir.Node, numbers: set[ir.Value], dependence: Dependence) -> bool:
    """The node computes with the number of samples.

    Integers may be places in the batch: they join the numbers, and elements of the context may be
    taken at such places.
    """
    if node.op_type in _TAKES and any(v in numbers for v in node.inputs[1:]):
        return dependence.of(node.inputs[0]) != Content.CONTEXT
    if not any(v in numbers for v in _elements_of(node)):
        return False
    dtype = node.outputs[0].dtype
    if dtype is None or not dtype.is_integer() or node.outputs[0].is_graph_output():
        return True
    numbers.update(node.outputs)
    return False


def _places_behind(node: ir.Node, numbers: set[ir.Value], dependence: Dependence) -> list[ir.Value]:
    """Integers of the context with the number of samples in them, that a node is made of."""
    found: dict[ir.Value, None] = {}
    pending = list(node.inputs)
    while pending:
        value = pending.pop()
        if value is None or value not in numbers or value in found:
            continue
        producer = value.producer()
        if producer is not None and Content.CONTEXT in dependence.of(value):
            found[value] = None
            pending += producer.inputs
    return list(found)
