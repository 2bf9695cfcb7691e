"""What stages take and give together: names, counts of contexts, and shares of queries."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.session_layout import SessionLayout


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


WHOLE = {
    "model": StageSpec((spec("x", "batch", 2), spec("m", "batch", "keys")), (spec("y", "batch"),))
}
SPLIT = {
    "context": StageSpec(
        (spec("scale", 1), spec("image", "contexts", "keys", 4)), (spec("k", "contexts", "keys"),)
    ),
    "query": StageSpec(
        (spec("ids", "batch", "text"), spec("k", "contexts", "keys")), (spec("y", "batch"),)
    ),
}


def feeds(queries: int, contexts: int) -> dict[str, np.ndarray]:
    return {
        "scale": np.ones(1),
        "image": np.ones((contexts, 7, 4)),
        "ids": np.ones((queries, 3)),
    }


def test_a_whole_model_has_no_contexts() -> None:
    layout = SessionLayout(WHOLE, None, None)
    assert not layout.split
    assert [s.name for s in layout.inputs] == ["x", "m"]
    assert (layout.context_names, layout.frontier, layout.output_names) == ((), (), ("y",))
    assert layout.contexts_in({}) == 1
    layout.check_fan_out({"x": np.ones((3, 2))}, 2)


def test_a_split_model_hides_what_its_stages_hand_over() -> None:
    layout = SessionLayout(SPLIT, "batch", None)
    assert layout.split
    assert [s.name for s in layout.inputs] == ["scale", "image", "ids"]
    assert (layout.context_names, layout.frontier) == (("scale", "image"), ("k",))
    assert layout.batch == "contexts"
    assert layout.contexts_in(feeds(4, 2)) == 2
    assert layout.context_sizes(feeds(4, 2)) == {"contexts": 2, "keys": 7}


def test_sequences_may_come_first() -> None:
    stages = {
        "context": StageSpec((spec("image", "keys", "contexts", 4),), (spec("k", "contexts"),)),
        "query": StageSpec((spec("x", "text", "batch", 4), spec("k", "contexts")), ()),
    }
    layout = SessionLayout(stages, "batch", None)
    assert layout.batch == "contexts"
    given = {"image": np.ones((7, 2, 4)), "x": np.ones((3, 4, 4))}
    assert layout.contexts_in(given) == 2
    layout.check_fan_out(given, 2)
    with pytest.raises(InputError, match="x, axis 1.*4 queries, 3 contexts"):
        layout.check_fan_out(given, 3)


@pytest.mark.parametrize(
    ("queries", "contexts", "fits"), [(4, 2, True), (3, 2, False), (2, 4, False)]
)
def test_queries_are_shared_out_evenly(queries: int, contexts: int, fits: bool) -> None:
    layout = SessionLayout(SPLIT, "batch", None)
    if fits:
        layout.check_fan_out(feeds(queries, contexts), contexts)
        return
    with pytest.raises(InputError, match=rf"no multiple.*\(ids, axis 0\).*{queries} queries"):
        layout.check_fan_out(feeds(queries, contexts), contexts)


def test_a_step_takes_the_ids_alone() -> None:
    layout = SessionLayout(SPLIT, "batch", Decode("ids", 8))
    assert layout.token == spec("ids", "batch", "text")
    ids = np.ones(3)
    found, beside = layout.tokens_in({"ids": ids})
    assert found is ids
    assert beside == {}
    for wrong in ({}, {"ids": ids, "more": ids}, {"tokens": ids}):
        with pytest.raises(InputError, match="takes the ids alone.*expected ids"):
            layout.tokens_in(wrong)
