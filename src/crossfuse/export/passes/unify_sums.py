"""Write products of matrices that are spelled as a sum over a multiplication as ``Einsum``.

Rules:

1. A ``ReduceSum`` of a ``Mul`` whose factors broadcast against each other becomes an ``Einsum`` of
the factors, each without the axes along which it does not vary: ``(q[:, :, None] * k[:, None])
.sum(-1)`` is ``"bld,bsd->bls"``. A chain of ``Mul`` gives as many operands; what divides it by a
number divides the sum.
2. A factor that was expanded is taken as it was before.
3. Axes of size 1 that the result has beside are put back.

It must not fire where no two activations each have an axis of their own beside one that is summed
(a weighted sum, a norm), where the multiplication has other uses, nor where sizes of factors are
not known to agree.
"""

from __future__ import annotations

import string

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.matching.softmax_chain import active_values
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dims_of
from crossfuse.graph.summed_products import Factor, SummedProduct, summed_product

__all__ = ["UnifySumsPass"]


class UnifySumsPass(FusionPass):
    """``ReduceSum`` of ``Mul`` → ``Einsum``, where it is a product of matrices."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        active = active_values(model.graph)
        modified = False
        for node in list(model.graph):
            product = summed_product(node)
            if product is None or product.multiplied(active) is None:
                continue
            build = GraphBuilder()
            build.replace(node, _einsum(product, node.outputs[0], build))
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified)


def _einsum(product: SummedProduct, like: ir.Value, build: GraphBuilder) -> ir.Value:
    """The product, with the axes of ``like``."""
    held = {axis for factor in product.factors for axis in factor.held}
    axes = [axis for axis in range(product.rank) if product.kept or axis not in product.summed]
    left = [axis for axis in axes if axis in held and axis not in product.summed]
    operands = [_squeezed(factor, build) for factor in product.factors]
    labels = [_labels(factor.held) for factor in product.factors]
    equation = f"{','.join(labels)}->{_labels(left)}"
    shape = dims_of(like)
    absent = [place for place, axis in enumerate(axes) if axis not in left]
    inner = shape and [dim for place, dim in enumerate(shape) if place not in absent]
    result = build.op("Einsum", *operands, like=like, shape=inner, equation=equation)
    if absent:
        result = build.op("Unsqueeze", result, build.ints(*absent), like=like, shape=shape)
    for divisor in product.divisors:
        result = build.op("Div", result, divisor, like=like, shape=shape)
    return result


def _squeezed(factor: Factor, build: GraphBuilder) -> ir.Value:
    """A factor without the axes along which it does not vary."""
    own = dims_of(factor.value)
    assert own is not None
    single = [axis for axis, dim in enumerate(own) if dim == 1]
    if not single:
        return factor.value
    shape = [dim for dim in own if dim != 1]
    return build.op("Squeeze", factor.value, build.ints(*single), like=factor.value, shape=shape)


def _labels(axes: list[int]) -> str:
    return "".join(string.ascii_lowercase[axis] for axis in axes)
