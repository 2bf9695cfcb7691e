"""OpenVINO's own node times: attentions by site, modules by name, kinds by type."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.errors import InputError
from crossfuse.parity.session_check import reference_of
from crossfuse.profiling.explain.openvino_times import kind_of_node, trace_openvino
from crossfuse.profiling.explain.stages import context_inputs, stage_times
from crossfuse.runtime import SessionOptions


def test_a_stage_is_told_by_node(openvino_bundle: Path) -> None:
    bundle, one = open_bundle(openvino_bundle), SessionOptions(threads=1)
    inputs = reference_of(bundle).points[0].inputs
    said: list[str] = []
    with runtime.load(openvino_bundle, "openvino", one) as session:
        assert set(context_inputs(session, inputs)) == set(bundle.manifest.context)
        stages = list(stage_times(bundle, session, one, inputs, said.append))
        query = session.engine("query")
        with pytest.raises(InputError, match="the engine refused the inputs"):
            trace_openvino("query", query, {}, runs=4)  # type: ignore[arg-type]
    assert [stage.stage for stage in stages] == ["context", "query"]
    assert said == ["where the time goes: context", "where the time goes: query"]
    nodes = {stage.stage: stage.nodes for stage in stages}
    (attention,) = [node for node in nodes["query"] if node.kind == "attention"]
    assert attention.site == attention.module == "attention"
    assert attention.op.startswith("Subgraph jit_")
    assert not any(node.site for node in nodes["context"])
    for stage in stages:
        assert stage.seconds == pytest.approx(sum(node.seconds for node in stage.nodes))
        assert {"GEMM", "norm"} <= {node.kind for node in stage.nodes}
        assert any(node.module for node in stage.nodes if node.kind == "GEMM")


@pytest.mark.parametrize(
    ("node_type", "kind"),
    [
        ("FullyConnected", "GEMM"),
        ("MatMul", "GEMM"),
        ("Convolution", "convolution"),
        ("MVN", "norm"),
        ("RMS_Norm", "norm"),
        ("Softmax", "activation"),
        ("Eltwise", "element-wise"),
        ("Subgraph", "element-wise"),
        ("Reorder", "copy"),
        ("TopK", "other"),
    ],
)
def test_types_of_nodes_have_kinds(node_type: str, kind: str) -> None:
    assert kind_of_node(node_type) == kind
