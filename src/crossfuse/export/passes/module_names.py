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

from crossfuse.export.capture.to_onnx import SCOPES
from crossfuse.graph.metadata import MODULE

__all__ = ["note_modules"]

_WRAPPERS = {"StatefulPartitionedCall", "PartitionedCall"}


def note_modules(model: ir.Model) -> tuple[ir.Model, bool]:
    """Write into the nodes' metadata; returns the model and whether a path was found."""
    found = False
    for node in model.graph.all_nodes():
        if SCOPES in node.metadata_props or MODULE in node.metadata_props:
            continue
        path = _path(node.name or "", node.op_type)
        node.metadata_props[MODULE] = path
        found |= bool(path)
    return model, found


def _path(name: str, operator: str) -> str:
    scopes = [scope for scope in name.split("/")[:-1] if scope and scope not in _WRAPPERS]
    if scopes and re.sub(r"_\d+$", "", scopes[-1]).lower() == operator.lower():
        scopes.pop()
    return ".".join(scopes)
