"""What the engines of a build tell of their linear layers, over a builder that is stood in for."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfuse.api.build_options import BuildOptions
from crossfuse.api.built_engines import EngineRequest, build_engines
from crossfuse.api.built_linears import built_linears
from crossfuse.api.fused_graph import fused_stages
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.linear_ledger import INT8, UNKNOWN, weights_in
from crossfuse.core.target import TARGETS
from crossfuse.core.tensorrt_layers import Layer
from crossfuse.errors import QuantizationError
from crossfuse.targets.precision.stages import half_stages
from crossfuse.targets.quantize.rules import Refusal
from crossfuse.targets.quantize.stages import PlannedLayer
from crossfuse.targets.tensorrt import build_engine as engines
from crossfuse.targets.tensorrt.build_engine import Engine

FORMS = {
    "int8": Layer("n", "gemm", (), ("int8",), ("int8",)),
    "weights": Layer("n", "gemm", (), ("fp16",), ("int8",)),
    "half": Layer("n", "gemm", (), ("fp16",), ("fp16",)),
    "kept": Layer("n", "gemm", (), ("fp16",), ("fp16",)),
}


def layer(key: str, refusal: Refusal | None = None) -> PlannedLayer:
    weights = None if refusal is not None else f"{key}:weights"
    return PlannedLayer(key, key, "MatMul", (9, 9), "model", weights, refusal)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_layer_that_is_not_on_codes_fails_by_name(
    target: str, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for both libraries, by the layers of the engine."""
    said = [Layer(f.kernel, f.kind, (key,), f.inputs, f.constants) for key, f in FORMS.items()]
    monkeypatch.setattr(
        engines, "build_engine", lambda *_, **__: Engine({}, {}, "1.0", False, said)
    )
    monkeypatch.setattr("crossfuse.targets.tensorrt.libraries.library_version", lambda _: "1.0")
    known, bundle = TARGETS[target], open_bundle(bundle_copy)
    stages = fused_stages(bundle).stages
    assert set(stages.graphs) == {"model"}
    why = Refusal("narrow", asked=False)
    planned = [*map(layer, ("int8", "weights", "half", "silent")), layer("kept", why)]
    planned += [layer("unread", Refusal("in a body", asked=True))]
    options = BuildOptions("int8", compute_capabilities=("8.9",))
    request = EngineRequest(stages, known, options, bundle.manifest, planned)
    with write_bundle(bundle_copy, modify=True) as writer:
        built = build_engines(half_stages(stages.graphs, "fp16"), request, writer, print)
        ledger = built_linears(known, "int8", planned, {}, built, writer.folder)
    assert {row.site: row.became for row in ledger} == {
        "int8": INT8,
        "weights": weights_in(8, "fp16"),
        "half": "kept in fp16",
        "silent": UNKNOWN,
        "kept": "kept in fp16",
        "unread": UNKNOWN,
    }
    reasons = {row.site: row.reason for row in ledger}
    assert (reasons["kept"], reasons["unread"]) == ("narrow", "in a body")
    assert known.provider in reasons["half"]
    assert known.provider in reasons["silent"]
    assert [row.site for row in ledger if row.missed] == ["weights", "half", "silent", "unread"]
    with pytest.raises(QuantizationError, match=rf"4 of 6 linear layers .* in {target}"):
        ledger.require_quantized(target)
    assert built.engine is not None
    assert built.engine.library == target.replace("-", "_")
