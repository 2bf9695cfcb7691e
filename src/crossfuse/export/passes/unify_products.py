"""Write every product of two activations as ``MatMul``, so that attention has one form.

Rules:

1. ``Einsum`` of two operands whose labels appear once each, and where every label is a batch axis,
   a free axis of one operand or a sum, becomes transposes, reshapes and a ``MatMul``.
2. ``Gemm`` without a third operand becomes a ``MatMul``, with transposes and a factor where it has
   them.

It must not fire on more than two operands, repeated labels (a diagonal), an ellipsis, or a label
that is summed in one operand alone; nor on products with weights, which are no attention and have
kernels of their own.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from crossfuse.export.matching.axes import Axes, Axis, AxisFactor, axes_of, size_of
from crossfuse.export.matching.layout_builder import LayoutBuilder, UnknownSizeError
from crossfuse.export.matching.softmax_chain import active_values
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.metadata import module_path
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dims_of

__all__ = ["UnifyProductsPass"]


class UnifyProductsPass(FusionPass):
    """``Einsum`` and ``Gemm`` of activations → ``MatMul``."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        active = active_values(model.graph)
        modified = False
        missed: list[Missed] = []
        for node in list(model.graph):
            if not is_onnx(node, "Einsum", "Gemm") or not all(v in active for v in node.inputs):
                continue
            layout = LayoutBuilder()
            write = _einsum if node.op_type == "Einsum" else _gemm
            try:
                result = write(node, layout)
            except UnknownSizeError as size:
                result = f"the size {size} of its {node.op_type} is not known"
            if isinstance(result, str):
                missed.append(Missed(module_path(node), result))
                continue
            layout.build.replace(node, result)
            modified = True
        return FusionResult(model, modified, tuple(missed))


def _einsum(node: ir.Node, layout: LayoutBuilder) -> ir.Value | str:
    """The product, or why the operator is none."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    match = re.fullmatch(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)", equation)
    left, right = (*node.inputs, None)[:2]
    one, two = (None if value is None else axes_of(value) for value in (left, right))
    if match is None or left is None or right is None:
        return f"its Einsum {equation} is not of two operands with one label per axis"
    if one is None or two is None:
        return f"the rank of an operand of its Einsum {equation} is unknown"
    first, second, result = match.groups()
    if any(len(set(labels)) < len(labels) for labels in (first, second, result)):
        return f"its Einsum {equation} repeats a label"
    if any(
        (label in first) + (label in second) + (label in result) < 2 for label in first + second
    ):
        return f"its Einsum {equation} sums over an axis of one operand alone"
    factors = _factors_of_labels(((first, one), (second, two)))
    one, two = (
        [factors[label] if group else [] for label, group in zip(labels, axes, strict=True)]
        for labels, axes in ((first, one), (second, two))
    )
    layout.knows(left, one)
    layout.knows(right, two)

    def merged(labels: list[str]) -> list[AxisFactor]:
        return [factor for label in labels for factor in factors[label]]

    head: Axes = [factors[label] for label in result if label in first and label in second]
    rows = merged([label for label in result if label in first and label not in second])
    columns = merged([label for label in result if label in second and label not in first])
    summed = merged([label for label in first if label in second and label not in result])
    a = layout.arrange(left, one, [*head, rows, summed])
    b = layout.arrange(right, two, [*head, summed, columns])
    axes = [*head, rows, columns]
    product = layout.op("MatMul", [a, b], node.outputs[0], [size_of(axis).dim for axis in axes])
    return layout.arrange(product, axes, [factors[label] for label in result])


def _factors_of_labels(operands: tuple[tuple[str, Axes], ...]) -> dict[str, Axis]:
    """Label → factors; of the operand that says most where both have it."""
    factors: dict[str, Axis] = {}
    for labels, axes in operands:
        for label, group in zip(labels, axes, strict=True):
            known = factors.get(label)
            if known is None or (group and (not known or size_of(known).static is None)):
                factors[label] = group
    return factors


def _gemm(node: ir.Node, layout: LayoutBuilder) -> ir.Value | str:
    """The product, or why the operator is none."""
    if len(node.inputs) > 2:
        return "its Gemm adds a third activation"
    sides = []
    for value, name in zip(node.inputs, ("transA", "transB"), strict=True):
        assert value is not None
        if node.attributes.get_int(name, 0):
            value = layout.build.op(
                "Transpose", value, like=value, shape=_turned(value), perm=[1, 0]
            )
        sides.append(value)
    out = node.outputs[0]
    result = layout.build.op("MatMul", *sides, like=out, shape=out.shape)
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1.0:
        return result
    assert out.dtype is not None
    factor = layout.constant(alpha, out.dtype.numpy())
    return layout.build.op("Mul", result, factor, like=out, shape=out.shape)


def _turned(value: ir.Value) -> list[int | str | None] | None:
    dims = dims_of(value)
    return None if dims is None else dims[::-1]
