"""Tokens of a context that meet those of queries otherwise than in front of them: the reason says
how, and nothing is said where they don't meet."""

from __future__ import annotations

import pytest

from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.met_otherwise import met_otherwise
from onnx_text import parse

ATTEND = (
    "o = crossfuse.FusedAttention<num_heads: int = 2, kv_num_heads: int = 2, scale: float = 0.5, "
    'causal: string = "upper_left">(x, x, x) y = Relu(o)'
)
PLACED = "is computed from the queries"
JOINED = {
    "scattered": ("x = ScatterND(text, places, image)", f"{PLACED} (ScatterND, by places)"),
    "taken one by one": (
        """t = GatherElements<axis = 1>(image, ids) e = Equal(ids, one)
           x = Where(e, t, text)""",
        f"{PLACED} (Where, by ids)",
    ),
    "taken from all rows": (
        """f = Reshape(image, flat) g = Gather<axis = 0>(f, ids) t = Reshape(g, rows)
           e = Equal(ids, one) x = Where(e, text, t)""",
        f"{PLACED} (Where, by ids)",
    ),
    "behind": ("x = Concat<axis = 1>(text, image)", "stand behind those of the queries"),
    "in front": ("x = Concat<axis = 2>(text, image)", None),
    "made of the text": (
        "t = GatherElements<axis = 1>(text, ids) e = Equal(ids, one) x = Where(e, t, text)",
        None,
    ),
    "added": ("x = Add(text, image)", None),
}


@pytest.mark.parametrize("name", list(JOINED))
def test_the_reason_says_how_they_meet(name: str) -> None:
    text, reason = JOINED[name]
    found = reasons(text, ATTEND)
    assert [r for r in found if reason is not None and reason in r] == found
    assert bool(found) == (reason is not None)


def test_what_no_attention_reads_is_no_tokens() -> None:
    text, _ = JOINED["taken one by one"]
    assert reasons(text, "y = Relu(x)") == []


def reasons(text: str, behind: str) -> list[str]:
    model = parse(
        f"""(float[2, 3, 8] image, float[2, 3, 8] text, int64[2, 3, 8] ids, int64[2, 3, 2] places)
            => (float[2, 3, 8] y) <float[2, M, W] x, float[2, M, W] o> {{ {text} {behind} }}""",
        one=1,
        flat=[48],
        rows=[2, 3, 8],
    )
    dependence = Dependence(model.graph, ["image"])
    found = (met_otherwise(dependence, node) for node in model.graph)
    return [reason for reason in found if reason is not None]
