"""The context in which a model of ``transformers`` is traced and translated.

The library's own exporters know how to make many of its models traceable; their patches are used,
together with `patches` for what they leave, and experts are grouped by their tokens, whatever way
the model runs them. Their patches of scaled dot-product attention are not used: ours goes further.
Nor is their stand-in for attention among packed patches where the heads of one product are normed:
it leaves the norms out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F

from crossfuse.export.capture.traceable import replaced
from crossfuse.export.sources.huggingface.attention_interface import operator_as_interface
from crossfuse.export.sources.huggingface.joined_rows import joined_rows
from crossfuse.export.sources.huggingface.patches import our_patches
from crossfuse.export.sources.huggingface.placed_features import First, placed_features
from crossfuse.spec.model_spec import Tracing

__all__ = ["tracing"]


_UNPROVEN_SIZES = ("moonshine",)
"""Models that compare a length computed twice, in ways that the tracer can't prove equal."""


@contextmanager
def tracing(model: Any, inputs: dict[str, Any], first: First | None = None) -> Iterator[Tracing]:
    """Make the model traceable for a while, with the operator as its attention.

    Args:
        model: of the library.
        inputs: its example.
        first: tokens that are inputs of their own, where some are.
    """
    from transformers.exporters import exporter_onnx, utils
    from transformers.exporters.exporter_dynamo import patch_forward_signature, reset_model_state
    from transformers.integrations import moe

    attention = F.scaled_dot_product_attention
    paths = {module: name for name, module in model.named_modules()}
    joined: set[str] = set()
    normed = {type(m): type(m).forward for m in model.modules() if _norms_packed_heads(m)}
    with (
        utils.apply_patches("dynamo"),
        utils.apply_patches("onnx"),
        _own_forwards(normed),
        utils.patch_attribute(F, "scaled_dot_product_attention", lambda _: attention),
        our_patches(
            all_real=first is not None and bool(first.placeholders),
            note=lambda module: joined.add(paths[module]),
        ),
        joined_rows(),
        placed_features(first),
        exporter_onnx.use_experts_implementation(model, "grouped_mm"),
        # The library's own operator, which takes sizes that PyTorch's kernel does not.
        replaced(moe, "_can_use_grouped_mm", lambda *_, **__: False),
        operator_as_interface(model) as interfaced,
        reset_model_state(model),
        patch_forward_signature(model, inputs),
    ):
        yield Tracing(
            interfaced=interfaced,
            joined=joined,
            defer_guards=getattr(getattr(model, "config", None), "model_type", None)
            in _UNPROVEN_SIZES,
            translations=exporter_onnx._ONNX_TRANSLATION_TABLE,
            fix_program=lambda program: utils.apply_fx_node_fixes("onnx", program.graph_module),
            fix_model=exporter_onnx.apply_onnx_ir_fixes,
        )


def _norms_packed_heads(module: Any) -> bool:
    """Its queries and keys come from one product with the values, and are normed behind it."""
    return all(hasattr(module, name) for name in ("qkv", "q_norm", "k_norm"))


@contextmanager
def _own_forwards(forwards: Mapping[type, Any]) -> Iterator[None]:
    """Classes have these forwards, for a while."""
    with ExitStack() as stack:
        for kind, forward in forwards.items():
            stack.enter_context(replaced(kind, "forward", forward))
        yield
