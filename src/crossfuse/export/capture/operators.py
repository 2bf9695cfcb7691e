"""Operators whose usual translation to ONNX loses their range or precision, translated so that they
keep it.

``logsigmoid`` as Log(Sigmoid(x)) is −inf from x = −18 on, ``expm1`` as Exp(x) − 1 has no digit left
near 0, a remainder as x − ⌊x/y⌋·y is off by more than y for large x. Each translation here is as
good as PyTorch's own float32 over the whole range, NaN and infinities included: none subtracts what
is nearly equal, or overflows on the way to a finite result. Which operators are held to that, and
how closely, is the table in `tests/unit/export/capture/test_operators.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20

__all__ = ["stable_translations"]

op: Any = opset20
"""Its parameters' types are of values at run time; here it emits nodes."""

Value = Any
"""What the exporter gives a translation: a tensor of the graph, or a Python number."""

_LN2 = math.log(2)
_TAIL = (
    *(-1.2655122250918676, 1.0000236769960844, 0.3740920184885038, 0.09678369434748613),
    *(-0.18628580780249948, 0.27886207184477807, -1.1351943263457585, 1.4885066569217777),
    *(-0.8221474245216044, 0.17087172428138933),
)
"""log(erfc(z)/t) + z² as a polynomial in t = 1/(1 + z/2), for z ≥ 0: a least-squares fit, within
1.1e-7 everywhere."""


def stable_translations() -> dict[Any, Callable[..., Any]]:
    """``custom_translation_table`` for ``torch.onnx.export``: PyTorch operator → a translation that
    keeps its range."""
    aten = torch.ops.aten
    return {
        aten.log_sigmoid.default: _log_sigmoid,
        aten.log_sigmoid_forward.default: lambda x: (_log_sigmoid(x), op.Exp(op.Neg(op.Abs(x)))),
        aten.log1p.default: _log1p,
        aten.expm1.default: _expm1,
        aten.special_expm1.default: _expm1,
        aten.logaddexp.default: _logaddexp,
        aten.logaddexp2.default: _logaddexp2,
        aten.logcumsumexp.default: _logcumsumexp,
        aten.erfc.default: _erfc,
        aten.special_erfc.default: _erfc,
        aten.special_log_ndtr.default: _log_ndtr,
        aten.xlogy.Tensor: _xlogy,
        aten.special_xlog1py.default: _xlog1py,
        aten.logit.default: _logit,
        aten.atan2.default: _atan2,
        aten.angle.default: _angle,
        aten.hypot.default: _hypot,
        aten.sign.default: _sign,
        aten.sgn.default: _sign,
        aten.signbit.default: _signbit,
        aten.heaviside.default: _heaviside,
        aten.remainder.Tensor: _remainder,
        aten.remainder.Scalar: _remainder,
        aten.remainder.Scalar_Tensor: _remainder,
        aten.floor_divide.default: _floor_divide,
        aten.div.Tensor_mode: _divide_and_round,
        aten.div.Scalar_mode: _divide_and_round,
        aten.group_norm.default: _group_norm,
        operator.floordiv: _floor_divide_sizes,
    }


def _log_sigmoid(x: Value) -> Value:
    """min(x, 0) − log(1 + exp(−|x|))."""
    return op.Sub(op.Min(x, op.CastLike(0.0, x)), op.Softplus(op.Neg(op.Abs(x))))


def _log1p(x: Value) -> Value:
    """log(u)·x/(u − 1) with u = 1 + x as rounded: both factors err alike. Where u is 1 or x itself,
    x or log(x)."""
    one = op.CastLike(1.0, x)
    u = op.Add(one, x)
    log = op.Log(u)
    near = op.Where(op.Equal(u, one), x, op.Mul(log, op.Div(x, op.Sub(u, one))))
    return op.Where(op.Equal(u, x), log, near)


def _expm1(x: Value) -> Value:
    """tanh(x/2)·(exp(x) + 1), the same function without a difference."""
    return op.Mul(op.Tanh(op.Mul(x, op.CastLike(0.5, x))), op.Add(op.Exp(x), op.CastLike(1.0, x)))


def _distance(x: Value, y: Value) -> Value:
    """|x − y|, 0 also for two equal infinities."""
    return op.Where(op.Equal(x, y), op.CastLike(0.0, x), op.Abs(op.Sub(x, y)))


def _logaddexp(x: Value, y: Value) -> Value:
    return op.Add(op.Max(x, y), op.Softplus(op.Neg(_distance(x, y))))


def _logaddexp2(x: Value, y: Value) -> Value:
    rest = op.Softplus(op.Mul(_distance(x, y), op.CastLike(-_LN2, x)))
    return op.Add(op.Max(x, y), op.Mul(rest, op.CastLike(1 / _LN2, x)))


def _logcumsumexp(x: Value, dim: int) -> Value:
    """Over a triangle of the elements so far: a sum that is rescaled to the largest of them, as in
    logsumexp."""
    if not len(x.shape):
        return op.Identity(x)
    axis = dim % len(x.shape)
    last = op.Unsqueeze(x, [axis])  # [..., 1, n, ...]
    size = op.Shape(x, start=axis, end=axis + 1)
    places = op.Range(0, op.Squeeze(size), 1)
    seen = op.LessOrEqual(
        places, op.Unsqueeze(places, [1])
    )  # [n, n]: of each place, those up to it
    if axis + 1 < len(x.shape):
        seen = op.Unsqueeze(seen, list(range(2, len(x.shape) - axis + 1)))
    return op.ReduceLogSumExp(
        op.Where(seen, last, op.CastLike(-math.inf, x)), [axis + 1], keepdims=0
    )


def _erfc_tail(z: Value) -> tuple[Value, Value]:
    """t and s with erfc(z) = t·exp(s), for z ≥ 0."""
    t = op.Reciprocal(op.Add(op.Mul(z, op.CastLike(0.5, z)), op.CastLike(1.0, z)))
    series = op.CastLike(_TAIL[-1], z)
    for coefficient in reversed(_TAIL[:-1]):
        series = op.Add(op.Mul(series, t), op.CastLike(coefficient, z))
    return t, op.Sub(series, op.Mul(z, z))


def _erfc(x: Value) -> Value:
    t, s = _erfc_tail(op.Abs(x))
    tail = op.Mul(t, op.Exp(s))
    return op.Where(op.Less(x, op.CastLike(0.0, x)), op.Sub(op.CastLike(2.0, x), tail), tail)


def _log_ndtr(x: Value) -> Value:
    """The logarithm of erfc(−x/√2)/2: of its tail in closed form below 0, by log1p above."""
    t, s = _erfc_tail(op.Mul(op.Abs(x), op.CastLike(math.sqrt(0.5), x)))
    above = _log1p(op.Mul(op.Mul(t, op.Exp(s)), op.CastLike(-0.5, x)))
    below = op.Add(op.Log(t), op.Sub(s, op.CastLike(_LN2, x)))
    return op.Where(op.Less(x, op.CastLike(0.0, x)), below, above)


def _zero_times(x: Value, y: Value, product: Value) -> Value:
    """The product, and 0 where x is 0 and y is a number."""
    return op.Where(
        op.IsNaN(y), y, op.Where(op.Equal(x, op.CastLike(0.0, x)), op.CastLike(0.0, x), product)
    )


def _xlogy(x: Value, y: Value) -> Value:
    return _zero_times(x, y, op.Mul(x, op.Log(y)))


def _xlog1py(x: Value, y: Value) -> Value:
    return _zero_times(x, y, op.Mul(x, _log1p(y)))


def _logit(x: Value, eps: float | None = None) -> Value:
    """log(x/(1 − x))."""
    if eps is not None:
        x = op.Clip(x, op.CastLike(eps, x), op.CastLike(1.0 - eps, x))
    return op.Log(op.Div(x, op.Sub(op.CastLike(1.0, x), x)))


def _atan2(y: Value, x: Value) -> Value:
    """The arctangent of the smaller over the larger, unfolded by octants; zeros count by their
    signs."""
    wide, high = op.Abs(x), op.Abs(y)
    larger, smaller = op.Max(wide, high), op.Min(wide, high)
    zero, one = op.CastLike(0.0, x), op.CastLike(1.0, x)
    ratio = op.Where(
        op.Equal(larger, zero),
        zero,
        op.Where(op.Equal(larger, smaller), one, op.Div(smaller, larger)),
    )
    angle = op.Atan(ratio)
    angle = op.Where(op.Greater(high, wide), op.Sub(op.CastLike(math.pi / 2, x), angle), angle)
    angle = op.Where(_signbit(x), op.Sub(op.CastLike(math.pi, x), angle), angle)
    return op.Where(_signbit(y), op.Neg(angle), angle)


def _angle(x: Value) -> Value:
    """Of a real number: 0 or π, NaN for NaN."""
    zero = op.CastLike(0.0, x)
    return op.Where(op.Less(x, zero), op.CastLike(math.pi, x), op.Where(op.IsNaN(x), x, zero))


def _hypot(x: Value, y: Value) -> Value:
    """larger·√(1 + (smaller/larger)²): no square overflows or vanishes."""
    x, y = op.Abs(x), op.Abs(y)
    larger, smaller = op.Max(x, y), op.Min(x, y)
    zero, infinity = op.CastLike(0.0, x), op.CastLike(math.inf, x)
    ratio = op.Where(op.Equal(larger, zero), zero, op.Div(smaller, larger))
    length = op.Mul(larger, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.CastLike(1.0, x))))
    return op.Where(op.Or(op.Equal(x, infinity), op.Equal(y, infinity)), infinity, length)


def _sign(x: Value) -> Value:
    """0 for NaN, as PyTorch has it."""
    if not x.dtype.is_floating_point():
        return op.Sign(x)
    zero = op.CastLike(0.0, x)
    return op.Sub(op.CastLike(op.Greater(x, zero), x), op.CastLike(op.Less(x, zero), x))


def _signbit(x: Value) -> Value:
    """True for −0 as well, whose reciprocal is −inf."""
    if not x.dtype.is_floating_point():
        return op.Less(x, op.CastLike(0, x))
    zero = op.CastLike(0.0, x)
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


def _heaviside(x: Value, at_zero: Value) -> Value:
    zero = op.CastLike(0, x)
    return op.Where(op.Equal(x, zero), at_zero, op.CastLike(op.Greater(x, zero), x))


def _dtype(value: Value) -> ir.DataType | None:
    """Of a tensor; None for a number."""
    return value.dtype if isinstance(value, ir.Value) else None


def _is_whole(*values: Value) -> bool:
    dtypes = [_dtype(value) for value in values]
    return all(
        isinstance(v, int) if t is None else t.is_integer()
        for v, t in zip(values, dtypes, strict=True)
    )


def _remainder(x: Value, y: Value) -> Value:
    """The remainder of truncated division, which is exact, with the divisor's sign."""
    if _is_whole(x, y):
        return op.Mod(x, y)
    rest = op.Mod(x, y, fmod=1)
    return op.Where(_falls_short(rest, y, rest), op.Add(rest, y), rest)


def _floor_divide(x: Value, y: Value) -> Value:
    if _is_whole(x, y):
        dtype = _dtype(x) or _dtype(y)
        # ONNX divides integers towards zero: exact, so the rest says where that is above the floor.
        quotient, rest = op.Div(x, y), op.Mod(x, y)
        if dtype is not None and not dtype.is_signed():
            return quotient
        return op.Sub(quotient, op.CastLike(_falls_short(x, y, rest), quotient))
    # As Python and PyTorch do: x less its rest is a multiple of y, so that rounding alone keeps the
    # quotient from being whole.
    rest = op.Mod(x, y, fmod=1)
    half, one, zero = (op.CastLike(c, rest) for c in (0.5, 1.0, 0.0))
    quotient = op.Div(op.Sub(x, rest), y)
    quotient = op.Where(_falls_short(x, y, rest), op.Sub(quotient, one), quotient)
    floor = op.Floor(quotient)
    nearest = op.Where(op.Greater(op.Sub(quotient, floor), half), op.Add(floor, one), floor)
    return op.Where(op.Equal(y, zero), op.Div(x, y), nearest)


def _falls_short(x: Value, y: Value, rest: Value) -> Value:
    """Truncation went up: there is a rest, and the signs differ."""
    zero = op.CastLike(0, rest)
    return op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(x, zero), op.Less(y, zero)))


def _divide_and_round(x: Value, y: Value, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return _floor_divide(x, y)
    whole = _is_whole(x, y)
    if rounding_mode is None:
        return (
            op.Div(op.Cast(x, to=ir.DataType.FLOAT), op.Cast(y, to=ir.DataType.FLOAT))
            if whole
            else op.Div(x, y)
        )
    if whole:
        return op.Div(x, y)
    quotient = op.Div(x, y)
    return op.Mul(op.Sign(quotient), op.Floor(op.Abs(quotient)))


def _floor_divide_sizes(x: Value, y: Value) -> Value:
    """Of sizes: they are positive, but −(−n // 2), a division that rounds up, passes through
    negative numbers."""
    node = x.producer() if isinstance(x, ir.Value) else None
    negative = node is not None and node.op_type in ("Neg", "Sub", "Mul")
    return _floor_divide(x, y) if negative else op.Div(x, y)


def _group_norm(
    x: Value,
    groups: int,
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    fast: bool = True,
) -> Value:
    """Of the deviations from each group's mean: kernels compute x·scale + (shift − mean·scale),
    which cancels where the mean is many deviations."""
    flat = op.Reshape(x, [0, groups, -1])
    deviations = op.Sub(flat, op.ReduceMean(flat, [2], keepdims=1))
    ones, zeros = (op.Expand(op.CastLike(c, x), [groups]) for c in (1.0, 0.0))
    normal = op.Reshape(op.InstanceNormalization(deviations, ones, zeros, epsilon=eps), op.Shape(x))
    space = list(range(1, len(x.shape) - 1))
    if weight is not None:
        normal = op.Mul(normal, op.Unsqueeze(weight, space) if space else weight)
    if bias is not None:
        normal = op.Add(normal, op.Unsqueeze(bias, space) if space else bias)
    return normal
