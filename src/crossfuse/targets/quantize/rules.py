"""Which linear layers stay in fp32, and why: rules, asked in order, the first that fires.

A rule either says that a layer was never to be quantised (it doesn't pay there, or parity needs it
so), or that it was and can't be: the second fails the build unless that is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.targets.precision.islands import decides_a_choice
from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.layers import CONVOLUTIONS, LinearLayer, linear_layers

__all__ = [
    "FP8_RULES",
    "NARROWEST",
    "RULES",
    "STATIC_RULES",
    "SYMMETRIC_RULES",
    "Refusal",
    "deciding_nodes",
    "quantizable",
    "refusal_of",
]

NARROWEST = 8
"""Layers that sum fewer products, or give fewer results, gain nothing."""


@dataclass(frozen=True)
class Refusal:
    """Why a layer stays in fp32, and whether it was to be quantised."""

    reason: str
    asked: bool


Rule = Callable[[LinearLayer, Collection[ir.Node]], Refusal | None]
"""A layer, and the nodes that decide a choice."""


def deciding_nodes(model: ir.Model) -> Collection[ir.Node]:
    """Nodes by which the model chooses something before any attention, as a quantizer its codes."""
    return decides_a_choice(list(model.graph), {}).keys()


def refusal_of(
    layer: LinearLayer, deciding: Collection[ir.Node], codes: Codes | None = None
) -> Refusal | None:
    """Why a layer stays in fp32; None where it may be quantised, to grids of these codes that are
    chosen on calibration data, or where there are none, as it runs."""
    found = (rule(layer, deciding) for rule in _RULES_OF[codes])
    return next((refusal for refusal in found if refusal is not None), None)


def quantizable(model: ir.Model, codes: Codes | None = None) -> list[LinearLayer]:
    """The layers that no rule keeps in fp32, in the graph's order; ``codes`` as of `refusal_of`."""
    deciding = deciding_nodes(model)
    return [layer for layer in linear_layers(model) if refusal_of(layer, deciding, codes) is None]


def _convolution(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if layer.node.op_type not in CONVOLUTIONS:
        return None
    return Refusal("a convolution, which has no fast kernel without calibration data", asked=False)


def _no_fp8_convolution(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if layer.node.op_type not in CONVOLUTIONS:
        return None
    return Refusal("a convolution: TensorRT has fp8 kernels for products alone", asked=False)


def _transposed(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if layer.node.op_type != "ConvTranspose":
        return None
    return Refusal(
        "a transposed convolution, which engines have no integer kernel for", asked=False
    )


def _computed_bias(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    node = layer.node
    bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
    if bias is None or ir.convenience.get_const_tensor(bias) is not None:
        return None
    return Refusal("a convolution whose bias is computed in the graph", asked=True)


def _decides(layer: LinearLayer, deciding: Collection[ir.Node]) -> Refusal | None:
    if layer.node not in deciding:
        return None
    return Refusal("an ArgMax or ArgMin inside the model chooses by it", asked=False)


def _narrow(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    shape = layer.shape
    if layer.node.op_type in CONVOLUTIONS:
        shape = (math.prod(shape[1:]), shape[0])
    if min(shape[-2:]) >= NARROWEST or 0 in shape:
        return None
    return Refusal(f"narrower than {NARROWEST}, so that 8 bits gain nothing", asked=False)


def _in_a_body(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if not layer.nested:
        return None
    return Refusal("it is in the body of an If, Loop or Scan", asked=True)


def _unreadable(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if layer.tensor is not None:
        return None
    producer = layer.node.inputs[layer.operand].producer()  # type: ignore[union-attr]  # an operand
    by = "" if producer is None else f" ({producer.op_type})"
    return Refusal(f"its weights are computed in the graph{by}", asked=True)


def _form(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    node = layer.node
    if node.op_type == "Einsum":
        return Refusal("an Einsum, which has no integer kernel: write it as a product", asked=True)
    if layer.operand == 0:
        return Refusal("the weights are its left operand", asked=True)
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return Refusal("a Gemm that transposes what it is given", asked=True)
    return None


def _no_inner_size(layer: LinearLayer, _: Collection[ir.Node]) -> Refusal | None:
    if math.prod(layer.shape):
        return None
    return Refusal("it has no weights", asked=False)


_OF_ALL: Sequence[Rule] = (_decides, _narrow, _in_a_body, _unreadable, _no_inner_size, _form)

RULES: Sequence[Rule] = (_convolution, *_OF_ALL)
"""Where what a layer is given is rounded where it runs."""

STATIC_RULES: Sequence[Rule] = (_transposed, *_OF_ALL, _computed_bias)
"""Where grids were chosen on calibration data."""

SYMMETRIC_RULES: Sequence[Rule] = (_transposed, *_OF_ALL)
"""Where these are symmetric: a bias is added behind the product."""

FP8_RULES: Sequence[Rule] = (_no_fp8_convolution, *_OF_ALL)
"""Where they are of fp8."""

_RULES_OF = {
    None: RULES,
    Codes.UINT8: STATIC_RULES,
    Codes.INT8: SYMMETRIC_RULES,
    Codes.FP8: FP8_RULES,
}
