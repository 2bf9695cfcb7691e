"""The operator's contract: names, attributes, and the shapes it takes.

==================  ===============================================================================================
``query``           ``[Bq, L, Hq·D]`` float
``key``, ``value``  ``[Bk, S, Hkv·D]``, ``[Bk, S, Hkv·Dv]`` float; ``Hkv`` divides ``Hq``, ``Bk``
divides ``Bq``
``mask``            optional bool, ``[1|Bk|Bq, 1|Hq, 1|L, S]``; True = attend; a batch of ``Bk`` is per context
``bias``            optional float, same shapes; added to the scaled scores; −inf removes a key
``key_lengths``     optional int, ``[Bk]``; keys at or past the length are not attended
output              ``[Bq, L, Hq·Dv]``
==================  ===============================================================================================

Query rows ``i·G … (i+1)·G-1`` of the batch (``G = Bq/Bk``) attend to context ``i``. A query row
that may attend to nothing yields 0. Causal kinds: ``upper_left`` lets row *i* attend to keys *j ≤
i*; ``lower_right`` to *j ≤ i + S − L*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crossfuse.errors import InputError

__all__ = ["CAUSAL_KINDS", "DOMAIN", "INPUTS", "NAME", "VERSION", "check_shapes"]

DOMAIN: Final = "crossfuse"
NAME: Final = "FusedAttention"
VERSION: Final = 1
INPUTS: Final = ("query", "key", "value", "mask", "bias", "key_lengths")
CAUSAL_KINDS: Final = ("none", "upper_left", "lower_right")

Shape = Sequence[int]


def check_shapes(
    query: Shape,
    key: Shape,
    value: Shape,
    *,
    mask: Shape | None = None,
    bias: Shape | None = None,
    key_lengths: Shape | None = None,
    num_heads: int,
    kv_num_heads: int,
    causal: str = "none",
) -> tuple[int, int, int]:
    """Check concrete shapes against the contract.

    Returns:
        The output shape ``(Bq, L, Hq·Dv)``.

    Raises:
        InputError: naming the first tensor or attribute that breaks the contract.
    """
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != 3:
            raise InputError(
                f"{NAME}: {name} has the wrong rank",
                got=tuple(shape),
                expected="[batch, length, heads·size]",
            )
    if num_heads < 1 or kv_num_heads < 1 or num_heads % kv_num_heads:
        raise InputError(
            f"{NAME}: kv_num_heads must divide num_heads", got=f"{kv_num_heads} and {num_heads}"
        )
    if causal not in CAUSAL_KINDS:
        raise InputError(f"{NAME}: unknown causal kind", got=repr(causal), expected=CAUSAL_KINDS)
    (bq, length, wq), (bk, keys, wk), (bv, values, wv) = query, key, value
    if (bk, keys) != (bv, values):
        raise InputError(
            f"{NAME}: key and value differ in batch or length",
            got=f"{tuple(key)} and {tuple(value)}",
        )
    if bk < 1 or bq % bk:
        raise InputError(
            f"{NAME}: the key batch must divide the query batch", got=f"Bq={bq}, Bk={bk}"
        )
    if (
        wq % num_heads
        or wk % kv_num_heads
        or wv % kv_num_heads
        or wq // num_heads != wk // kv_num_heads
    ):
        raise InputError(
            f"{NAME}: widths and heads don't agree",
            got=f"query {wq}/{num_heads}, key {wk}/{kv_num_heads}, value {wv}/{kv_num_heads}",
            expected="equal head size of query and key, and whole head sizes",
        )
    for name, shape4 in (("mask", mask), ("bias", bias)):
        if shape4 is None:
            continue
        allowed = ({1, bk, bq}, {1, num_heads}, {1, length}, {keys})
        if len(shape4) != 4 or any(
            size not in sizes for size, sizes in zip(shape4, allowed, strict=True)
        ):
            raise InputError(
                f"{NAME}: {name} has the wrong shape",
                got=tuple(shape4),
                expected=f"[1|{bk}|{bq}, 1|{num_heads}, 1|{length}, {keys}]",
            )
    if key_lengths is not None and tuple(key_lengths) != (bk,):
        raise InputError(
            f"{NAME}: key_lengths has the wrong shape", got=tuple(key_lengths), expected=(bk,)
        )
    return bq, length, num_heads * (wv // kv_num_heads)
