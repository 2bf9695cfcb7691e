"""What is shown of a bundle, on bundles and manifests that say what each line is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossfuse.bundle.manifest import EngineInfo, PrefixReuse, StageSpec, TargetEntry
from crossfuse.bundle.store import Bundle
from crossfuse.commands.output import Output
from crossfuse.commands.tables import (
    show_boundary,
    show_built,
    show_bundle,
    show_kept_context,
    show_ledger,
    show_parity,
    show_prefix,
    show_split,
    show_target,
    show_weights,
    show_with_queries,
)
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.core.tensors import TensorSpec
from crossfuse.parity.report import Divergence, OutputParity, ParityReport

Shown = Callable[..., tuple[str, str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Output and errors of a function of this module, with runs of spaces as one."""

    def call(function: Callable[..., None], *arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        function(Output(as_json=False), *arguments)
        got = capsys.readouterr()
        return " ".join(got.out.split()), " ".join(got.err.split())

    return call


@pytest.fixture
def bundle(zoo_bundle: Callable[[str], Bundle]) -> Bundle:
    return zoo_bundle("cross_modal_attention")


def test_a_ledger_tells_what_did_not_fuse(shown: Shown) -> None:
    rows = (
        LedgerRow("a.attn", "self", "sdpa", 4, 4, 8, 8, fused={"onnx": "Attention"}),
        LedgerRow("b.attn", "unknown", None, reasons={"capture": "its softmax is a sigmoid"}),
    )
    out, err = shown(show_ledger, Ledger(rows), ("onnx",))
    assert "2 attentions (1 self, 1 unknown); 1 fused in onnx" in out
    assert "a.attn │ self │ 4×8 │ sdpa │ Attention" in out
    assert "b.attn │ unknown │ ? │ not captured │ not fused" in out
    assert err == "warning: b.attn: its softmax is a sigmoid"
    out, err = shown(show_ledger, Ledger(()), ())
    assert "0 attentions (none)" in out
    assert err == ""


def test_a_failed_parity_is_not_hidden(shown: Shown, bundle: Bundle) -> None:
    good = dict(bundle.manifest.targets["ort-cpu"].parity or {})
    out, _ = shown(show_parity, good)
    assert "passed at 7 points, 1 of them given, against the eager model in float64" in out
    name = next(iter(good["outputs"]))
    nothing = {"max_abs": None, "max_rel": None, "cosine": None, "passed": False}
    bad = good | {
        "passed": False,
        "outputs": {name: good["outputs"][name] | nothing},
        "notes": ["a note"],
        "reference_reason": "the model refuses float64",
        "points": good["points"][:1],
        "kinds": [],
    }
    out, _ = shown(show_parity, bad)
    assert "failed at 1 point, against" in out
    assert f"{name} │ ∞ │ ∞ │ – │" in out
    assert out.endswith("a note")
    assert "The reference: the model refuses float64" in out


def test_a_target_says_its_precision_and_engine(shown: Shown) -> None:
    plain = TargetEntry({"model": "m"}, ("m",), "fp32", {})
    assert shown(show_target, "ort-cpu", plain) == ("", "")
    engine = EngineInfo("tensorrt", "10.14", ("8.9",), ({"batch": (1, 4, 16)},))
    kept = {f"n{i}": f"reason {min(i, 9)}" for i in range(12)}
    half = replace(plain, precision="mixed", kept=kept, engine=engine)
    out, _ = shown(show_target, "tensorrt", half)
    assert "tensorrt computes in mixed; 12 nodes stay in fp32 3 × reason 9 1 × reason 0" in out
    assert "… and 2 more reasons (--json)" in out
    assert "tensorrt: engine of tensorrt 10.14 for compute capability 8.9" in out
    assert out.endswith("profile batch=1:4:16")
    out, _ = shown(
        show_target, "t", replace(plain, engine=replace(engine, compute_capabilities=()))
    )
    assert "compute capability the GPU that it was built on" in out


def test_a_boundary_names_everything(shown: Shown, bundle: Bundle) -> None:
    out, _ = shown(show_boundary, bundle)
    for name in (*bundle.manifest.files, *bundle.manifest.dims):
        assert name in out
    assert "kind zoo, name cross_modal_attention, size tiny, seed 0" in out
    assert "exported with" not in out
    assert "reference.npz │ 0." in out
    assert "build, verify" in out
    source = {"dynamic": {"b": {"1": "n:1:4"}}, "context": ["b"], "drop_outputs": ["x", "y*"]}
    manifest = replace(bundle.manifest, source={**bundle.manifest.source, **source})
    out, _ = shown(show_boundary, Bundle(bundle.path, manifest))
    assert "exported with context b exported with dynamic axes b:1=n:1:4" in out
    assert "exported with dropped outputs x, y*" in out


def test_a_split_is_counted(shown: Shown, bundle: Bundle) -> None:
    kept = TensorSpec("context:attn.key", "float16", ("contexts", "length", 8))
    stages = {
        "context": StageSpec((), (kept,), 3_000_000_000),
        "query": StageSpec((), (), 1_000_000_000),
    }
    sizes = {"contexts": 2, "length": 5}
    manifest = replace(bundle.manifest, stages=stages, example=sizes)
    out, _ = shown(show_split, manifest)
    assert "context 3 GFLOP; query 1 GFLOP (at contexts=2, length=5)" in out
    assert "75% of the work is done once per context; so are the keys and values of 1" in out
    out, _ = shown(show_kept_context, manifest)
    number = np.zeros((1, 5, 8), np.float16).nbytes / 1e3
    assert f"[contexts, length, 8] │ {number:.1f}" in out
    assert "all │ │ 0.1" in out
    unknown = {"context": StageSpec((), (), None), "query": StageSpec((), (), None)}
    out, _ = shown(show_split, replace(manifest, stages=unknown))
    assert "context unknown FLOP" in out
    assert "The split; but no attention's keys and values" in out


def test_random_weights_are_a_warning(shown: Shown, bundle: Bundle) -> None:
    assert shown(show_weights, bundle.manifest) == ("", "")
    source = {**bundle.manifest.source, "missing_weights": ["head.weight"]}
    _, err = shown(show_weights, replace(bundle.manifest, source=source))
    assert "warning: 1 weights are random, as the checkpoint lacks them: head.weight" in err


def test_what_is_computed_with_the_queries_is_told_by_reason(shown: Shown, bundle: Bundle) -> None:
    assert shown(show_with_queries, bundle.manifest) == ("", "")
    kept = {"sum_1": "it joins", "mean": "it joins", "softmax": "Softmax runs along the batch"}
    whole, _ = shown(show_with_queries, replace(bundle.manifest, with_queries=kept))
    assert whole == (
        "not split: nothing worth keeping is computed from the context alone computed with the "
        "queries, though of the context alone: sum_1, mean: it joins softmax: Softmax runs along "
        "the batch"
    )
    many = {f"v{i}": f"reason {i}" for i in range(10)}
    out, _ = shown(show_with_queries, replace(bundle.manifest, with_queries=many))
    assert "… and 2 more reasons (--json)" in out


def test_prefix_reuse_is_told_or_why_there_is_none(shown: Shown, bundle: Bundle) -> None:
    assert shown(show_prefix, bundle.manifest) == ("", "")
    found = PrefixReuse(576, ("a", "b"))
    out, _ = shown(show_prefix, replace(bundle.manifest, prefix=found))
    assert out == (
        "prefix reuse: of the context's 576 tokens in front of the queries', the keys and values "
        "of 2 attentions are computed once (a, b)"
    )
    none = PrefixReuse(None, (), "embed: where the context's tokens stand is computed")
    out, _ = shown(show_prefix, replace(bundle.manifest, prefix=none))
    assert out.startswith("no prefix reuse: keys and values of the context's tokens")
    assert out.endswith("embed: where the context's tokens stand is computed")


def test_a_whole_bundle(shown: Shown, bundle: Bundle) -> None:
    built, _ = shown(show_built, bundle)
    whole, _ = shown(show_bundle, bundle)
    for text in ("Fusion ledger", "Parity of ort-cpu", "Parity of onnx"):
        assert text in built
        assert text in whole
    assert f"bundle written to {bundle.path}" in built
    assert "Files" in whole
    assert "Files" not in built
    bare = {n: replace(t, parity=None) for n, t in bundle.manifest.targets.items()}
    out, _ = shown(show_built, Bundle(Path("x"), replace(bundle.manifest, targets=bare)))
    assert "Parity" not in out


def test_a_divergence_is_a_warning(shown: Shown) -> None:
    output = OutputParity(0.5, 0.5, 0.9, 1e-5, "floor of fp32", {"batch": 1}, True)
    found = Divergence("a.attn", None, error=0.5, tolerance=1e-5, evaluations=3)
    report = ParityReport(
        "onnx", "CPU", "fp32", "float64", ({"batch": 1},), {"y": output}, fault=found
    )
    out, err = shown(show_parity, report)
    assert "failed at 1 point" in out
    assert err.startswith("warning: the first difference is in attention a.attn (error 0.5")
