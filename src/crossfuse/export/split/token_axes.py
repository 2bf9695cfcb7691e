"""Along which axes of its operands a node has what stands along an axis of its results, place by
place.

The rules hold where a place of the result is made of the same place of the operands, and of nothing
else along that axis: of rows of a product, of a normalization behind the axis, of layout. They are
the ground on which a value is cut in two along its tokens (`row_parts`), and on which what a mask
holds at a place is followed back (`mask_bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from crossfuse.export.matching.axes import Size
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, dims_of, rank_of, same_dim

__all__ = ["ELEMENTWISE", "index_parts", "integers", "operand_axes", "own_axis"]

OperandAxes = Sequence[int | None]
"""For each operand its axis, or None where it is needed whole, whatever the place."""

ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "PRelu"),
        *("And", "Or", "Xor", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
        *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", "Where", "IsNaN"),
        *("IsInf", "Cast", "CastLike", "Identity", "Neg", "Abs", "Sign", "Sqrt", "Reciprocal"),
        *("Exp", "Log", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Erf", "Sigmoid", "Floor"),
        *("Ceil", "Round", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Softplus"),
        *("Softsign", "HardSigmoid", "HardSwish", "ThresholdedRelu", "Swish", "Clip", "Atan"),
    }
)
"""Operators that compute each place of the same place of their operands, which they broadcast."""

_SHAPED = frozenset({"Reshape", "Expand"})
"""Operators whose second operand is the shape of their result."""


def operand_axes(node: ir.Node, axis: int) -> OperandAxes | None:
    """The operands' axes that belong to an axis of the results.

    Returns:
        One entry per operand; None where the places of the results are no places of operands, or
        it can't be told.
    """
    rule = _RULES.get(node.op_type) if is_onnx(node) else None
    data = node.inputs[:1] if node.op_type in _SHAPED else node.inputs
    known = all(rank_of(v) is not None for v in (*data, *node.outputs) if v is not None)
    return rule(node, axis) if rule is not None and known else None


def integers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a constant, None where it is none."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(n) for n in tensor.numpy().reshape(-1)]


def index_parts(node: ir.Node) -> list[ir.Value] | None:
    """What ``GatherND`` takes along each axis of its data, each ``[…, 1]``; None where that isn't
    known, or it takes more than single elements."""
    indices, last = node.inputs[1], (rank_of(node.inputs[1]) or 0) - 1
    joined = indices.producer() if indices is not None else None
    batched = node.attributes.get_int("batch_dims", 0)
    if indices is None or last < 0 or batched:
        return None
    apart = joined is not None and is_onnx(joined, "Concat") and own_axis(joined, 0) == last
    operands = joined.inputs if joined is not None and apart else [indices]
    parts = [v for v in operands if v is not None and dim_of(v, last) == 1]
    return parts if len(parts) == len(operands) == rank_of(node.inputs[0]) else None


def own_axis(node: ir.Node, default: int) -> int:
    """The axis that a node works along, counted from the first."""
    axis = node.attributes.get_int("axis", default)
    return (default if axis is None else axis) % max(1, rank_of(node.inputs[0]) or 1)


def _aligned(value: ir.Value | None, axis: int, rank: int) -> int | None:
    """The axis of an operand that is broadcast; None where it has one place for all."""
    own = axis - (rank - (rank_of(value) or 0))
    return None if value is None or own < 0 or dim_of(value, own) == 1 else own


def _elementwise(node: ir.Node, axis: int) -> OperandAxes:
    if node.op_type == "CastLike":
        return [axis, None]
    rank = rank_of(node.outputs[0]) or 0
    return [_aligned(value, axis, rank) for value in node.inputs]


def _first(node: ir.Node, axis: int) -> OperandAxes:
    return [axis, *[None] * (len(node.inputs) - 1)]


def _from_axis(node: ir.Node, axis: int) -> OperandAxes | None:
    return _first(node, axis) if axis < own_axis(node, -1) else None


def _beside_last(node: ir.Node, axis: int) -> OperandAxes | None:
    return _first(node, axis) if axis != own_axis(node, -1) else None


def _beside_first(node: ir.Node, axis: int) -> OperandAxes | None:
    return _first(node, axis) if axis != own_axis(node, 0) else None


def _reduce(node: ir.Node, axis: int) -> OperandAxes | None:
    rank = rank_of(node.inputs[0]) or 0
    reduced = _axes_of(node, rank)
    if not reduced:
        return None
    if node.attributes.get_int("keepdims", 1):
        return _first(node, axis) if axis not in reduced else None
    return _first(node, [a for a in range(rank) if a not in reduced][axis])


def _axes_of(node: ir.Node, rank: int) -> list[int] | None:
    """Axes that are an operand or an attribute, counted from the first."""
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1:
        given = integers(node.inputs[1])
    return None if given is None else [a % rank for a in given]


def _product(node: ir.Node, axis: int) -> OperandAxes | None:
    ranks = [rank_of(value) or 0 for value in node.inputs]
    rank = rank_of(node.outputs[0]) or 0
    if min(ranks) < 2:
        return None
    if axis >= rank - 2:
        own = (ranks[0] - 2, None) if axis == rank - 2 else (None, ranks[1] - 1)
        return list(own)
    return [_aligned(value, axis, rank) for value in node.inputs]


def _gemm(node: ir.Node, axis: int) -> OperandAxes:
    name = "transB" if axis else "transA"
    own = axis ^ (node.attributes.get_int(name, 0) or 0)
    rest = [_aligned(value, axis, 2) for value in node.inputs[2:]]
    return [None, own, *rest] if axis else [own, None, *rest]


def _gather(node: ir.Node, axis: int) -> OperandAxes:
    along, inner = own_axis(node, 0), rank_of(node.inputs[1]) or 0
    if axis < along:
        return [axis, None]
    return [None, axis - along] if axis < along + inner else [axis - inner + 1, None]


def _gather_elements(node: ir.Node, axis: int) -> OperandAxes:
    return [None if axis == own_axis(node, 0) else axis, axis]


def _transpose(node: ir.Node, axis: int) -> OperandAxes:
    rank = rank_of(node.inputs[0]) or 0
    perm = node.attributes.get_ints("perm", None) or list(range(rank))[::-1]
    return [perm[axis]]


def _unsqueeze(node: ir.Node, axis: int) -> OperandAxes | None:
    rank = rank_of(node.outputs[0]) or 0
    new = _axes_of(node, rank)
    if new is None or axis in new:
        return None
    return _first(node, [a for a in range(rank) if a not in new].index(axis))


def _squeeze(node: ir.Node, axis: int) -> OperandAxes | None:
    rank = rank_of(node.inputs[0]) or 0
    gone = _axes_of(node, rank)
    return None if gone is None else _first(node, [a for a in range(rank) if a not in gone][axis])


def _reshape(node: ir.Node, axis: int) -> OperandAxes | None:
    """An axis that has its size before and behind, and as many elements in front of it."""
    before, behind = dims_of(node.inputs[0]) or [], dims_of(node.outputs[0]) or []
    front = _elements(behind[:axis])
    for own, dim in enumerate(before):
        if same_dim(dim, behind[axis]) and front is not None and _elements(before[:own]) == front:
            return [own, None]
    return None


def _elements(dims: Sequence[int | str | None]) -> Size | None:
    sizes = [None if dim is None else Size.parse(dim) for dim in dims]
    known = [size for size in sizes if size is not None]
    return math.prod(known, start=Size()) if len(known) == len(sizes) else None


def _expand(node: ir.Node, axis: int) -> OperandAxes:
    return [_aligned(node.inputs[0], axis, rank_of(node.outputs[0]) or 0), None]


def _slice(node: ir.Node, axis: int) -> OperandAxes | None:
    along = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    rank = rank_of(node.inputs[0]) or 0
    if along is None or axis in [a % rank for a in along]:
        return None
    return _first(node, axis)


def _concat(node: ir.Node, axis: int) -> OperandAxes | None:
    return None if axis == own_axis(node, 0) else [axis] * len(node.inputs)


def _tile(node: ir.Node, axis: int) -> OperandAxes | None:
    repeats = integers(node.inputs[1])
    return [axis, None] if repeats is not None and repeats[axis] == 1 else None


def _pad(node: ir.Node, axis: int) -> OperandAxes | None:
    rank, amounts = rank_of(node.inputs[0]) or 0, integers(node.inputs[1])
    some_axes = len(node.inputs) > 3 and node.inputs[3] is not None
    if some_axes or amounts is None or amounts[axis] or amounts[axis + rank]:
        return None
    return _first(node, axis)


def _cumulative(node: ir.Node, axis: int) -> OperandAxes | None:
    along = integers(node.inputs[1])
    rank = rank_of(node.inputs[0]) or 1
    return None if along is None or axis in [a % rank for a in along] else [axis, None]


def _trilu(node: ir.Node, axis: int) -> OperandAxes | None:
    return _first(node, axis) if axis < (rank_of(node.inputs[0]) or 0) - 2 else None


_RULES: Mapping[str, Callable[[ir.Node, int], OperandAxes | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _from_axis
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK"), _beside_last),
    **dict.fromkeys(("Split",), _beside_first),
    **dict.fromkeys(
        [
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        ],
        _reduce,
    ),
    "MatMul": _product,
    "Gemm": _gemm,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Concat": _concat,
    "Tile": _tile,
    "Pad": _pad,
    "Trilu": _trilu,
    "CumSum": _cumulative,
}
