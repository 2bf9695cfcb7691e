"""What a chain is read as: factors by role, whatever order they come in, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.matching.attention_match import AttentionMatch, match_attention
from crossfuse.export.matching.axes import Axis, size_of
from crossfuse.export.matching.softmax_chain import Mismatch, active_values, find_softmax_chains
from onnx_text import node_of, parse

HEADED = "(float[b, 4, l, 8] q, float[b, 4, 8, s] k, float[b, 4, s, 6] v)"


def match(inputs: str, body: str, **weights: object) -> AttentionMatch:
    """The only attention of a graph, ``o``."""
    text = f"{inputs} => (float[flat, 1] y) {{ {body} z = Flatten(o) y = ReduceMax(z, last) }}"
    model = parse(text, last=[1], **weights)
    (chain,) = find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))
    return match_attention(chain)


def dims(axis: Axis) -> int | str:
    return size_of(axis).dim


def roles(found: AttentionMatch) -> dict[str, int | str]:
    return {
        role: dims(getattr(found, role)) for role in ("batch", "rows", "keys", "size", "value_size")
    }


def names(found: AttentionMatch) -> tuple[str | None, str | None, str | None]:
    return found.query.value.name, found.key.value.name, found.value.value.name


EXPECTED = {"batch": "4*b", "rows": "l", "keys": "s", "size": 8, "value_size": 6}


def test_the_plain_form() -> None:
    found = match(HEADED, "a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v)")
    assert roles(found) == EXPECTED
    assert names(found) == ("q", "k", "v")
    assert found.scale == 1.0
    assert (found.multipliers, found.terms) == ((), ())
    assert [dims(axis) for axis in found.output] == ["b", 4, "l", 6]
    assert [item.value.name for item in found.between] == ["a", "p"]


def test_keys_on_the_left() -> None:
    """``softmax(K Qᵀ)`` over its rows, then ``Vᵀ`` times it."""
    found = match(
        "(float[b, 4, 8, l] q, float[b, 4, s, 8] k, float[b, 4, 6, s] v)",
        "a = MatMul(k, q) p = Softmax<axis = -2>(a) o = MatMul(v, p)",
    )
    assert roles(found) == EXPECTED
    assert names(found) == ("q", "k", "v")
    assert [dims(axis) for axis in found.output] == ["b", 4, 6, "l"]


def test_heads_merged_in_the_batch() -> None:
    found = match(
        "(float[n, l, 8] q, float[n, 8, s] k, float[n, s, 6] v)",
        "a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v)",
    )
    assert roles(found) == EXPECTED | {"batch": "n"}


def test_scores_moved_on_the_way() -> None:
    """Transposed before the softmax and back behind it."""
    found = match(
        HEADED,
        """a = MatMul(q, k) t = Transpose<perm = [0, 2, 3, 1]>(a) p = Softmax<axis = 2>(t)
           u = Transpose<perm = [0, 3, 1, 2]>(p) o = MatMul(u, v)""",
    )
    assert roles(found) == EXPECTED


def test_scores_are_a_scale_multipliers_and_terms() -> None:
    found = match(
        HEADED.replace(")", ", float[4, 1, 1] t, float[l, s] bias, bool[b, 1, 1, s] hidden)"),
        """a = MatMul(q, k) c = Div(a, two) d = Mul(c, t) e = Add(d, bias)
           f = Where(hidden, low, e) p = Softmax(f) o = MatMul(p, v)""",
        two=2.0,
        low=-np.inf,
    )
    assert found.scale == 0.5
    (multiplier,) = found.multipliers
    assert (multiplier.operand.value.name, multiplier.divides) == ("t", False)
    assert [dims(axis) for axis in multiplier.operand.axes] == [4, 1, 1]
    bias, mask = found.terms
    assert (bias.operand.value.name, bias.fill, bias.may_hide) == ("bias", None, True)
    assert (mask.operand.value.name, mask.fill, mask.hidden) == ("hidden", -np.inf, True)
    assert [dims(axis) for axis in mask.operand.axes] == ["b", 1, 1, "s"]


def test_one_context_for_all_queries() -> None:
    found = match(
        "(float[b, 4, l, 8] q, float[8, s] k, float[s, 6] v)",
        "a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v)",
    )
    assert roles(found) == EXPECTED
    assert [dims(axis) for axis in found.key.axes] == [8, "s"]


@pytest.mark.parametrize(
    ("inputs", "body", "reason"),
    [
        (
            HEADED,
            "a = MatMul(q, k) p = Softmax<axis = 1>(a) o = MatMul(p, v)",
            "its softmax is over another axis than the keys'",
        ),
        (
            HEADED.replace("s, 6] v", "l, 6] v"),
            """a = MatMul(q, k) p = Softmax(a) t = Transpose<perm = [0, 1, 3, 2]>(p)
               o = MatMul(t, v)""",
            "another axis than the one that the product with the values sums over",
        ),
        (
            HEADED.replace("float[b, 4, s, 6] v", "float[2, b, 4, s, 6] v"),
            "a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v)",
            "its values have batch axes that its scores lack",
        ),
        (
            HEADED.replace("b, 4, s, 6] v", "b, l, s, 6] v"),
            """a = MatMul(q, k) p = Softmax(a) t = Transpose<perm = [0, 2, 1, 3]>(p)
               o = MatMul(t, v)""",
            "its query rows can't be told from its batch",
        ),
        (
            HEADED.replace(")", ", float[s] w)"),
            "a = MatMul(q, k) c = Mul(a, w) p = Softmax(c) o = MatMul(p, v)",
            "multiplied by a tensor that differs from key to key",
        ),
    ],
)
def test_what_is_no_attention_says_why(inputs: str, body: str, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        match(inputs, body)


def test_an_operand_of_unknown_rank_says_so() -> None:
    model = parse(
        f"{HEADED} => (float[b, 4, l, 6] o) {{ a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v) }}"
    )
    (chain,) = find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))
    model.graph.inputs[0].shape = None
    with pytest.raises(Mismatch, match="the rank of one of its operands is unknown"):
        match_attention(chain)
