"""Quantised operators of ``com.microsoft`` in terms of ONNX's quantizers: ONNX Runtime joins them
again when it loads them."""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.sources.onnx_file.microsoft.emit import Expansion, Operator, UntakenError

__all__ = ["QUANTIZED"]


def _quantize(of: Operator) -> list[ir.Value | None]:
    return [
        of.op(
            of.node.op_type, *of.node.inputs, **{n: a.value for n, a in of.node.attributes.items()}
        )
    ]


def _integer_product(
    of: Operator,
    x: ir.Value,
    weights: ir.Value,
    scale: ir.Value,
    zeros: tuple[ir.Value | None, ir.Value | None],
    bias: ir.Value | None,
) -> ir.Value:
    given: list[ir.Value | None] = [x, weights, *zeros]
    while given[-1] is None:
        given.pop()
    product = of.op("Cast", of.op("MatMulInteger", *given), to=ir.DataType.FLOAT)
    result = of.op("Mul", product, scale)
    return result if bias is None else of.op("Add", result, bias)


def _matmul_integer_to_float(of: Operator) -> list[ir.Value | None]:
    a, b, a_scale, b_scale = (of.needed(i) for i in range(4))
    scale = of.op("Mul", a_scale, b_scale)
    return [_integer_product(of, a, b, scale, (of.given(4), of.given(5)), of.given(6))]


def _dynamic_quantize_matmul(of: Operator) -> list[ir.Value | None]:
    x, weights, scale = (of.needed(i) for i in range(3))
    quantised, own, zero = of.tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)
    return [
        _integer_product(
            of, quantised, weights, of.op("Mul", own, scale), (zero, of.given(3)), of.given(4)
        )
    ]


def _elementwise(of: Operator) -> list[ir.Value | None]:
    """``QLinearAdd`` and ``QLinearMul``: two sides with scale and zero, then the result's."""
    sides = [_read(of, 0), _read(of, 3)]
    return [_written(of, of.op(of.node.op_type.removeprefix("QLinear"), *sides), 6)]


def _activation(of: Operator) -> list[ir.Value | None]:
    name = of.node.op_type.removeprefix("QLinear")
    kept = {n: a.value for n, a in of.node.attributes.items()}
    return [_written(of, of.op(name, _read(of, 0), **kept), 3)]


def _softmax(of: Operator) -> list[ir.Value | None]:
    x = of.needed(0)
    axis, opset = of.integer("axis", -1), of.integer("opset", 13)
    rank = of.rank(x)
    if opset < 13 and axis % rank != rank - 1:
        raise UntakenError("its softmax is over several axes")
    return [_written(of, of.op("Softmax", _read(of, 0), axis=axis), 3)]


def _read(of: Operator, first: int) -> ir.Value:
    given = [of.needed(first), of.needed(first + 1), of.given(first + 2)]
    return of.op("DequantizeLinear", *(given if given[2] is not None else given[:2]))


def _written(of: Operator, value: ir.Value, first: int) -> ir.Value:
    given = [value, of.needed(first), of.given(first + 1)]
    return of.op("QuantizeLinear", *(given if given[2] is not None else given[:2]))


QUANTIZED: dict[str, Expansion] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "QLinearAdd": _elementwise,
    "QLinearMul": _elementwise,
    "QLinearSigmoid": _activation,
    "QLinearLeakyRelu": _activation,
    "QLinearSoftmax": _softmax,
}
"""Operator → its expansion."""
