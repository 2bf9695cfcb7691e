"""All five systems: exact fusion counts per kind and target, parity at several shapes, and no
weight stored twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import crossfuse
from conftest import TARGETS
from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from crossfuse.models.registry import zoo_spec

TINY = {
    "cross_modal_attention": {"cross": 1},
    "clip": {"self": 4},
    "vilt": {"self": 2},
    "qformer": {"self": 4, "cross": 2},
    "dalle": {"self": 5, "cross": 3},
}
PUBLISHED = {
    "cross_modal_attention": {"cross": 1},
    "clip": {"self": 24},
    "vilt": {"self": 12},
    "qformer": {"self": 12, "cross": 6},
    "dalle": {"self": 13, "cross": 7},
}
KERNELS = {
    "onnx": {"crossfuse.FusedAttention"},
    "ort-cpu": {"MultiHeadAttention", "Attention"},
    "ort-cuda": {"Attention (efficient)"},
}


def check_bundle(bundle: Bundle, counts: dict[str, int]) -> None:
    assert bundle.ledger.counts() == counts
    for target in TARGETS:
        assert bundle.ledger.counts(target) == counts
        assert {row.fused[target] for row in bundle.ledger} <= KERNELS[target]
        check_graph(bundle, target)
        parity = bundle.manifest.targets[target].parity
        assert parity is not None
        assert parity["passed"]
        assert parity["reference_dtype"] == "float64"
        points = parity["points"]
        assert len(points) >= 4
        for name in bundle.manifest.dims:
            assert min(p[name] for p in points) == 1
            assert len({p[name] for p in points}) >= 3
    assert len({row.site for row in bundle.ledger}) == len(bundle.ledger)


def check_graph(bundle: Bundle, target: str) -> None:
    """The file itself holds one fused node per site, named after it, and no softmax outside
    function bodies."""
    (name,) = bundle.target(target).stages.values()
    graph = onnx.load(bundle.path / name, load_external_data=False).graph
    kernels = {"FusedAttention", "MultiHeadAttention", "Attention"}
    found = {node.name: node.op_type for node in graph.node if node.op_type in kernels}
    expected = {
        row.site: (row.fused[target] or "").removeprefix("crossfuse.").split(" ")[0]
        for row in bundle.ledger
    }
    assert found == expected
    assert "Softmax" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("name", list(TINY))
def test_tiny(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    check_bundle(zoo_bundle(name), TINY[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published(tmp_path: Path, name: str) -> None:
    check_bundle(
        crossfuse.export(name, tmp_path / name, TARGETS, size="published", whole=True),
        PUBLISHED[name],
    )


@pytest.mark.parametrize("name", list(TINY))
def test_session_equals_eager_on_new_inputs(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    """Another seed and other sizes than any that the export used; every output, by name and
    dtype."""
    spec = zoo_spec(name, "tiny")
    sizes = {dim: min(n + 3, spec.dims[dim].max or n + 3) for dim, n in spec.example_sizes.items()}
    inputs = spec.sample(sizes, seed=99)
    with torch.no_grad():
        expected = spec.outputs_of(spec.call(inputs))
    for target in ("onnx", "ort-cpu"):
        with runtime.load(zoo_bundle(name).path, target) as session:
            got = session.run(**{k: v.numpy() for k, v in inputs.items()})
            assert [s.name for s in session.outputs] == list(expected)
        for key, tensor in expected.items():
            assert got[key].dtype == tensor.numpy().dtype
            np.testing.assert_allclose(got[key], tensor.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", list(TINY))
def test_weights_are_stored_once(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    bundle = zoo_bundle(name)
    parameters = {
        p.data_ptr(): p.numel() * p.element_size()
        for p in zoo_spec(name, "tiny").module.parameters()
    }
    assert (bundle.path / "weights.bin").stat().st_size <= 1.05 * sum(parameters.values()) + 4096
    for target in TARGETS:
        assert "weights.bin" in bundle.target(target).files
        extra = bundle.path / f"weights.{target}.bin"
        assert not extra.exists() or extra.stat().st_size < 4096


def test_ledger_rows_say_where_tokens_come_from(zoo_bundle: Callable[[str], Bundle]) -> None:
    rows = {row.site: row for row in zoo_bundle("qformer").ledger}
    cross = rows["layers.0.cross_attention.attention"]
    assert (cross.kind, cross.captured, cross.num_heads, cross.head_size) == (
        "cross",
        "operator",
        4,
        8,
    )
    assert cross.key_inputs == ("image_features",)
    assert set(cross.query_inputs) == {"input_ids", "attention_mask"}
    kinds = Counter(row.kind for row in zoo_bundle("dalle").ledger if "cross_attention" in row.site)
    assert kinds == {"cross": 3}


def test_engine_executes_the_named_sites(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """ONNX Runtime's own graph, after its optimisations, still holds one fused operator per
    site."""
    import onnxruntime as ort

    target = "ort-cpu"
    bundle = zoo_bundle("qformer")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    (name,) = bundle.target(target).stages.values()
    ort.InferenceSession(str(bundle.path / name), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert {row.site for row in bundle.ledger} <= {node.name for node in optimized.node}


def test_portable_graph_passes_the_checker_and_runs_on_the_reference_implementation(
    zoo_bundle: Callable[[str], Bundle],
) -> None:
    """Not only ONNX Runtime: ``onnx``'s own evaluator executes the function bodies too."""
    from onnx.reference import ReferenceEvaluator

    bundle = zoo_bundle("cross_modal_attention")
    path = bundle.path / "model.onnx"
    onnx.checker.check_model(str(path))
    spec = zoo_spec("cross_modal_attention", "tiny")
    inputs = {k: v.numpy() for k, v in spec.sample(spec.example_sizes, 5).items()}
    with runtime.load(bundle.path, "onnx") as session:
        expected = session.run(**inputs)
    got = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
    np.testing.assert_allclose(got[0], expected["fused"], atol=1e-5)


def test_fusions_around_attention(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    """Pre-norm residuals and their norms are one operator in the CUDA graph; GELUs and biases one
    after ONNX Runtime's turn."""
    import onnxruntime as ort

    clip = onnx.load(
        zoo_bundle("clip").path / "model.ort-cuda.onnx", load_external_data=False
    ).graph
    assert sum(node.op_type == "SkipLayerNormalization" for node in clip.node) >= 6
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    path = zoo_bundle("qformer").path / "model.ort-cpu.onnx"
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ops = Counter(
        n.op_type
        for n in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    )
    assert ops["BiasGelu"] == 8
    assert ops["SkipLayerNormalization"] == 14
