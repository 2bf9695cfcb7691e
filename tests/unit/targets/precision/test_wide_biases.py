"""Biases that hide keys with numbers beyond half precision's range mean in fp16 and bf16 what they
mean in float64.

All forms are outputs of one module, on the same inputs; the truth is the module in float64. What a
half-precision target computes is run in fp32 with rounding, in the form of each target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.core.target import TARGETS
from crossfuse.export.fuse import FusedGraph, fuse
from crossfuse.export.split.assembly import assemble
from crossfuse.ops.reference import attention_reference
from crossfuse.targets.cpu_run import opened, run_once
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.stages import half_stages
from crossfuse.targets.precision.wide_biases import bias_inputs, narrow_biases, wide_outputs
from crossfuse.targets.registry import cpu_equivalent, cpu_equivalents
from graphs_for_tests import Case
from onnx_text import parse

HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE
LOW = torch.finfo(torch.float32).min
HALVES = ["fp16", "bf16"]
LOWERED = ["ort-cpu", "ort-cuda", "tensorrt-rtx"]
ALLOWED = {"fp16": 1.5e-2, "bf16": 1.2e-1}
"""About five units in the last place of outputs around 3; what a wrong meaning changes is of the
order of 1."""

Form = Callable[["Forms", Tensor, Tensor, Tensor, Tensor], Tensor]
"""(module, hidden keys ``[B, 1, 1, S]``, later ones ``[L, S]``, both as floats, an additive mask)
→ a bias."""

FORMS: dict[str, Form] = {
    "selected": lambda m, pad, late, given: torch.where(pad > 0, LOW, 0.0).to(pad.dtype),
    "multiplied": lambda m, pad, late, given: (1.0 - (1.0 - pad)) * LOW,
    "filled": lambda m, pad, late, given: torch.zeros_like(pad).masked_fill(pad > 0, LOW),
    "padded_or_late": lambda m, pad, late, given: torch.where((pad + late) > 0, LOW, 0.0).to(
        pad.dtype
    ),
    "padded_plus_late": lambda m, pad, late, given: pad * LOW + late * LOW,
    "by_head": lambda m, pad, late, given: pad * m.first_head * LOW,
    "beside_positions": lambda m, pad, late, given: (
        pad * LOW + m.table[:, : late.shape[0], : late.shape[1]]
    ),
    "from_outside": lambda m, pad, late, given: given,
    "from_outside_and_late": lambda m, pad, late, given: given + late * LOW,
    "a_billion": lambda m, pad, late, given: pad * -1e9,
    "a_billion_twice": lambda m, pad, late, given: pad * -1e9 + late * -1e9,
    "the_lowest_and_a_billion": lambda m, pad, late, given: torch.maximum(
        pad * LOW + late * -1e9, torch.tensor(LOW)
    ),
    "ten_thousand": lambda m, pad, late, given: pad * -1e4,
    "fp16s_own_lowest": lambda m, pad, late, given: pad * -65504.0,
    "fp16s_own_lowest_twice": lambda m, pad, late, given: pad * -65504.0 + late * -65504.0,
}


class Forms(nn.Module):
    """Each form written out; some also beside a mask that removes keys, or as calls of PyTorch's
    attention."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        super().__init__()
        self.forms = forms
        self.projections = nn.ModuleDict({name: nn.Linear(WIDTH, 3 * WIDTH) for name in forms})
        self.table = nn.Parameter(torch.randn(HEADS, 24, 24))
        self.register_buffer("first_head", (torch.arange(HEADS)[:, None, None] == 0).float())

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, given: Tensor) -> dict[str, Tensor]:
        pad = (1 - mask)[:, None, None].to(x.dtype)
        late = (torch.arange(y.shape[1]) > torch.arange(x.shape[1])[:, None]).to(x.dtype)
        outputs = {}
        for name, form in self.forms.items():
            (wq, wk, wv), (bq, bk, bv) = (
                t.chunk(3) for t in (self.projections[name].weight, self.projections[name].bias)
            )
            projected = ((x, wq, bq), (y, wk, bk), (y, wv, bv))
            q, k, v = (
                F.linear(*args).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for args in projected
            )
            scores, bias = q @ k.mT / 4, form(self, pad, late, given)
            outputs[name] = ((scores + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
            if name in ("multiplied", "by_head", "from_outside", "a_billion_twice"):
                removed = (scores + bias).masked_fill(late > 0, -torch.inf)
                outputs[f"{name}_beside_removed"] = (
                    (removed.softmax(-1) @ v).transpose(1, 2).flatten(2)
                )
            if name in ("selected", "padded_plus_late"):
                called = F.scaled_dot_product_attention(
                    q, k, v, bias.expand(x.shape[0], -1, x.shape[1], -1)
                )
                outputs[f"{name}_called"] = called.transpose(1, 2).flatten(2)
        return outputs


def spec_of(forms: Mapping[str, Form], context: tuple[str, ...] = ()) -> ModelSpec:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {
        "x": torch.randn(2, 3, WIDTH),
        "y": torch.randn(2, 5, WIDTH),
        "mask": mask,
        "given": (1 - mask)[:, None, None] * LOW,
    }
    axes = {
        "x": {0: "batch:1:8", 1: "rows:1:16"},
        "y": {0: "batch", 1: "keys:1:16"},
        "mask": {0: "batch", 1: "keys"},
        "given": {0: "batch", 3: "keys"},
    }
    return ModelSpec(Forms(forms).eval(), inputs, axes, context=context)


def points() -> Iterator[dict[str, Tensor]]:
    """Padding on either side, with holes, over whole samples; other sizes than the example's."""
    for seed, (rows, mask) in enumerate(
        [
            (6, [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
            (4, [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
            (1, [[1, 1, 0], [0, 0, 0]]),
            (5, [[0, 0, 0, 0, 0, 0, 0, 0]]),
        ]
    ):
        made = torch.Generator().manual_seed(seed)
        shown = torch.tensor(mask)
        batch, keys = shown.shape
        yield {
            "x": 3 * torch.randn(batch, rows, WIDTH, generator=made),
            "y": torch.randn(batch, keys, WIDTH, generator=made),
            "mask": shown,
            "given": (1 - shown)[:, None, None] * LOW,
        }


def truth_of(spec: ModelSpec, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = spec.module.double()(
            **{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        )
        spec.module.float()
    return {name: value.numpy() for name, value in found.items()}


def wrong(
    got: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], precision: str, where: object
) -> list[str]:
    errors = {name: float(np.abs(got[name] - value).max()) for name, value in truth.items()}
    return [
        f"{name} {where}: {error:.2g}"
        for name, error in errors.items()
        if not error <= ALLOWED[precision]
    ]


@pytest.fixture(scope="module")
def fused() -> FusedGraph:
    return fuse(spec_of(FORMS))


@pytest.mark.parametrize("target", LOWERED)
@pytest.mark.parametrize("precision", HALVES)
def test_hidden_rows_are_as_in_float64(fused: FusedGraph, target: str, precision: str) -> None:
    model = cpu_equivalent(cast_graph(fused.model, precision).model, TARGETS[target])
    names = [value.name for value in model.graph.outputs]
    found = []
    with opened(model) as run:
        for i, inputs in enumerate(points()):
            got = dict(zip(names, run({n: v.numpy() for n, v in inputs.items()}), strict=True))
            found += wrong(got, truth_of(fused.spec, inputs), precision, f"at point {i}")
    assert not found, "\n".join(found)


HANDED = {
    name: FORMS[name]
    for name in ("padded_or_late", "from_outside_and_late", "beside_positions", "a_billion")
}


@pytest.fixture(scope="module")
def by_context() -> FusedGraph:
    return fuse(spec_of(HANDED, context=("y", "mask", "given")))


@pytest.mark.parametrize("target", LOWERED)
@pytest.mark.parametrize("precision", HALVES)
def test_a_context_hands_over_its_biases_unclamped(
    precision: str, target: str, by_context: FusedGraph
) -> None:
    """The context stage makes the biases of the context's masks, and several queries share one."""
    spec = by_context.spec
    graphs = assemble(by_context.model, spec.context, spec.dims, spec.example_sizes).graphs
    halves = half_stages(graphs, precision, half_handover=True).graphs
    assert {v.name for v in halves["context"].graph.outputs if v.dtype == ir.DataType.FLOAT}, (
        "biases are handed over in fp32"
    )
    stages = cpu_equivalents(halves, TARGETS[target])
    found = []
    with opened(stages["context"]) as encode, opened(stages["query"]) as query:
        for i, inputs in enumerate(points()):
            given = {name: value.numpy() for name, value in inputs.items()}
            kept = encode({name: given[name] for name in spec.context})
            known = given | dict(zip(_names(stages["context"].graph.outputs), kept, strict=True))
            fan_out = 3
            x = known["x"] = np.concatenate(
                [given["x"] + step for step in range(fan_out)], 1
            ).reshape(-1, *given["x"].shape[1:])
            got = query({name: known[name] for name in _names(stages["query"].graph.inputs)})
            repeated = {n: v.repeat_interleave(fan_out, 0) for n, v in inputs.items()} | {
                "x": torch.from_numpy(x)
            }
            named = dict(zip(_names(stages["query"].graph.outputs), got, strict=True))
            found += wrong(named, truth_of(spec, repeated), precision, f"at point {i}")
    assert not found, "\n".join(found)


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [value.name or "" for value in values]


GRID = [
    Case(bias=True),
    Case(bias=True, mask_heads=True, heads=4, kv_heads=2),
    Case(bias=True, mask=True, lengths=True, mask_batch="q"),
    Case(bias=True, mask_rows=False, mask_batch="k", causal="lower_right"),
    Case(bias=True, mask_rows=False, mask_batch="k", fan_out=2),
    Case(bias=True, mask_batch="q", mask_heads=True, fan_out=2, causal="upper_left"),
    Case(
        bias=True,
        mask=True,
        lengths=True,
        mask_batch="k",
        fan_out=3,
        causal="lower_right",
        length=3,
    ),
    Case(bias=True, mask_batch="q", mask_heads=True, fan_out=2, lengths=True, known_shapes=False),
]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("case", GRID, ids=[str(i) for i in range(len(GRID))])
def test_rows_are_those_of_the_keys_that_are_attended(case: Case, kept: bool) -> None:
    """Rows with −3·10³⁸ in all places, in all that a mask leaves, and in some; beside −10⁹ and
    −inf; attentions in fp32, too."""
    case = replace(case, size=16, value_size=16)
    inputs = case.inputs()
    inputs = {
        n: a.astype(np.float16).astype(np.float32) if a.dtype == np.float32 else a
        for n, a in inputs.items()
    }
    inputs["query"] *= 4
    bias = inputs["bias"]
    rng = np.random.default_rng(1)
    bias[rng.random(bias.shape) < 0.3] = LOW
    bias[..., -1:, :] = np.where(rng.random(bias[..., -1:, :].shape) < 0.5, LOW, -1e9)
    bias[:, :1, bias.shape[2] // 2] = LOW
    if bias.shape[2] > 3:
        bias[..., 3, :] = -np.inf
    truth = attention_reference(**inputs, **case.attributes)
    for precision in HALVES:
        cast = cast_graph(case.model(), precision, keep={"site": "asked"} if kept else {}).model
        for target in LOWERED:
            (got,) = run_once(cpu_equivalent(cast, TARGETS[target]), inputs)
            np.testing.assert_allclose(
                got, truth, atol=ALLOWED[precision], err_msg=f"{target} {precision}"
            )


def test_other_biases_cost_nothing() -> None:
    """A table of positions, and what a product gives, can't be beyond the range: the cast adds
    casts alone."""
    for from_product in (False, True):
        model = Case(bias=True, mask_rows=False, mask=True).model()
        (site,) = list(model.graph)
        bias = site.inputs[4]
        assert bias is not None
        table = ir.Value(name="table", type=bias.type, shape=ir.Shape([1, 1, 1, 1]))
        table.const_value = ir.tensor(np.full((1, 1, 1, 1), -1e4, np.float32), name="table")
        model.graph.register_initializer(table)
        node = ir.node("MatMul" if from_product else "Sub", [bias, table], name="made")
        made = node.outputs[0]
        made.type, made.shape = bias.type, bias.shape
        model.graph.insert_before(site, node)
        site.replace_input_with(4, made)
        cast = cast_graph(model, "fp16", bounded=("bias",))
        assert {n.op_type for n in cast.model.graph} == {node.op_type, "FusedAttention", "Cast"}
        assert not cast.kept
        assert bool(cast_graph(model, "fp16").kept) != from_product  # an input may hold any number


def masked(hidden: float) -> ir.Model:
    """One attention whose bias is this number where ``late`` holds, and an input's beside it."""
    return parse(
        "(float[2, 3, 4] x, float[2, 5, 4] y, bool[2, 1, 1, 5] late, float[2, 1, 1, 5] given)"
        "=> (float[2, 3, 4] out, float[2, 1, 1, 5] both) {"
        " bias = Where(late, hidden, zero) both = Add(bias, given)"
        " out = crossfuse.FusedAttention<num_heads = 2, kv_num_heads = 2, scale = 1.0>"
        " (x, y, y, , bias) }",
        hidden=np.float32(hidden),
        zero=np.float32(0),
    )


@pytest.mark.parametrize(("hidden", "wide"), [(LOW, True), (-1e9, True), (-1e4, False)])
def test_what_holds_numbers_beyond_the_range(hidden: float, wide: bool) -> None:
    model = masked(hidden)
    assert bias_inputs(model.graph) == set()
    assert wide_outputs(model.graph, {"out", "both"}) == {"both"}
    before = len(list(model.graph))
    islands = narrow_biases(model.graph)
    assert {node.op_type for node in islands.own} == ({"Where"} if wide else set())
    assert (len(list(model.graph)) > before) == bool(islands.emitted) == wide


def test_an_input_may_hold_any_number_unless_it_is_said_to_be_bounded() -> None:
    def given() -> ir.Model:
        return parse(
            "(float[2, 3, 4] x, float[2, 5, 4] y, float[2, 1, 1, 5] given) => (float[2, 3, 4] out)"
            "{ out = crossfuse.FusedAttention<num_heads = 2, kv_num_heads = 2, scale = 1.0>"
            " (x, y, y, , given) }"
        )

    assert bias_inputs(given().graph) == {"given"}
    assert narrow_biases(given().graph).emitted
    assert not narrow_biases(given().graph, bounded={"given"}).emitted


def test_what_reaches_a_bias_is_found() -> None:
    """An input of the caller's may hold anything; half the range of a constant is within it."""
    assert bias_inputs(Case(bias=True, mask=True).model().graph) == {"bias"}
    assert bias_inputs(Case(mask=True).model().graph) == set()
    model = ir.from_onnx_text(
        """
        <ir_version: 9, opset_import: ["" : 20]>
        graph (float[3] x) => (float[3] small, float[3] large, float[3] bounded)
        <float[1] tenth = {0.1}, float[1] least = {-3.4e38}>
        {
           small = Tanh (x)
           large = Mul (x, least)
           bounded = Mul (small, tenth)
        }
        """
    )
    assert wide_outputs(model.graph, ["small", "large", "bounded"]) == {"large"}
    assert wide_outputs(model.graph, ["small"]) == set()


def test_a_bias_that_is_bounded_stays_as_it_is() -> None:
    graph = Case(bias=True).model().graph
    before = len(graph)
    islands = narrow_biases(graph, bounded=["bias"])
    assert (len(graph), islands.own, islands.emitted) == (before, {}, frozenset())
    assert narrow_biases(graph).emitted
    assert len(graph) > before
