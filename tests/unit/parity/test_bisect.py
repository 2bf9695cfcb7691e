"""`verify --bisect`: planted faults are found, named, and found soon."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import crossfuse
from coverage.rows import TARGETS
from crossfuse.bundle.store import Bundle, entry_of, open_bundle
from crossfuse.cli import app
from crossfuse.core.tensors import CONTEXTS
from crossfuse.parity.bisect import bisection_point
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.report import Divergence, ParityReport


@pytest.fixture
def bundles(
    zoo_bundle: Callable[[str], Bundle], shared_bundle: Callable[..., Bundle]
) -> dict[str, Path]:
    # The targets of the coverage suite, whose bundle this is.
    t5 = shared_bundle("coverage/t5", TARGETS)
    return {"qformer": zoo_bundle("qformer").path, "t5": t5.path}


def damaged(
    path: Path, folder: Path, target: str, stage: str, change: Callable[[ir.Model], None]
) -> Path:
    """A copy of the bundle with another graph for one stage, hashes renewed: a fault that only
    numbers show."""
    from crossfuse.targets.graph_files import save_graph

    copy = Path(shutil.copytree(path, folder / "bundle"))
    bundle = open_bundle(copy)
    file = bundle.target(target).stages[stage]
    model = ir.load(copy / file)
    change(model)
    weights = "planted.bin"
    save_graph(model, copy / file, copy / weights)
    data = json.loads((copy / "manifest.json").read_text())
    for name in (file, weights):
        if (copy / name).exists():
            entry = entry_of(copy / name)
            data["files"][name] = {"size": entry.size, "sha256": entry.sha256}
            if name == weights:
                data["targets"][target]["files"].append(weights)
    (copy / "manifest.json").write_text(json.dumps(data))
    return copy


def weights_of(model: ir.Model) -> Iterator[tuple[ir.Value, str]]:
    """Matrices, and the module whose product they are in."""
    for node in model.graph:
        if (
            node.op_type == "MatMul"
            and node.inputs[1] is not None
            and node.inputs[1].is_initializer()
        ):
            yield node.inputs[1], node.metadata_props.get("crossfuse.module", "")


def perturb(module: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        (value,) = [v for v, name in weights_of(model) if name == module]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.2), name=value.name)

    return change


def check(path: Path, target: str, site: str | None, module: str | None) -> None:
    said: list[str] = []
    report = crossfuse.verify(path, target, bisect=True, step=said.append)
    assert not report.passed
    fault = report.fault
    assert fault is not None
    sites = len(open_bundle(path).ledger)
    assert fault.evaluations < math.log2(sites) + 3
    assert (fault.site, fault.module) == (site, module)
    assert any(text.startswith("bisecting") for text in said)


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("layers.0.self_attention.attention.query", "layers.0.self_attention.attention"),
        ("layers.0.self_attention.attention.out", "layers.0.cross_attention.attention"),
        ("layers.1.query_feed_forward.feed_forward.up", "layers.2.self_attention.attention"),
        ("layers.2.cross_attention.attention.value", "layers.2.cross_attention.attention"),
        ("layers.3.self_attention.attention.out", None),
    ],
)
def test_perturbed_weight(
    module: str, site: str | None, bundles: dict[str, Path], tmp_path: Path
) -> None:
    copy = damaged(bundles["qformer"], tmp_path, "ort-cpu", "model", perturb(module))
    check(copy, "ort-cpu", site, module)


def test_perturbed_weight_in_a_split_bundle(bundles: dict[str, Path], tmp_path: Path) -> None:
    module = "decoder.block.1.layer.0.SelfAttention.v"
    copy = damaged(bundles["t5"], tmp_path, "ort-cpu", "query", perturb(module))
    check(copy, "ort-cpu", "decoder.block.1.layer.0.SelfAttention", module)
    first = "encoder.block.1.layer.0.SelfAttention.k"
    copy = damaged(bundles["t5"], tmp_path / "second", "ort-cpu", "context", perturb(first))
    check(copy, "ort-cpu", "encoder.block.1.layer.0.SelfAttention", first)


def test_dropped_mask(bundles: dict[str, Path], tmp_path: Path) -> None:
    """One attention forgets its mask; the attention itself is named, and no module before it."""
    site = "layers.2.self_attention.attention"

    def drop(model: ir.Model) -> None:
        (node,) = [n for n in model.graph if n.name == site]
        assert node.op_type == "Attention"
        node.replace_input_with(3, None)

    copy = damaged(bundles["qformer"], tmp_path, "ort-cpu", "model", drop)
    check(copy, "ort-cpu", site, None)


@pytest.mark.slow
def test_clean_bundles_have_no_fault(bundles: dict[str, Path], tmp_path: Path) -> None:
    for name, path in bundles.items():
        copy = Path(shutil.copytree(path, tmp_path / name))
        assert crossfuse.verify(copy, "ort-cpu", bisect=True).fault is None
        for precision in ("fp16", "bf16"):
            crossfuse.build(copy, "ort-cpu", precision=precision)
            assert crossfuse.verify(copy, "ort-cpu", bisect=True).fault is None


def test_command_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    module = "layers.1.self_attention.attention.key"
    copy = damaged(bundles["qformer"], tmp_path, "ort-cpu", "model", perturb(module))
    result = CliRunner().invoke(
        app, ["verify", str(copy), "--target", "ort-cpu", "--bisect", "--json"]
    )
    data = json.loads(result.stdout)
    assert data["fault"]["site"] == "layers.1.self_attention.attention"
    assert data["fault"]["module"] == module
    assert result.exit_code == 1


def test_the_point_to_bisect_at_has_one_query_per_context() -> None:
    """The first that fails among those; the first of those where none does."""
    many, one, other = (
        ReferencePoint({"batch": b, CONTEXTS: c}, 0, {}, {}, {})
        for b, c in ((4, 2), (3, 3), (1, 1))
    )
    reference = ReferenceSet("float64", (many, one, other))

    def report(*failing: int) -> ParityReport:
        return ParityReport("t", "x", "fp32", "float64", (), {}, failing=failing)

    assert bisection_point(report(0, 2), reference, "batch") is other
    assert bisection_point(report(0), reference, "batch") is one
    assert bisection_point(report(0), reference, None) is many


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Divergence("a.b", "a.c", 0.25, 1e-3, 4),
            "attention a.b; the first module beyond it is a.c",
        ),
        (Divergence("a.b", None, 0.25, 1e-3, 4), "attention a.b (error 0.25, tolerance 0.001)"),
        (Divergence(None, "a.c", math.inf, 1e-3, 4), "what follows the last attention"),
    ],
)
def test_a_divergence_is_told(found: Divergence, said: str) -> None:
    assert said in found.sentence()
    assert "4 evaluations" in found.sentence()
    data = found.to_json()
    assert data["error"] == (None if math.isinf(found.error) else found.error)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
