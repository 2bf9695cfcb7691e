"""Which dimension counts contexts is told by its name, not by its letters."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context


def context(shape: tuple[int | str, ...], array: np.ndarray) -> Context:
    return Context({"k": array}, (TensorSpec("k", "float32", shape),), 3, "b", "owner")


@pytest.mark.parametrize("other", ["blocks", "a.b", "b.a", "b1", "2*blocks"])
def test_other_names_with_the_same_letters(other: str) -> None:
    array = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert context((other, 2), array).select([1]).tensors["k"] is array
    per_context = np.arange(15, dtype=np.float32).reshape(3, 5)
    taken = context(("b", other), per_context).select([2, 0]).tensors["k"]
    np.testing.assert_array_equal(taken, per_context[[2, 0]])


@pytest.mark.parametrize("size", ["2*b", "b*blocks", "(b + 1)//2"])
def test_a_batch_inside_an_expression_is_no_axis(size: str) -> None:
    with pytest.raises(InputError, match="no axis of its own"):
        context((size, 2), np.zeros((6, 2), np.float32)).select([0])
