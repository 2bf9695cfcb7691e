"""The operator's ONNX schema (``crossfuse.FusedAttention``, version 1) and how PyTorch's exporter
emits it."""

from __future__ import annotations

import itertools

import onnx
import onnxscript
import torch
from onnx.defs import OpSchema

from crossfuse.ops.contract import DOMAIN, NAME, VERSION

__all__ = ["CALL", "register_schema", "translation_table"]

CALL = "call"
"""A number that tells one call from the next while graphs are optimised; it is not part of the
saved operator."""

_FLOATS = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"]


def register_schema() -> None:
    """Make the operator known to ``onnx``; safe to call again."""
    if onnx.defs.has(NAME, VERSION, DOMAIN):
        return
    optional = OpSchema.FormalParameterOption.Optional
    attribute = OpSchema.Attribute
    onnx.defs.register_schema(
        OpSchema(
            NAME,
            DOMAIN,
            VERSION,
            doc="softmax(scale · Q Kᵀ + bias, over the attended keys) V; a row that attends to "
            "nothing is 0.",
            inputs=[
                OpSchema.FormalParameter("query", "T", "[Bq, L, Hq·D]"),
                OpSchema.FormalParameter("key", "T", "[Bk, S, Hkv·D]"),
                OpSchema.FormalParameter("value", "T", "[Bk, S, Hkv·Dv]"),
                OpSchema.FormalParameter(
                    "mask", "tensor(bool)", "True = attend", param_option=optional
                ),
                OpSchema.FormalParameter(
                    "bias", "T", "added to the scaled scores", param_option=optional
                ),
                OpSchema.FormalParameter("key_lengths", "I", "[Bk]", param_option=optional),
            ],
            outputs=[OpSchema.FormalParameter("output", "T", "[Bq, L, Hq·Dv]")],
            type_constraints=[
                ("T", _FLOATS, "floating point"),
                ("I", ["tensor(int32)", "tensor(int64)"], "lengths"),
            ],
            attributes=[
                attribute("num_heads", OpSchema.AttrType.INT, "Hq", required=True),
                attribute("kv_num_heads", OpSchema.AttrType.INT, "Hkv", required=True),
                attribute("scale", OpSchema.AttrType.FLOAT, "factor on the scores", required=True),
                attribute(
                    "causal",
                    onnx.helper.make_attribute("causal", "none"),
                    "none, upper_left or lower_right",
                ),
                attribute(
                    CALL,
                    OpSchema.AttrType.INT,
                    "number of the call while a graph is optimised; never saved",
                    required=False,
                ),
            ],
        )
    )


def translation_table() -> dict[object, object]:
    """``custom_translation_table`` for ``torch.onnx.export``: the PyTorch operator becomes one
    opaque node."""
    register_schema()
    opset = onnxscript.values.Opset(DOMAIN, VERSION)
    calls = itertools.count()

    def fused_attention(  # type: ignore[no-untyped-def]  # noqa: PLR0913 -- the operator's own
        query,
        key,
        value,
        mask=None,
        bias=None,
        key_lengths=None,
        *,
        num_heads: int,
        kv_num_heads: int,
        scale: float,
        causal: str = "none",
    ):
        return opset.FusedAttention(
            query,
            key,
            value,
            mask,
            bias,
            key_lengths,
            num_heads=num_heads,
            kv_num_heads=kv_num_heads,
            scale=scale,
            causal=causal,
            **{CALL: next(calls)},
        )

    return {torch.ops.crossfuse.fused_attention.default: fused_attention}
