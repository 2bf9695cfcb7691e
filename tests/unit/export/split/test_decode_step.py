"""The step stage of a small decoder: token by token as over the whole sequence, or a reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.tensors import NEXT, POSITION, STATE, Dim
from crossfuse.errors import InputError
from crossfuse.export.split.assembly import DEFAULT_LENGTH, assemble
from crossfuse.export.split.decode_step import NoStepsError, decode_stage
from crossfuse.graph.metadata import SITE
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.onnxruntime import lower_ort_cpu
from onnx_text import node_of, parse

RNG = np.random.default_rng(0)
TABLE, PLACES = RNG.standard_normal((9, 8)), RNG.standard_normal((16, 8))
LENGTH = 6

EMBED = """x = Gather(table, ids) n = Shape<start = 1, end = 2>(ids) count = Squeeze(n)
           r = Range(zero, count, one) e = Gather(places, r) h = Add(x, e)"""
ATTEND = """o = crossfuse.FusedAttention<num_heads: int = 2, kv_num_heads: int = 2,
            scale: float = 0.5, causal: string = CAUSAL>(h, h, h)"""
SHAPES = "<int64[t] r, float[t, 8] e, float[b, t, 8] h, float[b, t, 8] o>"


def decoder(
    causal: str = "upper_left", *, more: str = "", extra: str = "", tail: str = "y = Relu(o)"
) -> ir.Model:
    attend = ATTEND.replace("CAUSAL", f'"{causal}"')
    model = parse(
        f"(int64[b, t] ids{more}) => (float[b, t, 8] y) {SHAPES} "
        f"{{ {EMBED} {extra} {attend} {tail} }}",
        table=TABLE,
        places=PLACES,
        zero=0,
        one=1,
    )
    node_of(model, "FusedAttention").metadata_props[SITE] = "attend"
    return model


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run_once(lower_ort_cpu(model).model, inputs)


def test_steps_are_the_rows_of_the_whole_sequence() -> None:
    model = decoder()
    step = decode_stage(model, "ids", LENGTH)
    assert [v.name for v in step.graph.inputs] == [
        "ids",
        POSITION,
        f"{STATE}attend.key",
        f"{STATE}attend.value",
    ]
    assert [v.name for v in step.graph.outputs][1:] == [f"{NEXT}attend.key", f"{NEXT}attend.value"]
    ids = RNG.integers(0, 9, (2, LENGTH))
    (truth,) = run(model, {"ids": ids})
    state = [RNG.standard_normal((2, LENGTH, 8)).astype(np.float32) for _ in range(2)]
    for position in range(LENGTH):
        inputs = {
            "ids": ids[:, position : position + 1],
            POSITION: np.array([position]),
            f"{STATE}attend.key": state[0],
            f"{STATE}attend.value": state[1],
        }
        row, *state = run(step, inputs)
        np.testing.assert_allclose(row[:, 0], truth[:, position], atol=1e-5)


def test_the_whole_graph_is_left_as_it_was() -> None:
    model = decoder()
    before = [node.op_type for node in model.graph]
    decode_stage(model, "ids", LENGTH)
    assert [node.op_type for node in model.graph] == before
    assert model.graph.inputs[0].shape == ir.Shape(["b", "t"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (decoder("none"), "an attention sees later tokens"),
        (decoder(more=", float[b, t] weights"), "another input has a token axis.*weights"),
        (decoder(more=f", int64[1] {POSITION}"), "an input has the name that the number of tokens"),
        (decoder(tail="c = CumSum(o, one) y = Relu(c)"), "sums over those before it"),
    ],
    ids=["not causal", "second token axis", "taken name", "running sum"],
)
def test_what_cannot_be_stepped_says_why(model: ir.Model, reason: str) -> None:
    with pytest.raises(NoStepsError, match=f"can't be decoded step by step: .*{reason}"):
        decode_stage(model, "ids", LENGTH)


def test_without_an_attention_over_tokens_there_are_no_steps() -> None:
    model = parse("(int64[b, t] ids) => (float[b, t, 8] y) { y = Gather(table, ids) }", table=TABLE)
    with pytest.raises(NoStepsError, match="no attention runs over the tokens"):
        decode_stage(model, "ids", LENGTH)


@pytest.mark.parametrize("name", ["ids", "text"])
def test_tokens_are_an_input_of_dynamic_length(name: str) -> None:
    model = parse("(int64[b, 4] ids) => (float[b, 4, 8] y) { y = Gather(table, ids) }", table=TABLE)
    with pytest.raises(InputError, match="decoding needs a query input of ids with a dynamic"):
        decode_stage(model, name, LENGTH)


def with_memory() -> ir.Model:
    """A decoder whose context is added to all tokens."""
    return decoder(
        more=", float[b, 8] memory",
        extra="k = Neg(memory) u = Unsqueeze(k, one)",
        tail="y = Add(o, u)",
    )


@pytest.mark.parametrize(("most", "length"), [(12, 12), (None, DEFAULT_LENGTH)])
def test_a_decoder_has_three_stages(most: int | None, length: int) -> None:
    dims = {"b": Dim("b", 1, 8), "t": Dim("t", 1, most)}
    stages = assemble(with_memory(), ["memory"], dims, {"b": 2, "t": 3}, decode="ids")
    assert set(stages.graphs) == set(stages.specs) == {"context", "query", "step"}
    assert stages.decode is not None
    assert (stages.decode.tokens, stages.decode.length) == ("ids", length)
    assert stages.shared_batch == "b"
    names = [spec.name for spec in stages.specs["query"].inputs]
    assert names[0] == "ids"
    assert names[1:] == [spec.name for spec in stages.specs["context"].outputs]


def test_a_graph_without_context_or_left_whole_is_one_stage() -> None:
    dims, sizes = {"b": Dim("b", 1, 8), "t": Dim("t", 1, 12)}, {"b": 2, "t": 3}
    for stages in (
        assemble(decoder(), [], dims, sizes),
        assemble(with_memory(), ["memory"], dims, sizes, whole=True),
    ):
        assert list(stages.graphs) == ["model"]
        assert (stages.decode, stages.shared_batch) == (None, None)
        assert stages.specs["model"].flops is not None
