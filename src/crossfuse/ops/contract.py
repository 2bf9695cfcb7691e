"""The operator's contract: names, attributes, and the shapes it takes.

==================  ==============================================================================
``query``           ``[Bq, L, Hq·D]`` float
``key``, ``value``  ``[Bk, S, Hkv·D]``, ``[Bk, S, Hkv·Dv]`` float; ``Hkv`` divides ``Hq``, ``Bk``
                    divides ``Bq``
``mask``            optional bool, ``[1|Bk|Bq, 1|Hq, 1|L, S]``; True = attend; a batch of ``Bk``
                    is per context
``bias``            optional float, same shapes; added to the scaled scores; −inf removes a key
``key_lengths``     optional int, ``[Bk]``; keys at or past the length are not attended
output              ``[Bq, L, Hq·Dv]``
==================  ==============================================================================

Query rows ``i·G … (i+1)·G-1`` of the batch (``G = Bq/Bk``) attend to context ``i``. A query row
that may attend to nothing yields 0. Causal kinds: ``upper_left`` lets row *i* attend to keys
*j ≤ i*; ``lower_right`` to *j ≤ i + S − L*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from crossfuse.errors import InputError

__all__ = ["CAUSAL_KINDS", "DOMAIN", "INPUTS", "NAME", "VERSION", "check_shapes"]

DOMAIN: Final = "crossfuse"
NAME: Final = "FusedAttention"
VERSION: Final = 1
INPUTS: Final = ("query", "key", "value", "mask", "bias", "key_lengths")
CAUSAL_KINDS: Final = ("none", "upper_left", "lower_right")

Shape = Sequence[int]


def check_shapes(  # noqa: PLR0913 -- the operator's own signature
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
    _check_ranks({"query": query, "key": key, "value": value})
    _check_attributes(num_heads, kv_num_heads, causal)
    _check_batches(query, key, value)
    _check_widths(query, key, value, num_heads, kv_num_heads)
    batches, (length, keys) = {1, key[0], query[0]}, (query[1], key[1])
    for name, found in (("mask", mask), ("bias", bias)):
        if found is not None:
            _check_mask(name, found, (batches, {1, num_heads}, {1, length}, {keys}))
    if key_lengths is not None and tuple(key_lengths) != (key[0],):
        raise InputError(
            f"{NAME}: key_lengths has the wrong shape", got=tuple(key_lengths), expected=(key[0],)
        )
    return query[0], length, num_heads * (value[2] // kv_num_heads)


def _check_ranks(operands: Mapping[str, Shape]) -> None:
    for name, shape in operands.items():
        if len(shape) != 3:
            raise InputError(
                f"{NAME}: {name} has the wrong rank",
                got=tuple(shape),
                expected="[batch, length, heads·size]",
            )


def _check_attributes(num_heads: int, kv_num_heads: int, causal: str) -> None:
    if num_heads < 1 or kv_num_heads < 1 or num_heads % kv_num_heads:
        raise InputError(
            f"{NAME}: kv_num_heads must divide num_heads", got=f"{kv_num_heads} and {num_heads}"
        )
    if causal not in CAUSAL_KINDS:
        raise InputError(f"{NAME}: unknown causal kind", got=repr(causal), expected=CAUSAL_KINDS)


def _check_batches(query: Shape, key: Shape, value: Shape) -> None:
    if tuple(key[:2]) != tuple(value[:2]):
        raise InputError(
            f"{NAME}: key and value differ in batch or length",
            got=f"{tuple(key)} and {tuple(value)}",
        )
    if key[0] < 1 or query[0] % key[0]:
        raise InputError(
            f"{NAME}: the key batch must divide the query batch",
            got=f"Bq={query[0]}, Bk={key[0]}",
        )


def _check_widths(
    query: Shape, key: Shape, value: Shape, num_heads: int, kv_num_heads: int
) -> None:
    whole = not (query[2] % num_heads or key[2] % kv_num_heads or value[2] % kv_num_heads)
    if not whole or query[2] // num_heads != key[2] // kv_num_heads:
        raise InputError(
            f"{NAME}: widths and heads don't agree",
            got=f"query {query[2]}/{num_heads}, key {key[2]}/{kv_num_heads}, "
            f"value {value[2]}/{kv_num_heads}",
            expected="equal head size of query and key, and whole head sizes",
        )


def _check_mask(name: str, shape: Shape, allowed: Sequence[set[int]]) -> None:
    if len(shape) != 4 or any(
        size not in sizes for size, sizes in zip(shape, allowed, strict=True)
    ):
        raise InputError(
            f"{NAME}: {name} has the wrong shape",
            got=tuple(shape),
            expected="[" + ", ".join("|".join(map(str, sorted(s))) for s in allowed) + "]",
        )
