"""The step stage of a small decoder: token by token as over the whole sequence, or a reason."""

from __future__ import annotations

from collections.abc import Callable

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
    steps = Steps(step)
    for position in range(LENGTH):
        rows = steps(ids[:, position : position + 1], [[position], [position]])
        np.testing.assert_allclose(rows[:, 0], truth[:, position], atol=1e-5)


class Steps:
    """Runs of a step stage, with its state, whose content before the first run is of no account."""

    def __init__(self, step: ir.Model, batch: int = 2) -> None:
        self.step = step
        self.state = {
            str(v.name): np.ones(
                [batch if isinstance(n, ir.SymbolicDim) else n for n in v.shape or ()],
                v.dtype.numpy() if v.dtype else "f4",
            )
            for v in step.graph.inputs
            if str(v.name).startswith(STATE)
        }

    def __call__(self, ids: np.ndarray, places: object, **more: np.ndarray) -> np.ndarray:
        rows, *state = run(
            self.step, {"ids": ids, POSITION: np.array(places), **more, **self.state}
        )
        names = [str(v.name) for v in self.step.graph.outputs][1:]
        made = dict(zip(names, state, strict=True))
        self.state = {name: made[NEXT + name.removeprefix(STATE)] for name in self.state}
        return rows


def relative() -> ir.Model:
    """A bias by the distance, ``[1, 1, t, t]``, beside a causal kind."""
    attend = ATTEND.replace("CAUSAL", '"upper_left"').replace("(h, h, h)", "(h, h, h, , four)")
    text = f"""{EMBED} rows = Unsqueeze(r, last) far = Sub(rows, r) wide = Cast<to = 1>(far)
               bias = Mul(wide, slope) four = Unsqueeze(bias, heads) {attend} y = Relu(o)"""
    shapes = f"{SHAPES[:-1]}, float[t, t] bias, float[1, 1, t, t] four, int64[t, t] far>"
    model = parse(
        f"(int64[b, t] ids) => (float[b, t, 8] y) {shapes} {{ {text} }}",
        table=TABLE,
        places=PLACES,
        slope=np.float32(0.3),
        heads=np.array([0, 1]),
        last=np.array([1]),
        zero=0,
        one=1,
    )
    node_of(model, "FusedAttention").metadata_props[SITE] = "attend"
    return model


def rotary() -> ir.Model:
    """Tables ``[1, t, 8]`` and ``[t, 4]``, the second for tokens split into heads."""
    attend = ATTEND.replace("CAUSAL", '"lower_right"').replace("(h, h, h)", "(k, k, h)")
    text = f"""x = Gather(table, ids) n = Shape<start = 1, end = 2>(ids) count = Squeeze(n)
               r = Range(zero, count, one) e = Gather(places, r) first = Unsqueeze(e, lead)
               h = Mul(x, first) four = Reshape(h, split) q = Transpose<perm = [0, 2, 1, 3]>(four)
               half = Gather<axis = 1>(e, cut) turned = Mul(q, half)
               back = Transpose<perm = [0, 2, 1, 3]>(turned) k = Reshape(back, merge)
               {attend} y = Relu(o)"""
    shapes = """<int64[t] r, float[t, 8] e, float[1, t, 8] first, float[b, t, 8] h,
                float[b, t, 2, 4] four, float[b, 2, t, 4] q, float[t, 4] half,
                float[b, 2, t, 4] turned, float[b, t, 2, 4] back, float[b, t, 8] k,
                float[b, t, 8] o>"""
    model = parse(
        f"(int64[b, t] ids) => (float[b, t, 8] y) {shapes} {{ {text} }}",
        table=TABLE,
        places=PLACES,
        lead=np.array([0]),
        split=np.array([0, 0, 2, 4]),
        merge=np.array([0, 0, 8]),
        cut=np.array([0, 2, 4, 6]),
        zero=0,
        one=1,
    )
    node_of(model, "FusedAttention").metadata_props[SITE] = "attend"
    return model


RAGGED = ([[0, 1, 2], [0, 0, 0]], [[3, 3], [1, 2]], [[4, 5, 5], [3, 4, 5]])
"""Places of three runs: each sequence's own; what pads a row is its last token again."""


@pytest.mark.parametrize("make", [decoder, relative, rotary])
def test_prompts_of_different_lengths_and_what_follows(make: Callable[[], ir.Model]) -> None:
    model = make()
    ids = RNG.integers(0, 9, (2, LENGTH))
    (truth,) = run(model, {"ids": ids})
    steps = Steps(decode_stage(model, "ids", LENGTH))
    for places in RAGGED:
        at = np.array(places)
        rows = steps(np.take_along_axis(ids, at, 1), at)
        expected = np.take_along_axis(truth, at[..., None], 1)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def masked() -> ir.Model:
    """Tokens with a mask of them, from which their places are counted, too."""
    attend = ATTEND.replace("CAUSAL", '"upper_left"').replace("(h, h, h)", "(h, h, h, seen)")
    model = parse(
        f"""(int64[b, t] ids, int64[b, t] mask) => (float[b, t, 8] y)
            <int64[b, t] counted, int64[b, t] at, float[b, t, 8] e, float[b, t, 8] h,
             bool[b, t] kept, bool[b, 1, 1, t] seen, float[b, t, 8] o> {{
            x = Gather(table, ids) counted = CumSum(mask, one) at = Mul(counted, mask)
            e = Gather(places, at) h = Add(x, e) kept = Cast<to = 9>(mask)
            seen = Unsqueeze(kept, heads) {attend} y = Relu(o) }}""",
        table=TABLE,
        places=PLACES,
        heads=np.array([1, 2]),
        one=1,
    )
    node_of(model, "FusedAttention").metadata_props[SITE] = "attend"
    return model


def test_a_mask_of_the_tokens_is_state_as_well() -> None:
    model = masked()
    ids, mask = RNG.integers(0, 9, (2, LENGTH)), np.array([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1]])
    (truth,) = run(model, {"ids": ids, "mask": mask})
    step = decode_stage(model, "ids", LENGTH)
    assert f"{STATE}mask" in [v.name for v in step.graph.inputs]
    steps = Steps(step)
    for places in RAGGED:
        at = np.array(places)
        rows = steps(np.take_along_axis(ids, at, 1), at, mask=np.take_along_axis(mask, at, 1))
        expected = np.take_along_axis(truth, at[..., None], 1)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def packed() -> ir.Model:
    """Tokens of several texts in a row, which see their own text alone: ``[b, 1, t, t]``."""
    attend = ATTEND.replace("CAUSAL", '"upper_left"').replace("(h, h, h)", "(h, h, h, same)")
    model = parse(
        f"""(int64[b, t] ids, int64[b, t] begins) => (float[b, t, 8] y)
            <int64[b, t] text, int64[b, t, 1] at, float[b, t, 8] e, float[b, t, 8] h,
             int64[b, 1, t, 1] row, int64[b, 1, 1, t] column, bool[b, 1, t, t] same,
             float[b, t, 8] o> {{
            x = Gather(table, ids) text = CumSum(begins, one) at = Unsqueeze(text, last)
            e = GatherND(places, at) h = Add(x, e) row = Unsqueeze(text, outer)
            column = Unsqueeze(text, inner) same = Equal(row, column) {attend} y = Relu(o) }}""",
        table=TABLE,
        places=PLACES,
        last=np.array([2]),
        outer=np.array([1, 3]),
        inner=np.array([1, 2]),
        one=1,
    )
    node_of(model, "FusedAttention").metadata_props[SITE] = "attend"
    return model


def test_tables_of_tokens_by_tokens_are_computed_for_the_new_ones_alone() -> None:
    model = packed()
    ids, begins = (
        RNG.integers(0, 9, (2, LENGTH)),
        np.array([[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1]]),
    )
    (truth,) = run(model, {"ids": ids, "begins": begins})
    step = decode_stage(model, "ids", LENGTH)
    steps = Steps(step)
    for places in RAGGED:
        at = np.array(places)
        rows = steps(np.take_along_axis(ids, at, 1), at, begins=np.take_along_axis(begins, at, 1))
        expected = np.take_along_axis(truth, at[..., None], 1)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    shapes = {str(v.name): v.shape for node in step.graph for v in node.outputs}
    equal = node_of(step, "Equal").outputs[0]
    assert equal.shape == ir.Shape(["b", 1, "new_tokens", LENGTH])
    assert not any(shape and [*shape][-2:] == [LENGTH] * 2 for shape in shapes.values())


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
        (decoder(more=", float[b, t, 3] weights"), "another input has a token axis.*weights"),
        (decoder(more=", float[b, new_tokens] other"), "name that the new tokens take"),
        (decoder(more=f", int64[1] {POSITION}"), "an input has the name that the number of tokens"),
        (
            decoder(tail="c = CumSum(o, one) y = Relu(c)"),
            "CumSum makes what stands for a token of other tokens",
        ),
    ],
    ids=["not causal", "second token axis", "taken size", "taken name", "running sum"],
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
