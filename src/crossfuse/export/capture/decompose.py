"""Decompose an exported program operator by operator, in place of tracing all of it again.

``ExportedProgram.run_decompositions`` traces the whole program twice, whatever there is to
decompose; in most models that is a few casts. Here each operator that needs it is traced alone, on
the fake tensors of the program, and its body takes its place.

Rules:

1. An operator is decomposed exactly where ``run_decompositions`` does: it is in the table, or is
composite and can't be kept.
2. The new nodes keep the module path and the line of the user's code. An output whose operator does
nothing becomes a copy.
3. Where a body's strides are not the operator's, those of all that follows are computed again: a
   ``view`` or ``contiguous`` means what it would have meant had the program been traced so.
4. Sizes are read off the program's inputs, each once, as tracing of the whole does.
5. Operators that write into the program's own tensors become functional ones first (`view_writes`).
6. Calls alike (`likeness`) are traced once: in a loop, or in layers alike, one body serves all.
Each use has fake tensors of its own: two nodes of one would be the same to the next trace. A body
with a size that depends on what a tensor holds is its call's own.

It must not fire on programs with other mutation, sub-graphs or attributes (autocast, control flow):
those are traced whole.
"""

from __future__ import annotations

import functools
import math
import operator
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves, tree_map_only

from crossfuse.export.capture.adaptive_pools import adaptive_pools
from crossfuse.export.capture.likeness import likeness
from crossfuse.export.capture.program_sizes import NUMBER_OF_ELEMENTS, ProgramSizes
from crossfuse.export.capture.tracing_shortcuts import unread_code
from crossfuse.export.capture.view_writes import functional_writes, written_over

__all__ = ["decompose", "decompose_locally"]

Table = Mapping[Any, Callable[..., Any]]

_ALSO_KEPT = (torch.ops.aten.upsample_bilinear2d.vec, torch.ops.aten.upsample_nearest2d.vec)
"""Composites that ``run_decompositions`` keeps although PyTorch's table of them leaves them out."""

_REPEATS = torch.ops.aten.repeat_interleave.self_int

_SYMBOLIC = (types.BuiltinFunctionType, types.FunctionType)
_KEPT_METADATA = ("nn_module_stack", "stack_trace", "source_fn_stack", "from_node", "custom")


def decompose_locally(
    program: ExportedProgram, then: Callable[[ExportedProgram], None] = lambda _: None
) -> None:
    """Make the program's own ``run_decompositions`` local, for exporters that call it.

    Args:
        program: to be decomposed.
        then: what is done to it behind that.
    """
    also = {**adaptive_pools(program.graph)}
    if _has_complex(program):
        also[torch.ops.aten.unsqueeze.default] = _unsqueezed
    if any(n.target is _REPEATS for n in program.graph.nodes):
        also[_REPEATS] = _repeated

    def run_decompositions(decomp_table: Table | None = None, **_: Any) -> ExportedProgram:
        decomposed = decompose(program, {**(decomp_table or {}), **also})
        then(decomposed)
        return decomposed

    program.run_decompositions = run_decompositions


def decompose(program: ExportedProgram, table: Table) -> ExportedProgram:
    """The program with the table's operators, and composites that can't be kept, decomposed;
    changed in place where that works.

    A function of the table may return ``NotImplemented``: the operator then stays.
    """
    made = _without_writes(program)
    if not _is_plain(program.graph):
        # PyTorch traces functions in operators with its compiler.
        with torch.compiler.set_stance("default"):
            whole: ExportedProgram = ExportedProgram.run_decompositions(program, dict(table))
        return whole
    kept = _kept_composites(len(torch._C._dispatch_get_all_op_names()))
    graph, table = program.graph, {**table, torch.ops.aten.copy.default: written_over}
    restrided: set[fx.Node] = set()
    sizes, bodies = ProgramSizes(graph), _Bodies(program, table)
    for node in list(graph.nodes):
        if node.op != "call_function" or sizes.shared(node) is not node:
            continue
        if "val" not in node.meta:  # put there by a library's own patch
            node.meta["val"] = _value(node)
        changed = node in made or not restrided.isdisjoint(node.all_input_nodes)
        if changed and _restride(node):
            restrided.add(node)
        if not isinstance(node.target, OpOverload):
            continue
        if node.target in table or (node.target._can_decompose() and node.target not in kept):
            result = _inline(program, node, bodies, sizes)
            if result is not None and _strides(result) != _strides(node):
                restrided.add(result)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _has_complex(program: ExportedProgram) -> bool:
    values = (node.meta.get("val") for node in program.graph.nodes)
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


def _unsqueezed(x: Tensor, dim: int) -> Tensor:
    """Of complex numbers, for which exporters know ``view`` alone."""
    if not x.is_complex():
        return NotImplemented  # type: ignore[no-any-return]
    at = dim % (x.ndim + 1)
    return x.view(*x.shape[:at], 1, *x.shape[at:])


def _repeated(
    x: Tensor, repeats: int, dim: int | None = None, output_size: int | None = None
) -> Tensor:
    """As often as a size says: the exporter's own translation puts the number on another axis."""
    if type(repeats) is int:
        return NotImplemented  # type: ignore[no-any-return]
    if dim is None:
        x, dim = x.reshape(-1), 0
    at = dim % x.ndim
    before, size, after = x.shape[:at], x.shape[at], x.shape[at + 1 :]
    each = x.unsqueeze(at + 1).expand(*before, size, repeats, *after)
    return each.reshape(*before, size * repeats, *after)


def _without_writes(program: ExportedProgram) -> set[fx.Node]:
    """Writes in functional form, and the outputs that are written known by their new names; the new
    nodes."""
    before = _output_names(program.graph)
    made = functional_writes(program.graph)
    for old, new in zip(before, _output_names(program.graph), strict=True):
        if old != new:
            program.graph_signature.replace_all_uses(old, new)
    return made


def _output_names(graph: fx.Graph) -> list[str]:
    return [n.name for n in tree_leaves(graph.output_node().args) if isinstance(n, fx.Node)]


@functools.cache
def _kept_composites(registered: int) -> frozenset[Any]:
    """Composites that ``run_decompositions`` keeps, while so many operators are registered."""
    return frozenset({*torch.export.default_decompositions(), *_ALSO_KEPT})


def _restride(node: fx.Node) -> bool:
    """Compute the node's fake value again; whether its strides changed."""
    before = _strides(node)

    try:
        node.meta["val"] = _value(node)
    except (RuntimeError, ValueError):
        if node.target is not torch.ops.aten.view.default:
            raise
        node.target = torch.ops.aten.reshape.default
        node.meta["val"] = _value(node)
    return _strides(node) != before


def _value(node: fx.Node) -> Any:
    """The node's fake value, from those of its inputs, as a trace finds it: by PyTorch's rules in
    Python. Some of those in C++ know numbers alone, and take a symbol's example for its size."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with torch.no_grad(), enable_python_dispatcher():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _strides(node: fx.Node) -> list[str]:
    """As text: a comparison of symbols would become a guard."""
    return [str(t.stride()) for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]


def _is_plain(graph: fx.Graph) -> bool:
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        target = node.target
        if node.op != "call_function":
            return False
        if isinstance(target, OpOverload):
            if target._schema.is_mutable:
                return False
        elif not (target is operator.getitem or isinstance(target, _SYMBOLIC)):
            return False
    return True


def _inline(
    program: ExportedProgram, node: fx.Node, bodies: _Bodies, sizes: ProgramSizes
) -> fx.Node | None:
    """Put the body in the node's place; the node of its result where that is one tensor."""
    graph = program.graph
    inputs = list(dict.fromkeys(node.all_input_nodes))
    body = bodies.of(node, inputs)
    if body is None:
        return None
    places = dict(zip((n for n in body.nodes if n.op == "placeholder"), inputs, strict=True))
    with graph.inserting_before(node), torch.no_grad(), bodies.fake_mode():
        for inner in body.nodes:
            if inner.op == "call_function":
                copy = _copy(graph, inner, places, sizes)
                copy.meta |= {key: node.meta[key] for key in _KEPT_METADATA if key in node.meta}
                copy.meta["original_aten"] = node.meta.get("original_aten", node.target)
                if "val" not in copy.meta:
                    copy.meta["val"] = _value(copy)
                elif inner.target is not NUMBER_OF_ELEMENTS:
                    copy.meta["val"] = tree_map_only(Tensor, Tensor.detach, copy.meta["val"])
                places[inner] = sizes.shared(copy)
    (result,) = body.output_node().args
    replacement = fx.node.map_arg(result, places.__getitem__)
    _replace(program, node, replacement)
    return replacement if isinstance(replacement, fx.Node) else None


class _Bodies:
    """What operators are made of."""

    def __init__(self, program: ExportedProgram, table: Table) -> None:
        self._program, self._table = program, table
        self._known: dict[Hashable, fx.Graph] = {}

    def of(self, node: fx.Node, inputs: Sequence[fx.Node]) -> fx.Graph | None:
        """A body; None where the table's function leaves the operator as it is, which it is asked
        for each."""
        alike = likeness(node, inputs)
        known = None if alike is None else self._known.get(alike)
        if known is not None:
            return known
        made = self._traced(node, inputs)
        if made is not None and alike is not None and not _counts_anew(made, inputs):
            self._known[alike] = made
        return made

    def fake_mode(self) -> AbstractContextManager[Any]:
        """The program's: what a body makes out of nothing (a number as a tensor) belongs to it, as
        all else does."""
        nodes = self._program.graph.nodes
        values = (value for node in nodes for value in tree_leaves(node.meta.get("val")))
        return next((v.fake_mode for v in values if isinstance(v, FakeTensor)), nullcontext())

    def _traced(self, node: fx.Node, inputs: Sequence[fx.Node]) -> fx.Graph | None:
        decomposition: Any = self._table.get(node.target, node.target)

        def call(*values: Any) -> Any:
            given = dict(zip(inputs, values, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
            result = decomposition(*args, **kwargs)
            if result is NotImplemented:
                raise _KeptError
            return result

        with torch.no_grad(), self.fake_mode(), unread_code():
            try:
                return _trace(call, [n.meta["val"] for n in inputs], self._table)
            except _KeptError:
                return None


def _counts_anew(body: fx.Graph, inputs: Sequence[fx.Node]) -> bool:
    """A size in it depends on what a tensor holds, as of ``nonzero``: each call has its own."""
    given = free_unbacked_symbols([n.meta.get("val") for n in inputs])
    return not free_unbacked_symbols([n.meta.get("val") for n in body.nodes]) <= given


def _trace(call: Callable[..., Any], values: list[Any], table: Table) -> fx.Graph:
    """The operators of a call; of one that writes into its own tensors, their functional forms."""
    traced = make_fx(call, decomposition_table=dict(table))(*values)
    if any(
        isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in traced.graph.nodes
    ):
        traced = make_fx(torch.func.functionalize(traced))(*values)
    return traced.graph


def _copy(
    graph: fx.Graph, inner: fx.Node, places: Mapping[fx.Node, fx.Node], sizes: ProgramSizes
) -> fx.Node:
    """The node in the program's graph; a number of elements, which exporters don't know, as a
    product of sizes."""
    if inner.target is not NUMBER_OF_ELEMENTS:
        return graph.node_copy(inner, places.__getitem__)
    tensor = places[cast(fx.Node, inner.args[0])]
    shape = tensor.meta["val"].shape

    def sized(target: Callable[..., Any], arguments: tuple[Any, ...], size: Any) -> fx.Node:
        node = graph.call_function(target, arguments)
        node.meta["val"] = size
        return sizes.shared(node)

    symbolic = [(i, n) for i, n in enumerate(shape) if not isinstance(n, int)]
    factors = [(sized(torch.ops.aten.sym_size.int, (tensor, i), n), n) for i, n in symbolic]
    product, value = factors[0]
    for factor, size in [
        *factors[1:],
        (fixed := math.prod(n for n in shape if isinstance(n, int)), fixed),
    ]:
        value = value * size
        product = sized(operator.mul, (product, factor), value)
    return product


def _replace(program: ExportedProgram, node: fx.Node, result: Any) -> None:
    if isinstance(result, fx.Node):
        if program.graph.output_node() in node.users:
            result = _as_output(program.graph, node, result)
            program.graph_signature.replace_all_uses(node.name, result.name)
        node.replace_all_uses_with(result)
    else:
        for use in list(node.users):
            _replace(program, use, result[use.args[1]])
    program.graph.erase_node(node)


def _as_output(graph: fx.Graph, node: fx.Node, result: fx.Node) -> fx.Node:
    """The result, or a copy of it where it is an input or an output by itself."""
    if result.op == "call_function" and graph.output_node() not in result.users:
        return result
    with graph.inserting_before(node):
        copy = graph.call_function(torch.ops.aten.clone.default, (result,))
    copy.meta = dict(node.meta)
    return copy


class _KeptError(Exception):
    """A function of the table leaves its operator as it is."""
