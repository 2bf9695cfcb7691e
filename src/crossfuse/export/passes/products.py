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

from crossfuse.export.matching.axes import Atom, Axes, axes_of, size_of
from crossfuse.export.matching.layout_builder import Arranger, UnknownSizeError
from crossfuse.export.matching.softmax_chain import active_values

__all__ = ["unify_products"]


def unify_products(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite in place; returns the model and whether it changed."""
    active = active_values(model.graph)
    modified = False
    for node in model.graph:
        if node.op_type not in ("Einsum", "Gemm") or not all(v in active for v in node.inputs):
            continue
        arranger = Arranger()
        try:
            result = _einsum(node, arranger) if node.op_type == "Einsum" else _gemm(node, arranger)
        except UnknownSizeError:
            continue
        if result is None:
            continue
        for new in arranger.tape.nodes:
            new.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, arranger.tape.nodes)
        old = node.outputs[0]
        result.shape = old.shape if old.shape is not None else result.shape
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        modified = True
    return model, modified


def _einsum(node: ir.Node, arranger: Arranger) -> ir.Value | None:
    match = re.fullmatch(
        r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)",
        node.attributes["equation"].as_string().replace(" ", ""),
    )
    left, right = node.inputs[:2]
    if match is None or left is None or right is None:
        return None
    first, second, result = match.groups()
    one, two = axes_of(left), axes_of(right)
    if one is None or two is None or any(len(set(t)) < len(t) for t in (first, second, result)):
        return None
    if any(
        (label in first) + (label in second) + (label in result) < 2 for label in first + second
    ):
        return None
    atoms: dict[str, list[Atom]] = {}
    for labels, axes in ((first, one), (second, two)):
        for label, group in zip(labels, axes, strict=True):
            known = atoms.get(label)
            if known is None or (group and (not known or size_of(known).static is None)):
                atoms[label] = group
    one, two = (
        [atoms[label] if group else [] for label, group in zip(t, a, strict=True)]
        for t, a in ((first, one), (second, two))
    )
    arranger.knows(left, one)
    arranger.knows(right, two)
    batch = [label for label in result if label in first and label in second]
    rows = [label for label in result if label in first and label not in second]
    columns = [label for label in result if label in second and label not in first]
    summed = [label for label in first if label in second and label not in result]

    def merged(labels: list[str]) -> list[Atom]:
        return [atom for label in labels for atom in atoms[label]]

    head: Axes = [atoms[label] for label in batch]
    a = arranger.arrange(left, one, [*head, merged(rows), merged(summed)])
    b = arranger.arrange(right, two, [*head, merged(summed), merged(columns)])
    axes = [*head, merged(rows), merged(columns)]
    product = arranger.op("MatMul", [a, b], node.outputs[0], [size_of(axis).dim for axis in axes])
    return arranger.arrange(product, axes, [atoms[label] for label in result])


def _gemm(node: ir.Node, arranger: Arranger) -> ir.Value | None:
    if len(node.inputs) > 2:
        return None
    sides = []
    for value, name in zip(node.inputs, ("transA", "transB"), strict=True):
        assert value is not None
        if node.attributes.get_int(name, 0):
            shape = [value.shape[1], value.shape[0]] if value.shape is not None else None
            value = arranger.op("Transpose", [value], value, shape, perm=[1, 0])  # type: ignore[arg-type]
        sides.append(value)
    out = node.outputs[0]
    result = arranger.op("MatMul", sides, out, out.shape)  # type: ignore[arg-type]
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1.0:
        return result
    assert out.dtype is not None
    return arranger.op("Mul", [result, arranger.constant(alpha, out.dtype.numpy())], out, out.shape)  # type: ignore[arg-type]
