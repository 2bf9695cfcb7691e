"""What a ``score_mod`` of ``flex_attention`` does to a score, as factor · score + offset.

The modification runs on a stand-in for the score, which knows how these two change.

Rules:

1. Adding, subtracting, multiplying and dividing by what doesn't depend on the score, negating, and
conversions between floats change the factor, the offset or nothing.
2. ``torch.where`` with −∞ in one place hides there: the factor stays.
3. ``torch.where`` with something else, or of two forms of the score, selects both numbers.

It must not go on where the score goes through anything else (``tanh``, a comparison, a product with
itself): `NotLinearError` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Form", "NotLinearError", "form_of"]

Number = float | Tensor


class NotLinearError(Exception):
    """The score goes through an operator that is not linear in it."""


@dataclass(frozen=True)
class Form:
    """factor · score + offset."""

    factor: Number
    offset: Number


def form_of(result: object) -> Form:
    """Of what a modification returned.

    Raises:
        NotLinearError: it does not depend on the score.
    """
    if not isinstance(result, Score):
        raise NotLinearError("nothing, as its result does not depend on the score")
    return Form(result.factor, result.offset)


class Score:
    """A score that notes what is done to it.

    Args:
        like: a tensor of its dtype and device.
        factor, offset: of its form.
    """

    def __init__(self, like: Tensor, factor: Number = 1.0, offset: Number = 0.0) -> None:
        self.like, self.factor, self.offset = like, factor, offset

    @property
    def dtype(self) -> torch.dtype:
        """Of the score."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Of the score."""
        return self.like.device

    def __add__(self, other: Any) -> Score:
        return _add(self, other)

    def __radd__(self, other: Any) -> Score:
        return _add(self, other)

    def __sub__(self, other: Any) -> Score:
        return _add(self, _scaled(other, -1.0))

    def __rsub__(self, other: Any) -> Score:
        return _add(_scaled(self, -1.0), other)

    def __mul__(self, other: Any) -> Any:
        return _scaled(self, other)

    def __rmul__(self, other: Any) -> Any:
        return _scaled(self, other)

    def __truediv__(self, other: Any) -> Any:
        return _scaled(self, 1 / _other(other, "a division by the score"))

    def __neg__(self) -> Any:
        return _scaled(self, -1.0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: _call(name, (self, *args), kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func.__name__, args, kwargs or {})


def _call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name not in _OPERATORS:
        raise NotLinearError(name.strip("_"))
    return _OPERATORS[name](*args, **kwargs)


def _other(value: Any, what: str) -> Any:
    """A value that is no form of the score.

    Raises:
        NotLinearError: it is one.
    """
    if isinstance(value, Score):
        raise NotLinearError(what)
    return value


def _add(a: Any, b: Any, *, alpha: float = 1.0) -> Score:
    if alpha != 1.0:
        b = _scaled(b, alpha)
    if isinstance(a, Score) and isinstance(b, Score):
        return Score(a.like, a.factor + b.factor, a.offset + b.offset)
    score, other = (a, b) if isinstance(a, Score) else (b, a)
    return Score(score.like, score.factor, score.offset + other)


def _subtract(a: Any, b: Any, *, alpha: float = 1.0) -> Score:
    return _add(a, _scaled(b, -alpha))


def _scaled(value: Any, by: Any) -> Any:
    if isinstance(by, Score):
        value, by = by, value
    by = _other(by, "a product with itself")
    if isinstance(by, Tensor) and by.dtype == torch.bool:
        by = by.to(value.dtype)
    return (
        Score(value.like, value.factor * by, value.offset * by)
        if isinstance(value, Score)
        else value * by
    )


def _divided(a: Any, b: Any, **_: Any) -> Any:
    return _scaled(a, 1 / _other(b, "a division by the score"))


def _where(condition: Any, a: Any, b: Any) -> Score:
    condition = _other(condition, "a comparison")
    if _hides(a) or _hides(b):
        score, hidden = (b, a) if _hides(a) else (a, b)
        kept = ~condition if _hides(a) else condition
        offset = torch.where(kept, _tensor(score.offset, score), _tensor(hidden, score))
        return Score(score.like, score.factor, offset)
    like = a if isinstance(a, Score) else b
    (af, ao), (bf, bo) = (
        (v.factor, v.offset) if isinstance(v, Score) else (0.0, v) for v in (a, b)
    )
    factor, offset = (
        torch.where(condition, _tensor(x, like), _tensor(y, like)) for x, y in ((af, bf), (ao, bo))
    )
    return Score(like.like, factor, offset)


def _hides(value: Any) -> bool:
    return isinstance(value, float) and value == -math.inf


def _tensor(value: Number, score: Score) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=score.dtype, device=score.device)


def _filled(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


_OPERATORS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "add_"), _add),
    **dict.fromkeys(("sub", "subtract", "__sub__", "__isub__", "sub_"), _subtract),
    **dict.fromkeys(("rsub", "__rsub__"), lambda a, b, **_: _subtract(b, a)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_"), _scaled),
    **dict.fromkeys(("div", "true_divide", "divide", "__truediv__"), _divided),
    **dict.fromkeys(("neg", "negative", "__neg__"), lambda a: _scaled(a, -1.0)),
    **dict.fromkeys(
        ("to", "float", "double", "type_as", "clone", "contiguous", "type", "detach"),
        lambda a, *_, **__: a,
    ),
    "where": lambda *args: _where(*args) if isinstance(args[0], Tensor) else _where_method(*args),
    "masked_fill": lambda a, mask, value: _where(~mask, a, _filled(value)),
    **dict.fromkeys(("full_like", "new_full"), lambda a, *args, **_: _filled(args[-1])),
    "zeros_like": lambda a, **_: 0.0,
    "new_tensor": lambda a, value, **_: _filled(value),
}
"""What may be done to a score, by the names of PyTorch's functions and methods."""


def _where_method(score: Score, condition: Any, other: Any) -> Score:
    return _where(condition, score, other)
