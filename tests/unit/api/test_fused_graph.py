"""The fused graph of a bundle, and its stages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossfuse import BundleError
from crossfuse.api.fused_graph import FUSED_GRAPH, WEIGHTS, fused_stages
from crossfuse.bundle.store import Bundle, open_bundle

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def fused_nodes(graph: object) -> int:
    return sum(node.op_type == "FusedAttention" for node in graph.graph)


def test_a_whole_bundle_has_one_stage(zoo_bundle: Callable[[str], Bundle]) -> None:
    bundle = zoo_bundle("qformer")
    fused = fused_stages(bundle)
    assert list(fused.stages.graphs) == ["model"]
    assert fused_nodes(fused.model) == len(bundle.ledger) == 6


def test_a_split_bundle_is_split_again() -> None:
    bundle = open_bundle(OLD)
    fused = fused_stages(bundle)
    assert list(fused.stages.graphs) == ["context", "query"]
    assert fused.stages.specs == bundle.manifest.stages
    assert fused.stages.shared_batch == "batch"
    assert fused_nodes(fused.stages.graphs["query"]) == 1


def test_a_bundle_that_was_split_elsewhere_is_refused() -> None:
    bundle = open_bundle(OLD)
    query = bundle.manifest.stages["query"]
    moved = replace(query, inputs=tuple(replace(t, name=f"{t.name}_") for t in query.inputs))
    manifest = replace(bundle.manifest, stages={**bundle.manifest.stages, "query": moved})
    with pytest.raises(BundleError, match="splits the model otherwise") as caught:
        fused_stages(replace(bundle, manifest=manifest))
    assert "stages of crossfuse 0.1.0" in str(caught.value)
    assert "Export the model again" in str(caught.value)


@pytest.mark.parametrize("name", [FUSED_GRAPH, WEIGHTS])
def test_damage_is_found_before_anything_is_parsed(name: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(OLD, tmp_path / "b"))
    (copy / name).write_bytes((copy / name).read_bytes()[::-1])
    with pytest.raises(BundleError, match=f"was changed .*{name}"):
        fused_stages(open_bundle(copy))
