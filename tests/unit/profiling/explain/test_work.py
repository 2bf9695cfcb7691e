"""Operations and bytes of single nodes, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from crossfuse.profiling.explain.work import KINDS, kind_of, work_of


def args(inputs: list[list[int]], outputs: list[list[int]], kind: str = "float") -> dict[str, Any]:
    return {
        "input_type_shape": [{kind: shape} for shape in inputs],
        "output_type_shape": [{kind: shape} for shape in outputs],
        "activation_size": "100",
        "parameter_size": "20",
        "output_size": "3",
    }


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "flops", "more_bytes"),
    [
        ("MatMul", [[2, 5, 7], [2, 7, 3]], [[2, 5, 3]], 2 * 2 * 5 * 7 * 3, 0),
        ("MatMul", [[2, 5, 7], [7, 3]], [[2, 5, 3]], 2 * 2 * 5 * 7 * 3, 0),
        ("Gemm", [[5, 7]], [[5, 3]], 2 * 5 * 7 * 3, 7 * 3 * 4),
        ("Attention", [[2, 5, 8], [2, 6, 8], [2, 6, 8]], [[2, 5, 8]], 2 * 2 * 5 * 6 * 16, 0),
        (
            "MultiHeadAttention",
            [[2, 5, 8], [2, 6, 8], [2, 6, 4]],
            [[2, 5, 4]],
            2 * 2 * 5 * 6 * 12,
            0,
        ),
        (
            "Attention",
            [[2, 4, 5, 8], [2, 4, 6, 8], [2, 4, 6, 8]],
            [[2, 4, 5, 8]],
            2 * 2 * 4 * 5 * 6 * 16,
            0,
        ),
        ("Conv", [[1, 3, 8, 8], [16, 3, 2, 2]], [[1, 16, 4, 4]], 2 * 16 * 16 * 3 * 2 * 2, 0),
        ("Add", [[5, 7], [5, 7]], [[5, 7]], 0, 0),
    ],
)
def test_products_convolutions_and_attentions(
    op: str, inputs: list[list[int]], outputs: list[list[int]], flops: int, more_bytes: int
) -> None:
    """A weight that was packed away is counted all the same."""
    assert work_of(op, args(inputs, outputs)) == (flops, 123 + more_bytes)


def test_a_packed_convolutions_weight_is_given_from_outside() -> None:
    found = work_of("Conv", args([[1, 3, 8, 8]], [[1, 16, 4, 4]]), kernel=(16, 3, 2, 2))
    assert found == (2 * 16 * 16 * 3 * 2 * 2, 123 + 16 * 3 * 2 * 2 * 4)


def test_what_is_not_known_is_not_counted() -> None:
    assert work_of("MatMul", {"output_size": "8"}) == (0, 8)
    assert kind_of("Surprise") == "other"
    assert len({op for ops in KINDS.values() for op in ops}) == sum(map(len, KINDS.values()))
