"""What PyTorch's exporter to ONNX computes again and again, computed once.

1. Its promotion of types executes the whole program on fake tensors, to know what each operator
   gives. The program says so already: promotion only writes out what PyTorch does by itself.
2. Its table of translations is built anew for each export, and reads the source of each
   translation, of which it wants the domain alone.
3. For each node it reads the schema of its operator, and makes a signature of it.

These are places inside the exporter. Where another version of it has none of that name, it runs as
it is, and takes longer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch

__all__ = ["exporter_shortcuts"]


@contextmanager
def exporter_shortcuts() -> Iterator[None]:
    """While this lasts, the exporter doesn't repeat itself."""
    with ExitStack() as stack:
        promotion = _found("torch.onnx._internal.fx.passes.type_promotion")
        interpreter: Any = getattr(promotion, "_TypePromotionInterpreter", None)
        if hasattr(interpreter, "_maybe_promote_node") and "run_node" in vars(interpreter):
            run = _with_known_values(promotion, interpreter.run_node)
            stack.enter_context(patch.object(interpreter, "run_node", run))
        registration = _found("torch.onnx._internal.exporter._registration")
        registry: Any = getattr(registration, "ONNXRegistry", None)
        if hasattr(registry, "from_torchlib"):
            copied = staticmethod(functools.partial(_copied_table, registry.from_torchlib))
            stack.enter_context(patch.object(registry, "from_torchlib", copied))
        signature: Any = getattr(ir.schemas, "OpSignature", None)
        if hasattr(signature, "from_op_schema"):
            known = staticmethod(_signatures(signature.from_op_schema))
            stack.enter_context(patch.object(signature, "from_op_schema", known))
        yield


def _found(module: str) -> Any:
    """A module of the exporter; None where this version has none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _with_known_values(promotion: Any, run_node: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's step, which takes what an operator gives from the program."""

    def run_known(self: Any, node: Any) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run_node(self, node)
        with self._set_current_node(node):
            if rule := promotion.get_type_promotion_rule(node, self.type_promotion_table):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    return run_known


def _signatures(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Signatures of operators, each made once."""
    known: dict[Hashable, Any] = {}

    def signature(schema: Any) -> Any:
        key = schema.domain, schema.name, schema.since_version
        if key not in known:
            known[key] = read(schema)
        return known[key]

    return signature


def _copied_table(build: Callable[..., Any], opset_version: int) -> Any:
    """A table of translations, which takes more of them."""
    known = _table(build, opset_version, len(torch._C._dispatch_get_all_op_names()))
    made = type(known)()
    vars(made).update(vars(known))
    made.functions = {target: list(found) for target, found in known.functions.items()}
    return made


@functools.cache
def _table(build: Callable[..., Any], opset_version: int, operators: int) -> Any:
    """The exporter's own translations, of the operators that there are (some libraries register
    theirs late); of each function, it asks for the domain."""
    traced = getattr(_found("onnxscript.values"), "TracedOnnxFunction", None)
    with ExitStack() as stack:
        if hasattr(traced, "function_ir") and hasattr(traced, "opset"):
            domain = property(lambda function: SimpleNamespace(domain=function.opset.domain))
            stack.enter_context(patch.object(traced, "function_ir", domain))
        return build(opset_version=opset_version)
