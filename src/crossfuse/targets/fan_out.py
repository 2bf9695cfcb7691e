"""What every lowering of ``FusedAttention`` shares: folding the fan-out into the query length, and
preparing masks.

Folding: ``Bq = G·Bk`` queries of length L over ``Bk`` contexts are ``Bk`` queries of length
``G·L``, so that keys and values are not copied. Nothing is folded where both batches are known to
be one and the same dimension.

Masks: ``mask``, ``key_lengths`` and causal kinds join in one bool tensor ``[1|Bk, 1|Hq, 1|G·L,
S]``, prepared once per distinct source and shared by all attentions that use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from crossfuse.graph.attention_node import AttentionNode
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.magnitudes import magnitudes_behind
from crossfuse.graph.shapes import dim_of, same_dim

__all__ = ["LoweringBuilder", "Site"]

WITHOUT_PAD = frozenset({"bfloat16"})
"""Types for which ONNX Runtime's CUDA provider has no ``Pad``."""


@dataclass(frozen=True)
class Site:
    """An attention as its lowering sees it: what the node says, or what stands for it by now.

    Attributes:
        attention: the node.
        query, key, value, mask, bias, key_lengths: operands.
        counted: the value and axis that say how many keys there are, where that isn't axis 1 of the
            key: it has rows behind the last.
    """

    attention: AttentionNode
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None = None
    bias: ir.Value | None = None
    key_lengths: ir.Value | None = None
    counted: tuple[ir.Value, int] | None = None

    @classmethod
    def of(cls, attention: AttentionNode) -> Site:
        """The site of a node."""
        return cls(attention, *attention.inputs)

    @property
    def name(self) -> str:
        """Of the attention."""
        return self.attention.site

    @property
    def num_heads(self) -> int:
        """``Hq``."""
        return self.attention.num_heads

    @property
    def kv_num_heads(self) -> int:
        """``Hkv``."""
        return self.attention.kv_num_heads

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return self.attention.scale

    @property
    def causal(self) -> str:
        """``none``, ``upper_left`` or ``lower_right``."""
        return self.attention.causal

    @property
    def keys(self) -> tuple[ir.Value, int]:
        """The value and axis that say how many keys there are."""
        return self.counted or (self.key, 1)

    @property
    def folded(self) -> bool:
        """Fan-out is possible: the batches are not known to be the same dimension."""
        return not same_dim(dim_of(self.query, 0), dim_of(self.key, 0))

    @property
    def square(self) -> bool:
        """Query and key lengths are known to be the same dimension, so both causal kinds mean the
        same."""
        return same_dim(dim_of(self.query, 1), dim_of(self.key, 1))

    @property
    def causal_alone(self) -> bool:
        """Nothing but a causal kind removes keys, and it is what engines' attribute means."""
        return self.causal != "none" and not self.folded and self.never_empty

    @property
    def never_empty(self) -> bool:
        """Every row has a key: nothing but an upper-left causal mask."""
        only_causal = self.mask is None and self.bias is None and self.key_lengths is None
        return only_causal and (self.causal != "lower_right" or self.square)

    @property
    def rows_of_one_head(self) -> bool:
        """Mask and bias are the same for all heads."""
        return all(m is None or dim_of(m, 1) == 1 for m in (self.mask, self.bias))


class LoweringBuilder(GraphBuilder):
    """Emits what lowerings prepare; equal preparations are made once for all sites.

    Args:
        dtype: of the attentions' tensors.
    """

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        super().__init__(share=True)
        self.dtype = dtype

    def fold_query(self, site: Site) -> ir.Value:
        """``[Bq, L, W]`` → ``[Bk, G·L, W]``."""
        if not site.folded:
            return site.query
        width = self.size(site.query, 2)
        return self.op(
            "Reshape", site.query, self.concat(self.size(site.key, 0), self.ints(-1), width)
        )

    def unfold_output(self, site: Site, output: ir.Value) -> ir.Value:
        """``[Bk, G·L, W]`` → ``[Bq, L, W]``."""
        if not site.folded:
            return output
        batch, length = self.size(site.query, 0), self.size(site.query, 1)
        width = dim_of(site.attention.output, 2)
        return self.op(
            "Reshape",
            output,
            self.concat(batch, length, self.ints(width if isinstance(width, int) else -1)),
        )

    def attended(self, site: Site, *, skip_causal: bool = False) -> ir.Value | None:
        """The joined bool mask, or None where every key is attended; ``skip_causal`` leaves the
        causal part out."""
        parts: list[ir.Value] = []
        if site.mask is not None:
            parts.append(self.fold_mask(site, site.mask))
        if site.key_lengths is not None:
            lengths = self.op("Cast", site.key_lengths, to=ir.DataType.INT64)
            column = self.op("Reshape", lengths, self.ints(-1, 1, 1, 1))
            parts.append(self.op("Less", self.positions(self.size(*site.keys)), column))
        if site.causal != "none" and not skip_causal:
            parts.append(self._causal(site))
        attend = None
        for part in parts:
            attend = part if attend is None else self.op("And", attend, part)
        return attend

    def fold_mask(self, site: Site, mask: ir.Value) -> ir.Value:
        """``[1|Bk|Bq, h, l, S]`` → ``[1|Bk, h, 1|G·L, S]``."""
        if not site.folded:
            return mask
        contexts, batch = self.size(site.key, 0), self.size(mask, 0)
        per_context = same_dim(dim_of(mask, 0), dim_of(site.key, 0)) or dim_of(mask, 0) == 1
        if per_context and dim_of(mask, 2) == 1:
            return mask
        # A batch of Bq holds G masks per context; 1 and Bk hold one, which all G queries share.
        each = self.op("Max", self.op("Div", batch, contexts), self.ints(1))
        fan_out = self.op("Div", self.size(site.query, 0), contexts)
        heads, keys, length = self.size(mask, 1), self.size(mask, 3), self.size(site.query, 1)
        split = self.concat(self.op("Div", batch, each), each, heads, self.size(mask, 2), keys)
        shaped = self.op("Reshape", mask, split)
        full = self.op(
            "Expand", shaped, self.concat(self.ints(1), fan_out, self.ints(1), length, self.ints(1))
        )
        rows = self.op("Transpose", full, perm=[0, 2, 1, 3, 4])
        merged = self.concat(self.ints(0, 0, -1), keys)
        return self.op("Reshape", rows, merged)

    def with_full_rows(self, site: Site, mask: ir.Value, keys: ir.Value | None = None) -> ir.Value:
        """Broadcast a mask's query axis to the (folded) query length, which ONNX Runtime's
        operators ask for.

        ``keys`` is the size of its last axis, ``[1]``, where that isn't the number of keys.
        """
        length = self.size(site.query, 1)
        if site.folded:
            fan_out = self.op("Div", self.size(site.query, 0), self.size(site.key, 0))
            length = self.op("Mul", fan_out, length)
        # Expand works both ways, so a mask that has all rows already, or all keys, keeps them.
        return self.op(
            "Expand",
            mask,
            self.concat(self.ints(1, 1), length, self.size(*site.keys) if keys is None else keys),
        )

    def rest(self, value: ir.Value, axis: int, multiple: int) -> ir.Value:
        """How much an axis lacks of a multiple, ``[1]`` int64."""
        known = dim_of(value, axis)
        if isinstance(known, int):
            return self.ints(-known % multiple)
        return self.op("Mod", self.op("Neg", self.size(value, axis)), self.ints(multiple))

    def longer(self, value: ir.Value, axis: int, more: ir.Value, fill: float) -> ir.Value:
        """The value, with ``more`` (``[1]`` int64) elements ``fill`` behind an axis, the last one
        if the rank is unknown."""
        rank = axis + 1 if value.shape is None else len(value.shape)
        if self.dtype.name not in WITHOUT_PAD:
            amounts = self.ints(*[0] * (rank + axis)), more, self.ints(*[0] * (rank - axis - 1))
            made = self.op(
                "Pad",
                value,
                self.concat(*amounts[: 2 if axis == rank - 1 else 3]),
                self.constant(fill, self.dtype),
            )
        else:
            sizes = [more if a == axis else self.size(value, a) for a in range(rank)]
            block = self.op("Expand", self.constant(fill, self.dtype), self.concat(*sizes))
            made = self.op("Concat", value, block, axis=axis)
        if value.shape is not None:
            # Engines don't infer it where the amount is computed, and ONNX then takes an
            # Attention's width for 0.
            made.shape = ir.Shape([None if a == axis else value.shape[a] for a in range(rank)])
            made.type = value.type or ir.TensorType(ir.DataType.from_numpy(self.dtype))
        return made

    def additive(
        self, site: Site, attend: ir.Value | None, bias: ir.Value | None
    ) -> ir.Value | None:
        """Mask and bias as one float tensor, −inf where a key is not attended."""
        if attend is None:
            return bias
        infinity = self.constant(-np.inf, self.dtype)
        return self.op(
            "Where", attend, self.constant(0, self.dtype) if bias is None else bias, infinity
        )

    def above_lowest(self, bias: ir.Value) -> ir.Value:
        """A bias whose lowest finite numbers are one step up, for a kernel that takes exactly those
        for removed keys."""
        if self.dtype.kind != "f":
            return bias
        limits: Any = np.finfo(self.dtype)
        if not magnitudes_behind(bias).reach(-float(limits.min)):
            return bias
        found = self.op("Equal", bias, self.constant(limits.min, self.dtype))
        step = self.op(
            "Where",
            found,
            self.constant(np.nextafter(limits.min, limits.dtype.type(0)), self.dtype),
            bias,
        )
        step.shape, step.type = bias.shape, bias.type
        return step

    def _causal(self, site: Site) -> ir.Value:
        """Bool ``[1, 1, L|G·L, S]``."""
        length, keys = self.size(site.query, 1), self.size(*site.keys)
        last = self.positions(length)
        if site.causal == "lower_right":
            last = self.op("Add", last, self.op("Sub", keys, length))
        rows = self.op("Reshape", last, self.ints(-1, 1))
        if site.folded:
            fan_out = self.op("Div", self.size(site.query, 0), self.size(site.key, 0))
            rows = self.op("Tile", rows, self.concat(fan_out, self.ints(1)))
        return self.op(
            "Unsqueeze", self.op("LessOrEqual", self.positions(keys), rows), self.ints(0, 1)
        )
