"""Forms for the CUDA provider: their numbers on the CPU against the float64 reference, and what
they are made of.

`tests/gpu_rehearsal` shows that the provider takes them; `tests/unit/targets/test_lowering.py` has
the whole grid in the form of fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import crossfuse
from crossfuse.bundle.store import Bundle
from crossfuse.core.missing_kernels import CUDA_WITHOUT_BF16
from crossfuse.core.target import TARGETS
from crossfuse.export.split.assembly import Stages, assemble
from crossfuse.graph.attention_node import AttentionNode, attention_nodes
from crossfuse.ops.reference import attention_reference
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.cuda.lowering import lower_ort_cuda, needs_padded_keys
from crossfuse.targets.cuda.operators import replace_operators
from crossfuse.targets.cuda.padding import pad_contexts
from crossfuse.targets.fan_out import Site
from crossfuse.targets.graph_files import load_graph
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.wide_biases import narrow_biases
from crossfuse.targets.registry import cpu_equivalents, lower_stages
from graphs_for_tests import Case, run_model

SHAPES = [
    dict(contexts=1, length=1, keys=7, size=8, value_size=8),
    dict(contexts=2, length=5, keys=8, size=44, value_size=44),
    dict(contexts=2, length=6, keys=6, value_size=6),
    dict(contexts=2, fan_out=3, length=1, keys=9, heads=4),
    dict(contexts=2, fan_out=2, length=5, keys=7, heads=4, kv_heads=2, value_size=6),
    dict(contexts=2, length=3, keys=5, heads=4, kv_heads=2, size=12, value_size=3),
    dict(contexts=3, length=5, keys=1, heads=4, kv_heads=1),
]
USES = [
    dict(),
    dict(mask=True, mask_batch="q", mask_heads=True),
    dict(mask=True, mask_batch="k", mask_rows=False),
    dict(bias=True, mask_batch="k"),
    dict(lengths=True),
    dict(mask=True, bias=True, lengths=True),
]


@pytest.mark.parametrize("causal", ["none", "upper_left", "lower_right"])
@pytest.mark.parametrize(
    "use", USES, ids=lambda u: "+".join(k for k in u if "_" not in k) or "plain"
)
def test_half_precision_forms(causal: str, use: dict[str, bool]) -> None:
    """The forms of fp16 and bf16 (grouped heads, one head size), computed in fp32."""
    for shape, known in itertools.product(SHAPES, (True, False)):
        case = Case(**shape, **use, causal=causal, known_shapes=known)
        inputs = case.inputs()
        expected = attention_reference(**inputs, **case.attributes)
        (got,) = run_model(lower_ort_cuda(case.model(), half={"site"}).model, inputs)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=3e-6, err_msg=str(case))


@pytest.mark.parametrize(
    "use", USES, ids=lambda u: "+".join(k for k in u if "_" not in k) or "plain"
)
def test_graphs_in_fp16(use: dict[str, bool]) -> None:
    """The very graph in fp16, on the CPU provider, which has these operators in fp16 too."""
    case = Case(**SHAPES[4], **use)
    inputs = case.inputs()
    expected = attention_reference(**inputs, **case.attributes)
    (got,) = run_model(lower_ort_cuda(cast_graph(case.model(), "fp16").model).model, inputs)
    np.testing.assert_allclose(got, expected, atol=2e-2)


@pytest.mark.parametrize("use", [USES[0], USES[1], USES[3]], ids=["plain", "mask", "bias"])
def test_padding_without_pad(use: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in bf16, which the CPU can't execute."""
    monkeypatch.setattr("crossfuse.targets.fan_out.WITHOUT_PAD", {"float32"})
    for shape, known in itertools.product(SHAPES, (True, False)):
        case = Case(**shape, **use, known_shapes=known)
        inputs = case.inputs()
        model = lower_ort_cuda(case.model(), half={"site"}).model
        assert "Pad" not in operators(model)
        (got,) = run_model(model, inputs)
        np.testing.assert_allclose(
            got, attention_reference(**inputs, **case.attributes), atol=3e-6, err_msg=str(case)
        )


def test_lengths_beyond_the_keys_mean_all_of_them() -> None:
    case = Case(size=8, value_size=8, lengths=True)
    inputs = case.inputs()
    model = lower_ort_cuda(case.model()).model
    for lengths in ([0, 7], [-1, 100], [1, 8]):
        given = inputs | {"key_lengths": np.array(lengths)}
        (got,) = run_model(model, given)
        np.testing.assert_allclose(got, attention_reference(**given, **case.attributes), atol=3e-6)


@pytest.mark.parametrize("fill", [-np.inf, float(np.finfo(np.float32).min), -1e30, -1e29, -64.0])
def test_rows_of_lowest_biases(fill: float) -> None:
    """A finite bias is arithmetic: a row of it averages the values, whatever else is removed from
    it; rows of −inf give 0."""
    case = Case(size=8, value_size=8, mask=True, bias=True, keys=5)
    inputs = case.inputs()
    inputs["bias"][:, :, 1] = fill
    inputs["mask"][:, :, 1] = [True, True, False, True, True]
    expected = attention_reference(**inputs, **case.attributes)
    (got,) = run_model(lower_ort_cuda(case.model()).model, inputs)
    np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize("fill", [float(np.finfo(np.float32).min), -1e30, -3e31])
def test_finite_biases_are_no_sign_of_a_removed_key(fill: float) -> None:
    """The provider sets rows of -1e30 and less to 0."""
    case = Case(size=8, value_size=8, bias=True, keys=5)
    inputs = case.inputs()
    inputs["bias"][:, :, 1] = fill
    model = lower_ort_cuda(case.model()).model
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    mask = attention.inputs[3]
    assert mask is not None
    model.graph.outputs[:] = [mask]
    mask.type = ir.TensorType(ir.DataType.FLOAT)
    (given,) = run_model(model, inputs)
    assert (given[:, :, 1, :5] > -1e30).all()


def with_maxima_of_the_provider(model: ir.Model) -> ir.Model:
    """Its ``ReduceMax`` gives the lowest finite number for rows of −inf."""
    lowest = ir.tensor(np.array(np.finfo(np.float32).min, np.float32), name="lowest")
    constant = ir.node("Constant", [], attributes={"value": lowest})
    constant.outputs[0].name = "lowest"
    reductions = [node for node in model.graph if node.op_type == "ReduceMax"]
    model.graph.insert_before(next(iter(model.graph)), constant)
    for i, node in enumerate(reductions):
        found = ir.node("Max", [node.outputs[0], constant.outputs[0]])
        found.outputs[0].name = f"maximum_{i}"
        for user, index in list(node.outputs[0].uses()):
            if user is not found:
                user.replace_input_with(index, found.outputs[0])
        model.graph.insert_after(node, found)
    return model


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("use", [USES[3], USES[5]], ids=["bias", "mask+bias+lengths"])
def test_rows_without_keys_where_maxima_are_never_infinite(
    use: dict[str, bool], precision: str
) -> None:
    """What half precision does to biases, too, computed in fp32."""
    for shape in SHAPES[:4]:
        case = Case(**shape, **use)
        inputs = case.inputs()
        model = case.model()
        if precision != "fp32":
            narrow_biases(model.graph)
        lowered = lower_ort_cuda(model, half={"site"} if precision != "fp32" else None).model
        (got,) = run_model(with_maxima_of_the_provider(lowered), inputs)
        expected = attention_reference(**inputs, **case.attributes)
        np.testing.assert_allclose(got, expected, atol=3e-6, err_msg=str(case))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_without_masks_one_node_is_enough() -> None:
    for case in (Case(size=64, value_size=64), Case(size=64, value_size=64, heads=4)):
        lowered = lower_ort_cuda(case.model(), half={"site"})
        assert operators(lowered.model) == ["Attention"]
        assert lowered.kernels == {"site": "Attention (flash)"}
    causal = lower_ort_cuda(Case(size=64, value_size=64, causal="upper_left").model())
    assert operators(causal.model) == ["Attention"]


def test_keys_are_padded_only_where_a_mask_needs_it() -> None:
    def joined(keys: int | str, **use: bool) -> int:
        model = Case(size=8, value_size=8, **use).model()
        for value in model.graph.inputs:
            assert value.shape is not None
            value.shape = ir.Shape([keys if d == "S" else d for d in value.shape])
        lowered = lower_ort_cuda(model).model
        (node,) = [n for n in lowered.graph if n.op_type == "Attention"]
        return sum(v is not None and v.producer() is not None for v in node.inputs[1:3])

    assert joined("S", mask=True) == joined(257, mask=True) == joined(257, bias=True) == 2
    assert joined(256, mask=True) == joined("S") == joined(257) == joined("S", lengths=True) == 0


def test_a_head_size_that_is_not_known_is_unfused() -> None:
    model = Case().model()
    query = model.graph.inputs[0]
    query.shape = ir.Shape(["B", "L", "W"])
    lowered = lower_ort_cuda(model)
    assert lowered.kernels == {}
    assert "not known" in lowered.reasons["site"]


def stages_of(bundle: Bundle) -> Stages:
    manifest = bundle.manifest
    model = load_graph(bundle, manifest.fused_graph)
    return assemble(model, manifest.context, manifest.dims, manifest.example)


def test_contexts_hand_over_padded_keys(zoo_bundle: Callable[[str], Bundle]) -> None:
    """Nothing of the context's length is copied with the queries; the stages fit each other at
    every length."""
    stages = stages_of(zoo_bundle("cross_modal_attention"))
    lowered = {
        stage: low.model for stage, low in lower_stages(stages.graphs, TARGETS["ort-cuda"]).items()
    }
    (attention,) = [n for n in lowered["query"].graph if n.op_type == "Attention"]
    assert all(v is not None and v.is_graph_input() for v in attention.inputs[1:3])
    whole = {value.name: value for value in stages.graphs["query"].graph.inputs}
    names = [v.name for v in stages.graphs["context"].graph.outputs]
    rng = np.random.default_rng(0)
    portable = {
        stage: low.model for stage, low in lower_stages(stages.graphs, TARGETS["ort-cpu"]).items()
    }
    for keys in (1, 7, 8, 9, 13):
        sizes = {"batch": 2, "contexts": 2}

        def fed(
            graph: ir.Graph, keys: int = keys, sizes: dict[str, int] = sizes
        ) -> dict[str, np.ndarray]:
            made = {}
            for value in graph.inputs:
                assert value.shape is not None
                shape = [
                    d if isinstance(d, int) else sizes.get(str(d.value), keys) for d in value.shape
                ]
                kind = value.dtype.numpy() if value.dtype is not None else np.float32
                made[value.name or ""] = (
                    rng.standard_normal(shape) + (0.5 if kind != np.float32 else 0)
                ).astype(kind)
            return made

        given = fed(stages.graphs["context"].graph)
        questions = {
            n: a
            for n, a in fed(stages.graphs["query"].graph).items()
            if n not in names and n in whole
        }
        results = []
        for graphs in (portable, lowered):
            handed = dict(zip(names, run_once(graphs["context"].clone(), given), strict=True))
            if graphs is lowered:
                assert {
                    handed[v.name or ""].shape[1] for v in attention.inputs[1:3] if v is not None
                } == {-(-keys // 8) * 8}
            results.append(run_once(graphs["query"].clone(), questions | handed))
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def two_stages(
    *, extra_use: bool = False, mask: bool = True, value_from_query: bool = False
) -> dict[str, ir.Model]:
    """A context stage that hands over what it is given, and a query stage with one attention over
    it."""
    query = Case(size=8, value_size=8, mask=mask).model()
    graph = query.graph
    if extra_use:
        key = next(v for v in graph.inputs if v.name == "key")
        again = ir.node("Neg", [key])
        again.outputs[0].name, again.outputs[0].type, again.outputs[0].shape = (
            "again",
            key.type,
            key.shape,
        )
        graph.append(again)
        graph.outputs.append(again.outputs[0])
    given = ["key"] if value_from_query else ["key", "value"]
    nodes = []
    inputs = []
    for name in given:
        source = ir.Value(
            name=f"{name}.in", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", 16])
        )
        inputs.append(source)
        node = ir.node("Neg", [source])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
            name,
            source.type,
            source.shape,
        )
        nodes.append(node)
    outputs = [n.outputs[0] for n in nodes]
    context = ir.Model(
        ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 20}, name="c"), ir_version=10
    )
    return {"context": context, "query": query}


def test_what_is_not_padded_in_the_context_stage() -> None:
    assert pad_contexts(two_stages())[1].padded == {"key", "value"}
    assert pad_contexts(two_stages(extra_use=True))[1].padded == set()
    assert pad_contexts(two_stages(mask=False))[1].padded == set()
    assert pad_contexts(two_stages(value_from_query=True))[1].padded == set()
    before = two_stages()
    pad_contexts(before)
    assert operators(before["context"]) == ["Neg", "Neg"]
    (node,) = attention_nodes(before["query"].graph)
    assert needs_padded_keys(Site.of(AttentionNode(node)))


def test_cpu_equivalent_has_the_forms_of_half_precision() -> None:
    """What the CPU checks for an fp16 target has grouped heads as that target has them, not as fp32
    would."""
    graph = cast_graph(Case(heads=4, size=8, value_size=8).model(), "fp16").model
    equivalent = cpu_equivalents({"model": graph}, TARGETS["ort-cuda"])["model"]
    (node,) = [n for n in equivalent.graph if n.op_type == "Attention"]
    assert node.attributes["kv_num_heads"].as_int() == 2


class Padded(torch.nn.Module):
    """Attention over a memory of which each sample has a length; ``spelling`` says how the mask is
    made."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.query, self.key, self.value = (torch.nn.Linear(16, 16) for _ in range(3))

    def forward(
        self, tokens: torch.Tensor, memory: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        at = torch.arange(memory.shape[1])
        mask = {
            "less": lambda: at[None, :] < lengths[:, None],
            "greater": lambda: lengths.unsqueeze(-1) > at.unsqueeze(0),
            "at most": lambda: at[None, None, :] <= lengths[:, None, None] - 1,
            "not": lambda: ~(at >= lengths[:, None]),
            "suffix": lambda: at[None, :] >= memory.shape[1] - lengths[:, None],
            "steps": lambda: 2 * at[None, :] < lengths[:, None],
            "one for all": lambda: (at < lengths.max())[None, :].expand(lengths.shape[0], -1),
        }[self.spelling]()
        mask = mask.reshape(memory.shape[0], 1, 1, memory.shape[1])
        q, k, v = (
            layer(x).unflatten(-1, (2, 8)).transpose(1, 2)
            for layer, x in ((self.query, tokens), (self.key, memory), (self.value, memory))
        )
        return (
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            .transpose(1, 2)
            .flatten(-2)
        )


@pytest.mark.parametrize(
    ("spelling", "context", "inputs"),
    [
        ("less", False, 7),
        ("greater", True, 7),
        pytest.param("at most", False, 7, marks=pytest.mark.slow),
        pytest.param("not", True, 7, marks=pytest.mark.slow),
        ("suffix", False, 4),
        pytest.param("steps", False, 4, marks=pytest.mark.slow),
        pytest.param("one for all", True, 4, marks=pytest.mark.slow),
    ],
)
def test_masks_made_from_lengths_are_lengths_again(
    tmp_path: Path, spelling: str, context: bool, inputs: int
) -> None:
    """Where the graph proves it, in one stage or across two; parity is checked by the export."""
    torch.manual_seed(0)
    spec = crossfuse.ModelSpec(
        Padded(spelling).eval(),
        inputs={
            "tokens": torch.randn(2, 3, 16),
            "memory": torch.randn(2, 7, 16),
            "lengths": torch.tensor([7, 2]),
        },
        dynamic={
            "tokens": {0: "batch:1:4", 1: "text:1:9"},
            "memory": {0: "batch", 1: "image:1:9"},
            "lengths": {0: "batch"},
        },
        context=("memory", "lengths") if context else (),
    )
    bundle = crossfuse.export(spec, tmp_path / "b", ["ort-cuda"])
    graph = onnx.load(
        bundle.path / list(bundle.target("ort-cuda").stages.values())[-1], load_external_data=False
    ).graph
    (node,) = [n for n in graph.node if n.op_type == "Attention"]
    assert len(node.input) == inputs


def single(op: str, inputs: dict[str, np.ndarray], **attributes: object) -> ir.Model:
    values = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        for name, array in inputs.items()
    ]
    node = ir.node(op, values, attributes=attributes)
    node.outputs[0].name = "y"
    node.outputs[0].type = values[0].type
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


X = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32) * 3
CHANNELS = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("MaxPool", {"x": X}, dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
        (
            "MaxPool",
            {"x": X - 100},
            dict(kernel_shape=[2, 3], strides=[3, 1], pads=[0, 1, 1, 0], dilations=[2, 1]),
        ),
        ("MaxPool", {"x": X[:, :, 0]}, dict(kernel_shape=[4])),
        (
            "InstanceNormalization",
            {"x": X + 50, "s": CHANNELS[0], "b": CHANNELS[1]},
            dict(epsilon=1e-3),
        ),
        ("InstanceNormalization", {"x": X[:, :, 0], "s": CHANNELS[0], "b": CHANNELS[1]}, {}),
        (
            "GroupNormalization",
            {"x": np.tile(X, (1, 2, 1, 1)), "s": CHANNELS[0], "b": CHANNELS[1]},
            dict(num_groups=3),
        ),
        ("Elu", {"x": X}, dict(alpha=0.7)),
        ("Celu", {"x": X}, dict(alpha=1.7)),
        ("Selu", {"x": X}, {}),
        ("Selu", {"x": X}, dict(alpha=1.5, gamma=0.9)),
        ("ThresholdedRelu", {"x": X}, dict(alpha=0.4)),
        ("Mean", {"x": X, "z": X * 2, "u": X[:1]}, {}),
        ("Sinh", {"x": X / 3}, {}),
        ("Cosh", {"x": X / 3}, {}),
        ("Tan", {"x": X / 9}, {}),
        ("Dropout", {"x": X}, {}),
    ],
)
def test_operators_in_others(
    op: str, inputs: dict[str, np.ndarray], attributes: dict[str, object]
) -> None:
    """The same numbers as ONNX Runtime's own kernel for the operator."""
    model = single(op, inputs, **attributes)
    (expected,) = run_model(model, inputs)
    replace_operators(model)
    assert op not in operators(model)
    (got,) = run_model(model, inputs)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-5)


def test_groups_scaled_per_channel() -> None:
    """As GroupNormalization has been since opset 21."""
    scale, shift = CHANNELS
    inputs = {"x": np.tile(X, (1, 2, 1, 1)), "s": np.tile(scale, 2), "b": np.tile(shift, 2)}
    model = single("GroupNormalization", inputs, num_groups=2)
    model.graph.opset_imports[""] = 21
    groups = inputs["x"].astype(np.float64).reshape(2, 2, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(
        groups.var(-1, keepdims=True) + 1e-5
    )
    expected = (
        normal.reshape(inputs["x"].shape) * inputs["s"][:, None, None] + inputs["b"][:, None, None]
    )
    replace_operators(model)
    (got,) = run_model(model, inputs)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [dict(kernel_shape=[2, 2], ceil_mode=1), dict(kernel_shape=[2, 2], auto_pad="SAME_UPPER")],
)
def test_operators_that_stay(attributes: dict[str, object]) -> None:
    model = single("MaxPool", {"x": X}, **attributes)
    replace_operators(model)
    assert operators(model) == ["MaxPool"]


def test_islands_of_bf16_are_the_targets_own() -> None:
    model = single("Clip", {"x": X})
    held = cast_graph(model, "bf16", without_bf16=CUDA_WITHOUT_BF16)
    assert list(held.kept.values()) == ["the target has no bf16 kernel for Clip"]
    assert cast_graph(model, "bf16").kept == {}
    assert cast_graph(model, "fp16", without_bf16=CUDA_WITHOUT_BF16).kept == {}
    assert TARGETS["ort-cuda"].without_bf16 == CUDA_WITHOUT_BF16
