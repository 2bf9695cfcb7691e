"""The list of passes, and what fusing gives."""

from __future__ import annotations

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.fuse import PROGRAM_PASSES, fuse, fusion_passes
from crossfuse.export.passes.base import pass_name
from crossfuse.graph.attention_node import attentions
from crossfuse.spec.model_spec import ModelSpec


class Two(nn.Module):
    """Two attentions and two further outputs."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        first = F.scaled_dot_product_attention(x * 0.5, y, y)
        return {"second": F.scaled_dot_product_attention(first, y, y), "first": first, "sum": x + 1}


def spec(module: nn.Module, **options: object) -> ModelSpec:
    inputs = {"x": torch.randn(2, 4, 3, 8), "y": torch.randn(2, 4, 5, 8)}
    return ModelSpec(module, inputs=inputs, **options)


def test_every_pass_is_listed_once_in_its_place() -> None:
    names = [pass_name(each) for each in fusion_passes(["a"], ["a"])]
    assert len(set(names)) == len(names)
    for earlier, later in (
        ("drop_outputs", "fuse_unfused_attention"),
        ("unify_products", "fuse_unfused_attention"),
        ("join_sinks", "separate_probabilities"),
        ("separate_probabilities", "fuse_unfused_attention"),
        ("fuse_onnx_attention", "fuse_unfused_attention"),
        ("absorb_scales", "cancel_layout"),
        ("group_heads", "cancel_layout"),
        ("cancel_layout", "drop_key_bias"),
        ("name_sites", "merge_duplicates"),
        ("absorb_scales", "merge_duplicates"),
        ("merge_duplicates", "separate_outputs"),
    ):
        assert names.index(earlier) < names.index(later), (earlier, later)
    assert {pass_name(p) for p in fusion_passes([], []) if p.captures} == {
        "fuse_onnx_attention",
        "fuse_unfused_attention",
    }
    assert [pass_name(each) for each in PROGRAM_PASSES] == [
        "fill_assigned_masks",
        "fuse_sdpa",
    ]


def test_what_fusing_gives() -> None:
    told: list[str] = []
    graph = fuse(spec(Two()), told.append)
    assert [value.name for value in graph.inputs] == ["x", "y"]
    assert [value.name for value in graph.outputs] == ["second", "first", "sum"]
    found = attentions(graph.model.graph)
    assert [a.scale for a in found] == pytest.approx([0.5 * 8**-0.5, 8**-0.5])
    assert [a.site for a in found] == ["(root)", "(root)#2"]
    rows = graph.ledger.rows
    assert [(row.site, row.kind, row.captured) for row in rows] == [
        ("(root)", "cross", "sdpa"),
        ("(root)#2", "cross", "sdpa"),
    ]
    assert told[-1] == "fusing"


def test_dropped_outputs_take_their_attention_with_them() -> None:
    graph = fuse(spec(Two(), drop_outputs=("second", "sum")))
    assert [value.name for value in graph.outputs] == ["first"]
    assert len(attentions(graph.model.graph)) == 1


class NamesakeOutput(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"x": F.scaled_dot_product_attention(x, y, y), "z": x + 1}


def test_an_output_that_has_the_name_of_an_input_gets_another() -> None:
    graph = fuse(spec(NamesakeOutput()))
    assert [value.name for value in graph.inputs] == ["x", "y"]
    assert [value.name for value in graph.outputs] == ["x_out", "z"]
    assert graph.spec.about["renamed_outputs"] == {"x": "x_out"}
    graph = fuse(spec(NamesakeOutput(), drop_outputs=("x",)))
    assert [value.name for value in graph.outputs] == ["z"]
    assert "renamed_outputs" not in graph.spec.about


def test_the_operator_is_known_to_onnx_afterwards() -> None:
    assert onnx.defs.has("FusedAttention", 1, "crossfuse")
