"""An attention over tokens of two kinds becomes two, or says why it can't; that the two are right
is tested with the whole graph, in `test_prefix`."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.split.cut_attention import cut_attention
from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.mask_bounds import MaskBounds
from crossfuse.export.split.row_parts import RowParts
from crossfuse.export.split.row_rules import ROW_RULES
from crossfuse.export.split.rows import CannotCutError, Cut, Rows, Side
from crossfuse.graph.attention_node import attentions
from onnx_text import value_of
from prefix_graphs import ROWS, attend, made


def cut_of(
    attention: str, *, inputs: str = "", before: str = "", **shapes: tuple[str, ...]
) -> tuple[ir.Model, Cut | None]:
    """The attention of a graph over ``x0``, as its query, key or value or more of them."""
    model = made(
        [attention],
        join="x0 = Concat<axis = 1>(image, text)",
        inputs=inputs,
        before=before,
        behind="y = Relu(o0)",
        shapes=shapes,
    )
    image, text, *_ = model.graph.inputs
    rows = Rows((image, 1), (text, 1))
    parts = RowParts(model.graph, Dependence(model.graph, ["image"]), ROW_RULES)
    parts.cuts[value_of(model, "x0")] = Cut(1, rows, image, text)
    (found,) = attentions(model.graph)
    return model, cut_attention(parts, MaskBounds(), found)


def test_first_rows_see_themselves_and_the_rest_sees_all() -> None:
    model, cut = cut_of(attend("x0, x0, x0"))
    assert cut is not None
    _, first, rest = attentions(model.graph)
    assert (first.causal, rest.causal) == ("upper_left", "lower_right")
    assert first.query is first.key is first.value is model.graph.inputs[0]
    assert rest.query is model.graph.inputs[1]
    assert (cut.first, cut.rest) == (first.output, rest.output)
    assert first.site == rest.site == "layer0"
    assert len({first.node.name, rest.node.name}) == 2
    assert (cut.rows.dim(Side.FIRST), cut.rows.dim(Side.REST)) == (3, "T")


def test_rows_that_attend_to_something_else_are_each_for_itself() -> None:
    model, cut = cut_of(attend("x0, image, image", "none"))
    assert cut is not None
    _, first, rest = attentions(model.graph)
    assert first.key is rest.key is model.graph.inputs[0]
    assert first.causal == rest.causal == "none"


def test_keys_alone_need_no_other_attention() -> None:
    model, cut = cut_of(
        attend("text, x0, x0", "none"), **{"float[B, T, 8]": ("o0",), "float[B, N, 8]": ("x0",)}
    )
    assert cut is None
    assert len(attentions(model.graph)) == 1


@pytest.mark.parametrize(
    ("attention", "given", "reason"),
    [
        (attend("x0, x0, x0", "none"), {}, "no causal mask is known to hide it"),
        (attend("x0, x0, text"), {}, "joined of different tokens"),
        (attend("x0, image, image"), {}, "it counts its rows"),
        (
            attend('x0, x0, x0, "", "", lengths'),
            {"inputs": ", int64[B] lengths"},
            "it has lengths of its own",
        ),
        (
            attend("x0, x0, x0, mask", "none"),
            {
                "before": f"{ROWS} c = LessOrEqual(row, column) mask = Unsqueeze(c, heads)",
                "bool[1, 1, N, N]": ("mask",),
            },
            "no causal mask is known to hide it",
        ),
        (
            attend("x0, x0, text2", "none"),
            {"before": "text2 = Identity(x0)", "float[B, N, 8]": ("x0", "o0", "text2")},
            "joined of different tokens",
        ),
        (attend("x0, text, text", "none"), {}, "they are computed with text of the queries"),
    ],
)
def test_what_cannot_be_cut_says_why(attention: str, given: dict, reason: str) -> None:
    with pytest.raises(CannotCutError, match=reason):
        cut_of(attention, **given)
