"""What OpenVINO's own execution graph says: which node executes which attention, and in which type.

A compiled model tells its executed nodes, each with its kind (``Subgraph`` for generated code), the
implementation (``jit_avx512_bf16``) and the operators that it came from. OpenVINO's front end makes
one ``ScaledDotProductAttention`` of each ONNX ``Attention``; it is given a name here before the
model is compiled, and the node that bears that name is what it became. A node is a whole attention
where OpenVINO generated code for the products and the softmax in one, or took a kernel of its own
for it; where it left the attention in parts, the name is on the last product.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ExecutedNode", "MarkedAttentions", "executed_nodes", "mark_attentions"]

_MARK = "crossfuse.attention."
_OPERATOR = "ScaledDotProductAttention"
_BEHIND = ("Select", "Transpose", "Reshape", "Convert")
"""Operators that the front end puts behind it: rows without keys, the layout."""
_FUSED = re.compile(r"subgraph|scaled_?dot_?product_?attention|sdpa|mha", re.IGNORECASE)
_TYPES = {"f32": "fp32", "f16": "fp16"}


@dataclass(frozen=True)
class ExecutedNode:
    """One node of an execution graph.

    Attributes:
        name: of the node.
        kind: what executes it: ``Subgraph``, ``MatMul``, ``FullyConnected``, ….
        implementation: the kernel, such as ``jit_avx512_bf16``.
        origins: names of the operators that it came from.
        precision: type of what it is given, as the plugin says it (``f32``, ``u8``).
        weights: type of its second operand.
        given: names of the nodes that it takes tensors of.
    """

    name: str
    kind: str
    implementation: str
    origins: tuple[str, ...]
    precision: str = ""
    weights: str = ""
    given: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The type that it computes in, as precisions are named."""
        dtype = self.implementation.rpartition("_")[2].lower()
        return _TYPES.get(dtype, dtype)

    @property
    def whole_attention(self) -> bool:
        """Whether it would be a whole attention, if it came from one."""
        return _FUSED.search(self.kind) is not None


@dataclass(frozen=True)
class MarkedAttentions:
    """The attentions of a model that is about to be compiled.

    Attributes:
        tensors: mark → names of the tensors that hold its result.
    """

    tensors: Mapping[str, frozenset[str]]

    def kernels(
        self, nodes: Iterable[ExecutedNode], outputs: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Site → kernel, of the attentions that one node computes; and site → why not, of the
        others.

        Args:
            nodes: of the execution graph.
            outputs: site → name of its result.
        """
        by_mark: dict[str, list[ExecutedNode]] = {mark: [] for mark in self.tensors}
        for node in nodes:
            for mark in by_mark.keys() & set(node.origins):
                by_mark[mark].append(node)
        kernels: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for site, tensor in outputs.items():
            found = [mark for mark, names in self.tensors.items() if tensor in names]
            executed = [node for mark in found for node in by_mark[mark]]
            whole = next((node for node in executed if node.whole_attention), None)
            if whole is not None:
                kernels[site] = f"{whole.kind} ({whole.dtype})"
            elif found:
                parts = ", ".join(f"{node.kind} ({node.dtype})" for node in executed)
                last = f", the last of them by {parts}" if parts else ""
                reasons[site] = f"OpenVINO computes it in parts on this machine{last}"
            else:
                reasons[site] = "OpenVINO's front end makes no attention of the operator"
        return kernels, reasons

    def sites(self, nodes: Iterable[ExecutedNode], outputs: Mapping[str, str]) -> dict[str, str]:
        """Name of a node that is a whole attention → the attention's site; arguments as of
        `kernels`."""
        by_mark = {
            mark: site
            for site, tensor in outputs.items()
            for mark, names in self.tensors.items()
            if tensor in names
        }
        return {
            node.name: by_mark[mark]
            for node in nodes
            for mark in by_mark.keys() & set(node.origins)
            if node.whole_attention
        }


def mark_attentions(model: Any) -> MarkedAttentions:
    """Name the attentions of an ``openvino.Model``, in place."""
    found: dict[str, frozenset[str]] = {}
    for operator in model.get_ops():
        if operator.get_type_name() == _OPERATOR:
            mark = f"{_MARK}{len(found)}"
            operator.set_friendly_name(mark)
            found[mark] = frozenset(_results(operator.output(0)))
    return MarkedAttentions(found)


def _results(value: Any) -> set[str]:
    """Names of a value, and of those that the front end's own operators make of it."""
    names: set[str] = set()
    while value is not None:
        names |= set(value.get_names())
        users = [user.get_node() for user in value.get_target_inputs()]
        behind = [node for node in users if node.get_type_name() in _BEHIND]
        value = behind[0].output(0) if len(behind) == 1 else None
    return names


def executed_nodes(runtime_model: Any) -> list[ExecutedNode]:
    """The nodes of a compiled model's execution graph (``get_runtime_model()``)."""
    nodes = []
    for node in runtime_model.get_ops():
        about = node.get_rt_info()
        origins = _text(about, "originalLayersNames").split(",")
        given = [port.get_source_output().get_node() for port in node.inputs()]
        nodes.append(
            ExecutedNode(
                node.get_friendly_name(),
                _text(about, "layerType"),
                _text(about, "primitiveType"),
                tuple(name for name in origins if name),
                _text(about, "runtimePrecision"),
                _text(given[1].get_rt_info(), "outputPrecisions") if len(given) > 1 else "",
                tuple(one.get_friendly_name() for one in given),
            )
        )
    return nodes


def _text(about: Any, key: str) -> str:
    try:
        value = about[key]
    except (KeyError, RuntimeError):
        return ""
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
