"""``F.scaled_dot_product_attention`` → ``crossfuse.fused_attention``, on the exported program.

Rules:

1. Heads (axis −3) are merged into the width, and the transposes that this adds cancel against the
   model's own in ONNX (`cancel_layout`). Axes in front of the heads become one batch, over which
   operands and masks are broadcast, those of fewer axes too. Operands of two or three axes have one
   head; where the size of axis −3 is no number, another axis stands for the heads, or there is one.
2. The scale is made explicit: ``1/√D`` where the call gives none.
3. A bool mask becomes ``mask``, a float mask ``bias``; both have four axes.
   ``is_causal`` is ``upper_left``.
4. ``enable_gqa`` keeps its fewer key heads; otherwise batches and heads that broadcast are expanded
as SDPA does.

It must not fire, and says why, on grouped heads whose number is not known. Dropout is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from crossfuse.errors import InputError
from crossfuse.export.capture.decompose import decompose
from crossfuse.export.capture.trace import quiet_exporter
from crossfuse.export.passes.base import Missed, ProgramResult
from crossfuse.graph.metadata import plain_path
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
        why = _mismatch(query, enable_gqa)
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
    return plain_path(list(stack.values())[-1][0]) if stack else ""


def _mismatch(query: Tensor, enable_gqa: bool) -> str | None:
    if enable_gqa and (query.ndim < 4 or not isinstance(query.shape[-3], int)):
        return "scaled_dot_product_attention with grouped heads whose number is not known"
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
    given = [query, key, value]
    if attn_mask is not None:
        all_keys = statically_known_true(attn_mask.shape[-1] == key.shape[-2])
        spread = (*attn_mask.shape[:-1], key.shape[-2])
        given.append(attn_mask if all_keys else attn_mask.expand(spread))
    out_rank = max(t.ndim for t in given)
    operands, axis = _with_head_axis(given)
    lead = _lead(operands, len(operands[0].shape) - 3)
    query, key, value = (_one_batch(t, lead) for t in operands[:3])
    heads: int | torch.SymInt = query.shape[1]
    if not enable_gqa:
        (heads,) = _lead([t.movedim(-3, 0) for t in operands], 1)
        query, key, value = (_expanded(t, heads) for t in (query, key, value))
    mask = None
    if attn_mask is not None:
        mask = operands[3]
        shared = all(statically_known_true(size == 1) for size in mask.shape[:-3])
        mask = mask.reshape(1, *mask.shape[-3:]) if shared else _one_batch(mask, lead)
    is_bool = mask is not None and mask.dtype == torch.bool
    out = fused_attention(
        query.transpose(1, 2).flatten(2),
        key.transpose(1, 2).flatten(2),
        value.transpose(1, 2).flatten(2),
        mask if is_bool else None,
        None if is_bool else mask,
        num_heads=int(heads),
        kv_num_heads=key.shape[1],
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        causal="upper_left" if is_causal else "none",
    )
    out = out.unflatten(2, (heads, value.shape[-1])).transpose(1, 2)
    if len(lead) > 1:
        out = out.reshape(*lead, *out.shape[1:])
    out = out.squeeze(-3) if axis is None else out.movedim(-3, axis)
    return out.squeeze(0) if out_rank == 2 else out


def _with_head_axis(given: Sequence[Tensor]) -> tuple[list[Tensor], int | None]:
    """Operands of one rank, their heads on axis −3, and the axis where they were.

    It is the last one in front of the length whose size is a number; operands without, or of three
    axes, get one of size 1.
    """
    rank = max(3, *(t.ndim for t in given))
    operands = [
        t if t.ndim == rank else t.reshape((1,) * (rank - t.ndim) + tuple(t.shape)) for t in given
    ]
    known = [
        axis
        for axis in range(-3, -rank - 1, -1)
        if all(isinstance(t.shape[axis], int) for t in operands)
    ]
    if rank == 3 or not known:
        return [t.unsqueeze(-3) for t in operands], None
    return [t.movedim(known[0], -3) for t in operands], known[0]


def _lead(operands: Sequence[Tensor], count: int) -> list[int | torch.SymInt]:
    """The sizes of the first axes, by which the operands are broadcast."""
    lead: list[int | torch.SymInt] = []
    for axis in range(count):
        sizes = [t.shape[axis] for t in operands if not statically_known_true(t.shape[axis] == 1)]
        lead.append(sizes[0] if sizes else 1)
    return lead


def _one_batch(operand: Tensor, lead: Sequence[int | torch.SymInt]) -> Tensor:
    """The operand with all axes in front of heads as one."""
    pairs = zip(operand.shape[:-3], lead, strict=True)
    if not all(statically_known_true(own == size) for own, size in pairs):
        operand = operand.expand(*lead, -1, -1, -1)
    return operand.flatten(0, len(lead) - 1) if len(lead) > 1 else operand


def _expanded(operand: Tensor, heads: int | torch.SymInt) -> Tensor:
    """The operand with so many heads on axis 1."""
    if statically_known_true(operand.shape[1] == heads):
        return operand
    return operand.expand(-1, heads, -1, -1)
