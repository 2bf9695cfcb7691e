"""Which attention kernel ONNX Runtime's CUDA provider runs for an ONNX ``Attention``.

Read from the provider's own log on the grid of `tests/gpu_rehearsal`, which checks every rule here;
compute capability 8.0 and up, ONNX Runtime 1.31:

==========================================  ======================================
head sizes that are no multiples of 8       ``math``: scores in memory, as several kernels
grouped heads in fp32, or of two sizes      ``math``
mask, keys no multiple of 4                 ``math``
mask                                        ``efficient`` (memory-efficient attention)
no mask, lengths or causal; fp32            ``efficient``
head sizes that differ, or beyond 256       ``efficient``
upper-left causal, as many queries as keys  ``flash``; otherwise ``efficient``
no mask, lengths; fp16, bf16                ``flash``
==========================================  ======================================
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FLASH_LIMIT", "KEYS_MULTIPLE", "SIZE_MULTIPLE", "Form", "kernel_text", "runs"]

SIZE_MULTIPLE = 8
"""Head sizes that the fused kernels take are multiples of this."""

FLASH_LIMIT = 256
"""The largest head size of flash attention."""

KEYS_MULTIPLE = 4
"""With a mask, the number of keys has to be a multiple of this."""

_UNFUSED = "math"


@dataclass(frozen=True)
class Form:
    """What decides about an ``Attention`` node's kernel.

    Attributes:
        half: fp16 or bf16.
        size, value_size: of a head, as the node gets them; None where they are not known.
        grouped: fewer key heads than query heads.
        masked: it has a mask, bool or additive.
        causal: upper-left, by the node's attribute.
        square: as many queries as keys, known from the graph.
    """

    half: bool
    size: int | None
    value_size: int | None
    grouped: bool = False
    masked: bool = False
    causal: bool = False
    square: bool = False


def runs(form: Form, queries: int, keys: int) -> str:
    """``flash``, ``efficient`` or ``math``: the kernel at these lengths (queries of one context,
    fan-out included)."""
    if form.size is None or form.value_size is None:
        return _UNFUSED
    if form.size % SIZE_MULTIPLE or form.value_size % SIZE_MULTIPLE:
        return _UNFUSED
    if form.grouped and not (form.half and form.size == form.value_size):
        return _UNFUSED
    if form.masked:
        return _UNFUSED if keys % KEYS_MULTIPLE else "efficient"
    if not form.half or form.size != form.value_size or form.size > FLASH_LIMIT:
        return "efficient"
    return "efficient" if form.causal and queries != keys else "flash"


def kernel_text(form: Form, *, padded: bool) -> str | None:
    """The kernels of all lengths in words, such as ``flash; efficient where queries and keys differ
    in number``.

    Args:
        form: of the node.
        padded: the number of keys is a multiple of `KEYS_MULTIPLE` at every length.

    Returns:
        None where the provider computes the scores at every length: no fused kernel.
    """
    usual, other = runs(form, 8, 8), runs(form, 8, 16)
    if usual == _UNFUSED:
        return None
    if usual != other and not form.square:
        return f"{usual}; {other} where queries and keys differ in number"
    if form.masked and not padded:
        return f"{usual}; {_UNFUSED} where the number of keys is no multiple of {KEYS_MULTIPLE}"
    return usual
