"""``crossfuse.FusedAttention`` nodes, read and written by the names of their contract.

No other module needs to know at which place a node has its mask. `AttentionNode` is a view: it
keeps nothing but the node, so it is right after any change of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import CAPTURED, module_path, site_of
from crossfuse.ops.contract import DOMAIN, INPUTS, NAME

__all__ = [
    "AttentionAttributes",
    "AttentionInputs",
    "AttentionNode",
    "attention_nodes",
    "attentions",
    "is_attention",
    "role_at",
]


class AttentionInputs(NamedTuple):
    """Operands of an attention, with the shapes of :mod:`crossfuse.ops.contract`."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None = None
    bias: ir.Value | None = None
    key_lengths: ir.Value | None = None


@dataclass(frozen=True)
class AttentionAttributes:
    """Attributes of an attention: ``Hq``, ``Hkv``, the factor on the scores, the causal kind."""

    num_heads: int
    kv_num_heads: int
    scale: float
    causal: str = "none"


@dataclass(frozen=True)
class AttentionNode:
    """One ``FusedAttention`` node of a graph."""

    node: ir.Node

    def __post_init__(self) -> None:
        if not is_attention(self.node):
            found = f"{self.node.domain or 'ai.onnx'}.{self.node.op_type}"
            raise ValueError(f"{found} is no {DOMAIN}.{NAME}")

    @classmethod
    def emit(
        cls,
        build: GraphBuilder,
        inputs: AttentionInputs,
        attributes: AttentionAttributes,
        *,
        captured: str | None = None,
    ) -> AttentionNode:
        """Write a new node; absent operands at the end are left out.

        Args:
            build: takes the node; its output has no type and shape yet.
            inputs: operands.
            attributes: of the operator.
            captured: what the ledger says about how it was found, where no tracing gave it.
        """
        given = list(inputs)
        while given[-1] is None:
            given.pop()
        output = build.own(
            NAME,
            *given,
            domain=DOMAIN,
            num_heads=attributes.num_heads,
            kv_num_heads=attributes.kv_num_heads,
            scale=attributes.scale,
            causal=attributes.causal,
        )
        made = output.producer()
        assert made is not None
        if captured is not None:
            made.metadata_props[CAPTURED] = captured
        return cls(made)

    @property
    def query(self) -> ir.Value:
        """``[Bq, L, Hq·D]``."""
        return self._required("query")

    @property
    def key(self) -> ir.Value:
        """``[Bk, S, Hkv·D]``."""
        return self._required("key")

    @property
    def value(self) -> ir.Value:
        """``[Bk, S, Hkv·Dv]``."""
        return self._required("value")

    @property
    def mask(self) -> ir.Value | None:
        """Bool, ``[1|Bk|Bq, 1|Hq, 1|L, S]``; True = attend."""
        return self.operand("mask")

    @property
    def bias(self) -> ir.Value | None:
        """Float, the mask's shapes; added to the scaled scores."""
        return self.operand("bias")

    @property
    def key_lengths(self) -> ir.Value | None:
        """Integers, ``[Bk]``."""
        return self.operand("key_lengths")

    @property
    def output(self) -> ir.Value:
        """``[Bq, L, Hq·Dv]``."""
        return self.node.outputs[0]

    @property
    def num_heads(self) -> int:
        """``Hq``."""
        return int(self.node.attributes["num_heads"].as_int())

    @property
    def kv_num_heads(self) -> int:
        """``Hkv``."""
        return int(self.node.attributes["kv_num_heads"].as_int())

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.node.attributes["scale"].as_float())

    @property
    def causal(self) -> str:
        """``none``, ``upper_left`` or ``lower_right``."""
        return self.node.attributes.get_string("causal", "none") or "none"

    @property
    def site(self) -> str:
        """The name of the attention: its site, or the node's own name where it has none yet."""
        return site_of(self.node) or self.node.name or ""

    @property
    def module(self) -> str:
        """The path of the module that it came from."""
        return module_path(self.node)

    @property
    def captured(self) -> str | None:
        """How a pass found it; None where tracing gave it."""
        return self.node.metadata_props.get(CAPTURED)

    @property
    def inputs(self) -> AttentionInputs:
        """All operands."""
        optional = (self.mask, self.bias, self.key_lengths)
        return AttentionInputs(self.query, self.key, self.value, *optional)

    @property
    def attributes(self) -> AttentionAttributes:
        """All attributes."""
        return AttentionAttributes(self.num_heads, self.kv_num_heads, self.scale, self.causal)

    def operand(self, role: str) -> ir.Value | None:
        """The operand of a role (a name of `INPUTS`), None where it is absent."""
        place = INPUTS.index(role)
        return self.node.inputs[place] if place < len(self.node.inputs) else None

    def operands(self) -> Iterator[tuple[str, ir.Value]]:
        """Role and value of every operand that is there."""
        for role in INPUTS:
            value = self.operand(role)
            if value is not None:
                yield role, value

    def set_operand(self, role: str, value: ir.Value | None) -> None:
        """Change an operand, in place; None takes an optional one away."""
        place = INPUTS.index(role)
        if place >= len(self.node.inputs):
            self.node.resize_inputs(place + 1)
        self.node.replace_input_with(place, value)

    def set_kv_num_heads(self, count: int) -> None:
        """Change ``Hkv``, in place."""
        self.node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", count)

    def set_scale(self, scale: float) -> None:
        """Change the factor on the scores, in place."""
        self.node.attributes["scale"] = ir.AttrFloat32("scale", scale)

    def set_causal(self, causal: str) -> None:
        """Change the causal kind, in place."""
        self.node.attributes["causal"] = ir.AttrString("causal", causal)

    def _required(self, role: str) -> ir.Value:
        value = self.operand(role)
        assert value is not None, f"{self.site}: no {role}"
        return value


def is_attention(node: ir.Node) -> bool:
    """A node is a ``FusedAttention``."""
    return node.domain == DOMAIN and node.op_type == NAME


def attention_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The ``FusedAttention`` nodes in the graph's order."""
    return (node for node in graph if is_attention(node))


def attentions(graph: ir.Graph) -> list[AttentionNode]:
    """The attentions in the graph's order; a list, so the graph may be changed meanwhile."""
    return [AttentionNode(node) for node in attention_nodes(graph)]


def role_at(node: ir.Node, place: int) -> str | None:
    """What a node's input is to an attention: ``query``, ``key`` …; None where the node is none."""
    return INPUTS[place] if is_attention(node) else None
