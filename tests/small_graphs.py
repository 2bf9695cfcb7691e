"""Small graphs for tests of passes: built by hand, computed in float64 by ONNX's reference
evaluator, with the operator's own NumPy reference for ``FusedAttention``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from crossfuse.export.passes.base import FusionResult
from crossfuse.export.passes.retype import DOUBLE, RetypePass
from crossfuse.ops.contract import DOMAIN
from crossfuse.ops.onnx_schema import register_schema
from crossfuse.ops.reference import attention_reference
from onnx_building import Graph, Shape

SIZES = {"B": 2, "L": 3, "S": 5, "N": 4}
"""Sizes of named dimensions."""


class FusedAttention(OpRun):
    """The operator by its float64 reference."""

    op_domain = DOMAIN

    def _run(self, query, key, value, mask=None, bias=None, key_lengths=None, **attributes):
        names = ("num_heads", "kv_num_heads", "scale", "causal")
        given = {name: attributes[name] for name in names}
        return (attention_reference(query, key, value, mask, bias, key_lengths, **given),)


def model_of(
    g: Graph, opset: int = 20, shapes: Mapping[str, Shape] | None = None, kind: int = 1
) -> ir.Model:
    """The graph in ``onnx_ir``, its shapes inferred; ``shapes`` says those of values (of type
    ``kind``) that ONNX can't infer."""
    register_schema()
    known = [
        helper.make_tensor_value_info(name, kind, list(shape))
        for name, shape in (shapes or {}).items()
    ]
    graph = helper.make_graph(g.nodes, "g", g.inputs, g.outputs, g.weights, value_info=known)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def fused(g: Graph, *inputs: str, heads: int = 2, **attributes: Any) -> str:
    """A ``FusedAttention`` node."""
    given = {"kv_num_heads": heads, "scale": 0.5, "causal": "none", **attributes}
    return g.op("FusedAttention", *inputs, domain=DOMAIN, num_heads=heads, **given)


def feeds_of(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, masks with both values, small integers."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else SIZES[str(d.value)] for d in value.shape]
        if value.dtype == ir.DataType.BOOL:
            made[str(value.name)] = rng.random(shape) > 0.4
        elif value.dtype.is_floating_point():
            made[str(value.name)] = rng.standard_normal(shape)
        else:
            made[str(value.name)] = rng.integers(1, 4, shape).astype(value.dtype.numpy())
    return made


def computed(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the graph in float64."""
    wide = model.clone()
    RetypePass(DOUBLE)(wide)
    evaluator = ReferenceEvaluator(ir.to_proto(wide), new_ops=[FusedAttention])
    found: list[np.ndarray] = evaluator.run(None, dict(feeds))
    return found


def counts(model: ir.Model) -> dict[str, int]:
    """How many nodes there are of each operator, constants left out."""
    found: dict[str, int] = {}
    for node in model.graph:
        if node.op_type != "Constant":
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def same_numbers(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    """The outputs are equal but for the rounding of attributes, which are float32."""
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)


def applied(fusion_pass: Any, model: ir.Model) -> FusionResult:
    """Run a pass on a graph that is kept equal in numbers, in place and once for all: a second run
    changes nothing."""
    feeds = feeds_of(model)
    before = computed(model, feeds)
    result: FusionResult = fusion_pass(model)
    same_numbers(before, computed(model, feeds))
    after = [(node.op_type, node.name) for node in model.graph]
    assert not fusion_pass(model).modified
    assert [(node.op_type, node.name) for node in model.graph] == after
    return result


def untouched(fusion_pass: Any, model: ir.Model) -> FusionResult:
    """Run a pass on a graph that it must leave alone."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result: FusionResult = fusion_pass(model)
    assert not result.modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    return result
