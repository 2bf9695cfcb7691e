"""Write every product of two activations as ``MatMul``, so that attention has one form.

Rules:

1. ``Einsum`` of two operands whose labels appear once each, and where every label is a batch axis,
   a free axis of one operand or a sum, becomes transposes, reshapes and a ``MatMul``. Each axis of
   an ellipsis has a label of its own.
2. ``Einsum`` of one operand that changes the order of its axes becomes a ``Transpose``.
3. ``Gemm`` without a third operand becomes a ``MatMul``, with transposes and a factor where it has
   them.

It must not fire on more than two operands (`split_einsums` makes two of them), repeated labels (a
diagonal), or a label that is summed in one operand alone; nor on products with weights, which are
no attention and have kernels of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from crossfuse.export.matching.axes import (
    Axes,
    Axis,
    AxisFactor,
    FactoredValue,
    all_factors,
    axes_of,
    size_of,
)
from crossfuse.export.matching.equations import Equation, read_equation
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


_Groups = Mapping[str, Axis]
"""Label → the factors of its axis."""


def _einsum(node: ir.Node, layout: LayoutBuilder) -> ir.Value | str:
    """The product, or why the operator is none."""
    text = node.attributes["equation"].as_string()
    found = [(v, axes_of(v)) for v in node.inputs if v is not None]
    operands = [FactoredValue(value, axes) for value, axes in found if axes is not None]
    if len(operands) < len(node.inputs):
        return f"the rank of an operand of its Einsum {text} is unknown"
    equation = read_equation(text, [len(operand.axes) for operand in operands])
    if equation is None or len(operands) > 2 or "." in "".join(equation.operands):
        return f"its Einsum {text} is not of one or two operands with one label per axis"
    if any(len(set(labels)) < len(labels) for labels in (*equation.operands, equation.result)):
        return f"its Einsum {text} repeats a label"
    groups = _factors_of_labels(
        [(labels, each.axes) for labels, each in zip(equation.operands, operands, strict=True)]
    )
    operands = [
        FactoredValue(
            each.value, [groups[c] if own else [] for c, own in zip(labels, each.axes, strict=True)]
        )
        for labels, each in zip(equation.operands, operands, strict=True)
    ]
    for operand in operands:
        layout.knows(operand.value, operand.axes)
    if len(operands) == 1:
        return _moved(equation, operands[0], groups, layout)
    return _product(equation, operands, groups, node.outputs[0], layout)


def _moved(
    equation: Equation, operand: FactoredValue, groups: _Groups, layout: LayoutBuilder
) -> ir.Value | str:
    """The one operand with its axes in another order."""
    if set(equation.result) != set(equation.operands[0]):
        return f"its Einsum {equation.text} sums over an axis of one operand alone"
    return layout.arrange(operand.value, operand.axes, [groups[label] for label in equation.result])


def _product(
    equation: Equation,
    operands: Sequence[FactoredValue],
    groups: _Groups,
    like: ir.Value,
    layout: LayoutBuilder,
) -> ir.Value | str:
    """The product of two operands, as one of matrices."""
    (first, second), result = equation.operands, equation.result
    if any(
        (label in first) + (label in second) + (label in result) < 2 for label in first + second
    ):
        return f"its Einsum {equation.text} sums over an axis of one operand alone"

    def merged(labels: list[str]) -> list[AxisFactor]:
        return [factor for label in labels for factor in groups[label]]

    head: Axes = [groups[label] for label in result if label in first and label in second]
    rows = merged([label for label in result if label in first and label not in second])
    columns = merged([label for label in result if label in second and label not in first])
    summed = merged([label for label in first if label in second and label not in result])
    sides = []
    for operand, last in zip(operands, ((rows, summed), (summed, columns)), strict=True):
        # Batch axes that one side lacks are broadcast by the product.
        partial = not {*last[0], *last[1]} <= set(all_factors(operand.axes))
        target = [*head, *last]
        sides.append(layout.arrange(operand.value, operand.axes, target, expand=partial))
    axes = [*head, rows, columns]
    product = layout.op("MatMul", sides, like, [size_of(axis).dim for axis in axes])
    return layout.arrange(product, axes, [groups[label] for label in result])


def _factors_of_labels(operands: Sequence[tuple[str, Axes]]) -> dict[str, Axis]:
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
