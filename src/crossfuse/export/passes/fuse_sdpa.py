"""``F.scaled_dot_product_attention`` → ``crossfuse.fused_attention``, on the exported program.

Rules:

1. Queries, keys and values are 3-D or 4-D; heads (axis −3) are merged into the width, and the
   transposes that this adds cancel against the model's own in ONNX (`cancel_layout`).
2. The scale is made explicit: ``1/√D`` where the call gives none.
3. A bool mask becomes ``mask``, a float mask ``bias``; both are broadcast to four axes.
   ``is_causal`` is ``upper_left``.
4. ``enable_gqa`` keeps its fewer key heads; otherwise batches and heads that broadcast are expanded
as SDPA does.

It must not fire, and says why, on more than four axes and on a mask of more than four axes. Dropout
is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from crossfuse.errors import InputError
from crossfuse.export.capture.decompose import decompose
from crossfuse.export.capture.trace import quiet_exporter
from crossfuse.export.passes.base import Missed, ProgramResult
from crossfuse.ops.torch_op import fused_attention

__all__ = ["FuseSdpaPass"]

_SDPA = torch.ops.aten.scaled_dot_product_attention.default


class FuseSdpaPass:
    """``scaled_dot_product_attention`` → the one operator, in an exported program."""

    def __call__(self, program: ExportedProgram) -> ProgramResult:
        """Replace every call that matches.

        Raises:
            InputError: a call drops weights at random, as in training.
        """
        calls = [node for node in program.graph.nodes if node.target is _SDPA]
        if not calls:
            return ProgramResult(program, False)
        _refuse_dropout(calls)
        replacement = _Replacement()
        with quiet_exporter():
            program = decompose(program, {_SDPA: replacement.via_operator})
        left = (node for node in program.graph.nodes if node.target is _SDPA)
        missed = tuple(
            Missed(_module_of(node), why)
            for node, why in zip(left, replacement.mismatches, strict=False)
        )
        return ProgramResult(program, len(missed) < len(calls), missed)


class _Replacement:
    """What stands for the calls of a program.

    Attributes:
        mismatches: why calls were left as they are, in their order.
    """

    def __init__(self) -> None:
        self.mismatches: list[str] = []

    def via_operator(  # noqa: PLR0913 -- the signature of PyTorch's operator
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The call by the one operator; NotImplemented where it doesn't match."""
        why = _mismatch(query, key, value, attn_mask)
        if why is not None:
            self.mismatches.append(why)
            return NotImplemented
        return _sdpa_via_operator(query, key, value, attn_mask, is_causal, scale, enable_gqa)


def _refuse_dropout(calls: Sequence[torch.fx.Node]) -> None:
    for call in calls:
        dropout = call.args[4] if len(call.args) > 4 else call.kwargs.get("dropout_p", 0.0)
        if dropout:
            raise InputError(
                "the model drops attention weights at random",
                where=_module_of(call) or "(root)",
                got=f"scaled_dot_product_attention with dropout_p={dropout}",
                do="Put the model in eval mode, and give the call dropout_p=0.0 there",
            )


def _module_of(call: torch.fx.Node) -> str:
    stack = call.meta.get("nn_module_stack")
    return re.sub(r"@\d+", "", list(stack.values())[-1][0]) if stack else ""


def _mismatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> str | None:
    ranks = {query.ndim, key.ndim, value.ndim}
    if len(ranks) > 1 or query.ndim not in (3, 4):
        return f"scaled_dot_product_attention over {sorted(ranks)} axes: 3 or 4 are supported"
    if attn_mask is not None and attn_mask.ndim > 4:
        return (
            f"scaled_dot_product_attention with a mask of {attn_mask.ndim} axes: up to 4 are "
            "supported"
        )
    return None


def _sdpa_via_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    headless = query.ndim == 3
    if headless:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    heads = query.shape[1]
    if not enable_gqa and not statically_known_true(key.shape[1] == heads):
        key, value = (t.expand(-1, heads, -1, -1) for t in (key, value))
    batch = key.shape[0] if statically_known_true(query.shape[0] == 1) else query.shape[0]
    query, key, value = (
        t if statically_known_true(t.shape[0] == batch) else t.expand(batch, -1, -1, -1)
        for t in (query, key, value)
    )
    mask = bias = None
    if attn_mask is not None:
        if headless and attn_mask.ndim == 3:
            attn_mask = attn_mask.unsqueeze(1)
        attn_mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + tuple(attn_mask.shape))
        if not statically_known_true(attn_mask.shape[3] == key.shape[2]):
            attn_mask = attn_mask.expand(-1, -1, -1, key.shape[2])
        mask, bias = (attn_mask, None) if attn_mask.dtype == torch.bool else (None, attn_mask)
    out = fused_attention(
        query.transpose(1, 2).flatten(2),
        key.transpose(1, 2).flatten(2),
        value.transpose(1, 2).flatten(2),
        mask,
        bias,
        num_heads=heads,
        kv_num_heads=key.shape[1],
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        causal="upper_left" if is_causal else "none",
    )
    out = out.unflatten(2, (heads, value.shape[-1])).transpose(1, 2)
    return out.squeeze(1) if headless else out
