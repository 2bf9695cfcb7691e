"""Note the module that each node of a file came from, where its exporter made that part of the
node's name.

Rules:

1. PyTorch's older exporter writes ``/encoder/layer.0/MatMul_1``, those of TensorFlow and Keras
   ``model/encoder/MatMul_1``: what stands before the last slash is the path.
2. An operator that has a scope of its own (Keras: ``model/attention/einsum_1/Einsum``) belongs to
   the module around it.
3. TensorFlow's wrappers, such as ``StatefulPartitionedCall``, are left out.

It must not touch nodes with metadata of PyTorch's exporter, which says more.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.metadata import MODULE, SCOPES

__all__ = ["NoteModulesPass"]

_WRAPPERS = {"StatefulPartitionedCall", "PartitionedCall"}


class NoteModulesPass(FusionPass):
    """Paths of modules, from the nodes' names into their metadata."""

    def call(self, model: ir.Model) -> FusionResult:
        """Write into the nodes' metadata."""
        found = False
        for node in model.graph.all_nodes():
            if SCOPES in node.metadata_props or MODULE in node.metadata_props:
                continue
            node.metadata_props[MODULE] = _path(node.name or "", node.op_type)
            found = True
        return FusionResult(model, found)


def _path(name: str, operator: str) -> str:
    scopes = [scope for scope in name.split("/")[:-1] if scope and scope not in _WRAPPERS]
    if scopes and re.sub(r"_\d+$", "", scopes[-1]).lower() == operator.lower():
        scopes.pop()
    return ".".join(scopes)
