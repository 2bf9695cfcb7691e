"""Biases with numbers that no half float holds, such as an added ``finfo.min``, brought into its
range before the cast.

Clamped to fp16's range such a number would mean something else. In fp32 an added −3·10³⁸ absorbs
the scores, so a row of it averages its values; kernels add −65504 to scores in fp32, where nothing
is absorbed. And −2·10⁹ would hide no more than −10⁹.

1. What computes such a bias stays in fp32, from the number on: selections, layout and sums.
2. From each row the largest bias of a key that is attended, if negative, is subtracted: a softmax
   doesn't see it. What is below the range then weighs nothing, and is clamped.
3. Where that largest bias absorbs scores, the row's query becomes 0, and with it the scores.
4. Mask, lengths and causality say which keys are attended, so they join the bias, as −inf. A row
   without keys stays one.

Nothing is done where the graph shows that a bias holds no such number; a float input may hold any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from crossfuse.graph.attention_node import attentions
from crossfuse.graph.metadata import inherited
from crossfuse.graph.shapes import dim_of
from crossfuse.targets.fan_out import LoweringBuilder, Site
from crossfuse.targets.lowering import has_keys

__all__ = ["Islands", "bias_inputs", "narrow_biases", "wide_outputs"]

_RANGE = 65504.0
"""The largest fp16 number; in bf16, too, TensorRT's masks go no further."""

_LARGE = _RANGE / 4
"""From here on a few numbers may add up to more than the range."""

_ABSORBS = 1e20
"""Beside a number this large a score is nothing, in any float type that holds it."""

_CARRIES = frozenset({
    "Abs", "Add", "Cast", "CastLike", "Clip", "Concat", "Div", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Max", "Min", "Mul", "Neg", "Pad", "Reshape",
    "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that give numbers as large as those they take."""

_TRUTHS = frozenset({"And", "Less", "LessOrEqual", "Greater"})
_WHY = "it makes a bias of attention, with numbers beyond half precision's range"


@dataclass(frozen=True)
class Islands:
    """Nodes that stay in fp32: of the graph itself, with the reason, and those emitted here."""

    own: dict[ir.Node, str]
    emitted: frozenset[ir.Node]


def narrow_biases(
    graph: ir.Graph,
    *,
    bounded: Collection[str] = (),
    handed: Collection[str] = (),
    wide: Collection[ir.Node] = (),
) -> Islands:
    """Rewrite the attentions of an fp32 graph, in place.

    Args:
        graph: with ``FusedAttention`` nodes.
        bounded: names of inputs that hold no such numbers.
        handed: names of outputs that are biases in another graph, which rewrites them there.
        wide: attentions that stay in fp32.
    """
    sources = _Sources(bounded)
    for value in graph.outputs:
        if value.name in handed:
            sources.may_be_large(value)
    build = LoweringBuilder(np.dtype(np.float32))
    emitted: set[ir.Node] = set()
    for attention in attentions(graph):
        site = Site.of(attention)
        if (
            site.bias is not None
            and site.query.dtype == ir.DataType.FLOAT
            and sources.may_be_large(site.bias)
        ):
            emitted |= _narrow(build, site, query_too=attention.node in wide)
    return Islands(dict.fromkeys(sources.nodes(), _WHY), frozenset(emitted))


def bias_inputs(graph: ir.Graph) -> set[str]:
    """Names of the float inputs whose numbers reach biases, however large they are."""
    sources = _Sources()
    for attention in attentions(graph):
        if attention.bias is not None:
            sources.may_be_large(attention.bias)
    return sources.inputs()


def wide_outputs(graph: ir.Graph, names: Collection[str]) -> set[str]:
    """Which outputs, of those named, may hold numbers beyond the range."""
    sources = _Sources()
    return {
        value.name or ""
        for value in graph.outputs
        if value.name in names and sources.may_be_large(value)
    }


@dataclass
class _Sources:
    """Which values may hold numbers beyond the range."""

    bounded: Collection[str] = ()
    found: dict[ir.Value, bool] = field(default_factory=dict)

    def may_be_large(self, value: ir.Value) -> bool:
        """A float that is, or is made of, such a number."""
        if value not in self.found:
            self.found[value] = self._look(value)
        return self.found[value]

    def _look(self, value: ir.Value) -> bool:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return _holds_large(tensor)
        if value.dtype is not None and not value.dtype.is_floating_point():
            return False
        node = value.producer()
        if node is None:
            return value.name not in self.bounded
        if node.op_type == "ConstantOfShape":
            return "value" in node.attributes and _holds_large(node.attributes["value"].as_tensor())
        if node.op_type not in _CARRIES:
            return False
        looked = [self.may_be_large(v) for v in node.inputs if v is not None]
        return any(looked)

    def nodes(self) -> Iterable[ir.Node]:
        """What gives such numbers."""
        producers = [value.producer() for value, large in self.found.items() if large]
        return [node for node in producers if node is not None and node.op_type != "Constant"]

    def inputs(self) -> set[str]:
        """Names of the graph's inputs among the values."""
        return {
            value.name or ""
            for value, large in self.found.items()
            if large and value.is_graph_input()
        }


def _holds_large(tensor: ir.TensorProtocol) -> bool:
    if not tensor.dtype.is_floating_point() or not tensor.size:
        return False
    array = tensor.numpy().astype(np.float64)
    return bool((np.isfinite(array) & (np.abs(array) > _LARGE)).any())


def _narrow(build: LoweringBuilder, site: Site, *, query_too: bool) -> set[ir.Node]:
    """Rules 2 to 4 for one attention, its fan-out folded; what was emitted and stays in fp32."""
    assert site.bias is not None
    bias = build.additive(site, build.attended(site), build.fold_mask(site, site.bias))
    assert bias is not None
    top = build.op("ReduceMax", bias, build.ints(-1), keepdims=1)
    lowest, infinity = (
        build.constant(np.finfo(np.float32).min, np.float32),
        build.constant(-np.inf, np.float32),
    )
    shift = build.op("Clip", top, lowest, build.constant(0, np.float32))
    some = has_keys(build, bias, additive=True)
    floor = build.op("Where", some, build.constant(-_RANGE, np.float32), infinity)
    narrow = build.op("Max", build.op("Sub", bias, shift), floor)
    narrow.shape = _shape_of_bias(site)
    counted = build.op("Greater", top, build.constant(-_ABSORBS, np.float32))
    islands = set(build.nodes)
    query = _zeroed(build, site, build.op("Cast", counted, to=ir.DataType.FLOAT))
    islands |= set(build.nodes) if query_too else set()
    _give_types(build.nodes)
    build.insert_before(site.attention.node)
    operands = {"query": query, "mask": None, "bias": narrow, "key_lengths": None}
    for role, operand in operands.items():
        site.attention.set_operand(role, operand)
    site.attention.set_causal("none")
    if site.folded:
        _unfold(build, site)
    return islands


def _zeroed(build: LoweringBuilder, site: Site, counted: ir.Value) -> ir.Value:
    """The folded query, 0 in the rows and heads where scores don't count; ``counted`` is
    ``[1|Bk, 1|Hq, 1|G·L, 1]``."""
    query = build.fold_query(site)
    if site.rows_of_one_head:
        zeroed = build.op("Mul", query, build.op("Reshape", counted, build.ints(0, -1, 1)))
    else:
        split = build.op("Reshape", query, build.ints(0, 0, site.num_heads, -1))
        by_head = build.op("Mul", split, build.op("Transpose", counted, perm=[0, 2, 1, 3]))
        zeroed = build.op("Reshape", by_head, build.ints(0, 0, -1))
    zeroed.shape = ir.Shape([dim_of(site.key, 0), _folded_length(site), dim_of(site.query, 2)])
    return zeroed


def _unfold(build: LoweringBuilder, site: Site) -> None:
    """The output as it was, behind the attention over folded queries."""
    node, output = site.attention.node, site.attention.output
    whole = build.unfold_output(site, output)
    nodes, users = list(build.nodes), list(output.uses())
    _give_types(nodes)
    for made in nodes:
        made.metadata_props.update(inherited(node))
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_after(node, nodes)
    build.tape = Tape()
    whole.type, whole.shape = output.type, output.shape
    for user, index in users:
        if user is not whole.producer():
            user.replace_input_with(index, whole)
    for i, end in enumerate(node.graph.outputs):
        if end is output:
            node.graph.outputs[i] = whole
    output.name, whole.name = f"{output.name}.folded", output.name
    output.shape = ir.Shape([dim_of(site.key, 0), None, dim_of(output, 2)])


def _shape_of_bias(site: Site) -> ir.Shape:
    """``[1|Bk, 1|Hq, 1|G·L, S]``, as far as it is known."""
    parts = [m for m in (site.mask, site.bias) if m is not None]
    batches, heads, rows = ([dim_of(m, axis) for m in parts] for axis in range(3))
    batch = 1 if site.key_lengths is None and all(n == 1 for n in batches) else dim_of(site.key, 0)
    every = all(n == 1 for n in rows) and site.causal == "none"
    if site.folded:
        every = every and all(n in (1, dim_of(site.key, 0)) for n in batches)
    head = next((n for n in heads if n != 1), 1)
    return ir.Shape([batch, head, 1 if every else _folded_length(site), dim_of(site.bias, 3)])


def _folded_length(site: Site) -> int | str | None:
    return None if site.folded else dim_of(site.query, 1)


def _give_types(nodes: Iterable[ir.Node]) -> None:
    """Types of emitted values, which the cast goes by."""
    for node in nodes:
        output, inputs = node.outputs[0], node.inputs
        if output.type is not None:
            continue
        given = inputs[1] if node.op_type == "Where" else inputs[0] if inputs else None
        dtype = None if given is None else given.dtype
        if node.op_type in _TRUTHS:
            dtype = ir.DataType.BOOL
        elif node.op_type == "Shape":
            dtype = ir.DataType.INT64
        elif node.op_type == "Cast":
            dtype = ir.DataType(node.attributes["to"].as_int())
        elif node.op_type == "Constant":
            dtype = node.attributes["value"].as_tensor().dtype
        output.type = None if dtype is None else ir.TensorType(dtype)
