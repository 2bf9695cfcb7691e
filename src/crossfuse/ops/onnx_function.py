"""The operator's body in standard ONNX operators, attached to the portable graph so that any ONNX
runtime executes it.

ONNX functions can't branch on absent optional inputs, so a body exists per *variant* (which
optional inputs are given, and the causal kind), told apart by the function's overload name. Head
counts and scale stay attribute references.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from crossfuse.ops.contract import DOMAIN, INPUTS, NAME

__all__ = ["Variant", "attention_function"]

_ATTRIBUTES = {
    "num_heads": ir.AttributeType.INT,
    "kv_num_heads": ir.AttributeType.INT,
    "scale": ir.AttributeType.FLOAT,
    "causal": ir.AttributeType.STRING,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """Which optional inputs a node has, and its causal kind."""

    mask: bool
    bias: bool
    key_lengths: bool
    causal: str

    @property
    def overload(self) -> str:
        """A name for the function's overload, such as ``mask_lower_right``."""
        parts = [name for name in ("mask", "bias", "key_lengths") if getattr(self, name)]
        return "_".join([*parts, self.causal])

    @property
    def may_lack_keys(self) -> bool:
        """A row may have no key to attend to; an upper-left causal mask always leaves the first."""
        return self.mask or self.bias or self.key_lengths or self.causal == "lower_right"


def attention_function(variant: Variant, opset: int) -> ir.Function:
    """The body for one variant, in ONNX's default domain at ``opset``."""
    inputs = [ir.Value(name=name) for name in INPUTS]
    body = _Body(Tape(), *inputs)
    output = body.build(variant)
    output.name = "output"
    graph = ir.Graph(
        inputs,
        [output],
        nodes=body.tape.nodes,
        opset_imports={"": opset},
        name=f"{NAME}_{variant.overload}",
    )
    attributes = [ir.Attr(name, kind, None) for name, kind in _ATTRIBUTES.items()]
    return ir.Function(DOMAIN, NAME, variant.overload, graph=graph, attributes=attributes)


class _Body:
    """Builds the nodes; ``B`` contexts, ``G`` queries each, ``K`` key heads, ``R`` query heads per
    key head."""

    def __init__(
        self,
        tape: Tape,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        mask: ir.Value,
        bias: ir.Value,
        lengths: ir.Value,
    ) -> None:
        self.tape = tape
        self.query, self.key, self.value = query, key, value
        self.mask, self.bias, self.lengths = mask, bias, lengths

    def build(self, variant: Variant) -> ir.Value:
        one, minus_one = self.ints(1), self.ints(-1)
        heads = self.attribute_int("num_heads")
        kv_heads = self.attribute_int("kv_num_heads")
        repeat = self.op("Div", heads, kv_heads)
        batch, length = self.size(self.query, 0), self.size(self.query, 1)
        contexts, keys = self.size(self.key, 0), self.size(self.key, 1)
        fan_out = self.op("Div", batch, contexts)

        def split(value: ir.Value, *lead: ir.Value, order: list[int]) -> ir.Value:
            shaped = self.op("Reshape", value, self.concat(*lead, minus_one))
            return self.op("Transpose", shaped, perm=order)

        q = split(self.query, contexts, fan_out, length, kv_heads, repeat, order=[0, 1, 3, 4, 2, 5])
        k = split(self.key, contexts, one, keys, kv_heads, one, order=[0, 1, 3, 4, 5, 2])
        v = split(self.value, contexts, one, keys, kv_heads, one, order=[0, 1, 3, 4, 2, 5])
        scale = self.tape.op(
            "Constant",
            [],
            attributes={"value_float": ir.RefAttr("value_float", "scale", ir.AttributeType.FLOAT)},
        )
        scores = self.op("MatMul", self.op("Mul", q, self.op("CastLike", scale, self.query)), k)
        scores = self.op("Reshape", scores, self.concat(contexts, fan_out, heads, length, keys))

        if variant.bias:
            scores = self.op("Add", scores, self.per_context(self.bias, contexts))
        attend = self.attended(variant, contexts, length, keys)
        if attend is not None:
            infinity = self.op("CastLike", self.constant(float("-inf")), self.query)
            scores = self.op("Where", attend, scores, infinity)
        weights, has_keys = self.softmax(scores, guarded=variant.may_lack_keys)
        weights = self.op(
            "Reshape", weights, self.concat(contexts, fan_out, kv_heads, repeat, length, keys)
        )
        out = self.op("MatMul", weights, v)
        if has_keys is not None:
            rows = self.op(
                "Reshape", has_keys, self.concat(contexts, fan_out, kv_heads, repeat, length, one)
            )
            out = self.op("Where", rows, out, self.op("CastLike", self.constant(0.0), self.query))
        out = self.op("Transpose", out, perm=[0, 1, 4, 2, 3, 5])
        return self.op("Reshape", out, self.concat(batch, length, minus_one))

    def attended(
        self, variant: Variant, contexts: ir.Value, length: ir.Value, keys: ir.Value
    ) -> ir.Value | None:
        """Which keys each row may attend to, broadcastable to ``[B, G, H, L, S]``; None for all."""
        found: list[ir.Value] = []
        if variant.mask:
            found.append(self.per_context(self.mask, contexts))
        if variant.key_lengths or variant.causal != "none":
            zero, one = self.scalar(0), self.scalar(1)
            positions = self.op("Range", zero, self.op("Squeeze", keys), one)
        if variant.key_lengths:
            lengths = self.op("Cast", self.lengths, to=ir.DataType.INT64)
            lengths = self.op("Reshape", lengths, self.ints(-1, 1, 1, 1, 1))
            found.append(self.op("Less", positions, lengths))
        if variant.causal != "none":
            last = self.op("Range", zero, self.op("Squeeze", length), one)
            if variant.causal == "lower_right":
                last = self.op("Add", last, self.op("Sub", keys, length))
            found.append(
                self.op("LessOrEqual", positions, self.op("Reshape", last, self.ints(-1, 1)))
            )
        if not found:
            return None
        attend = found[0]
        for other in found[1:]:
            attend = self.op("And", attend, other)
        return attend

    def softmax(self, scores: ir.Value, *, guarded: bool) -> tuple[ir.Value, ir.Value | None]:
        """Softmax over keys; with ``guarded``, also which rows have any key, and no NaN in those
        that have none."""
        if not guarded:
            return self.op("Softmax", scores, axis=-1), None
        infinity = self.op("CastLike", self.constant(float("-inf")), self.query)
        has_keys = self.op(
            "Greater", self.op("ReduceMax", scores, self.ints(-1), keepdims=1), infinity
        )
        zero = self.op("CastLike", self.constant(0.0), self.query)
        return self.op("Softmax", self.op("Where", has_keys, scores, zero), axis=-1), has_keys

    def per_context(self, mask: ir.Value, contexts: ir.Value) -> ir.Value:
        """``[1|Bk|Bq, h, l, S]`` → ``[1|B, 1|G, h, l, S]``."""
        batch = self.size(mask, 0)
        fan_out = self.op("Max", self.op("Div", batch, contexts), self.ints(1))
        rest = self.op("Shape", mask, start=1)
        return self.op("Reshape", mask, self.concat(self.op("Div", batch, fan_out), fan_out, rest))

    def op(self, name: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        return self.tape.op(name, list(inputs), attributes=attributes or None)

    def constant(self, value: float) -> ir.Value:
        return self.tape.op("Constant", [], attributes={"value_float": value})

    def ints(self, *values: int) -> ir.Value:
        return self.tape.op("Constant", [], attributes={"value_ints": list(values)})

    def scalar(self, value: int) -> ir.Value:
        return self.tape.op("Constant", [], attributes={"value_int": value})

    def attribute_int(self, name: str) -> ir.Value:
        scalar = self.tape.op(
            "Constant",
            [],
            attributes={"value_int": ir.RefAttr("value_int", name, ir.AttributeType.INT)},
        )
        return self.op("Reshape", scalar, self.ints(1))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.op("Shape", value, start=axis, end=axis + 1)

    def concat(self, *parts: ir.Value) -> ir.Value:
        return self.op("Concat", *parts, axis=0)
