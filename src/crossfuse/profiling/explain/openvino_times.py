"""Where the time of a stage on OpenVINO goes: per executed node, from its own profiler.

It tells of every node its time, and nothing of shapes: so kinds, sites and modules are known, and
no work. A node bears the name of the ONNX node, or of the tensor, that it came from, which that
node's module is found by; that needs `onnx_ir`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crossfuse.profiling.explain.attribution import NodeTime, StageTimes
from crossfuse.runtime.openvino_stage import OpenVinoStage

__all__ = ["kind_of_node", "trace_openvino"]

_KINDS = (
    ("GEMM", r"fullyconnected|matmul|fc_|gemm"),
    ("convolution", r"convolution|deconvolution"),
    ("norm", r"mvn|norm"),
    ("activation", r"softmax|gelu|swish|relu|sigmoid"),
    ("element-wise", r"eltwise|subgraph|select|math"),
    ("copy", r"reorder|transpose|reshape|concat|gather|split|slice|broadcast|tile|convert|copy"),
)
"""By the node's type, the first that is found."""


def trace_openvino(
    stage: str,
    engine: OpenVinoStage,
    feeds: Mapping[str, Any],
    *,
    runs: int = 20,
    sites: Sequence[str] = (),
) -> StageTimes:
    """Run a stage under OpenVINO's profiler, compiled once more with the same settings.

    A run's seconds are the sum of its nodes'; those of one run are the mean over the middle half of
    the runs by their total.

    Args:
        stage: name for the result.
        engine: the stage.
        feeds: its inputs.
        runs: traced ones, after three that aren't.
        sites: names of the attentions.
    """
    traced = OpenVinoStage(engine.request, trace=True)
    for _ in range(3):
        traced.node_times(feeds)
    taken = [traced.node_times(feeds) for _ in range(runs)]
    taken.sort(key=lambda run: sum(seconds for *_, seconds in run))
    middle = taken[runs // 4 : runs - runs // 4]
    outputs, modules = _known(engine.request.graph, frozenset(sites))
    executed = traced.executed()
    site_of = traced.sites(outputs)
    nodes = []
    for i, (name, kind, implementation, _) in enumerate(middle[0]):
        seconds = sum(run[i][3] for run in middle) / len(middle)
        if not seconds:
            continue
        site = site_of.get(name)
        origins = executed.get(name, (name,))
        module = site or next((modules[one] for one in origins if one in modules), "")
        label = "attention" if site else kind_of_node(kind)
        nodes.append(NodeTime(name, f"{kind} {implementation}", label, module, site, seconds, 0, 0))
    traced.close()
    return StageTimes(stage, sum(node.seconds for node in nodes), tuple(nodes), runs)


def kind_of_node(node_type: str) -> str:
    """What a type of OpenVINO's nodes is, as reports name it."""
    text = node_type.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), "other")


def _known(graph: Path, sites: frozenset[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Sites → names of their results; names of ONNX nodes and tensors → paths of their modules."""
    if find_spec("onnx_ir") is None:
        return {}, {}
    import onnx_ir as ir

    from crossfuse.graph.metadata import MODULE

    outputs: dict[str, str] = {}
    modules: dict[str, str] = {}
    for node in ir.load(graph).graph:
        if node.name in sites:
            outputs[str(node.name)] = str(node.outputs[0].name)
        module = node.metadata_props.get(MODULE)
        if module:
            modules |= {str(name): module for name in (node.name, node.outputs[0].name)}
    return outputs, modules
