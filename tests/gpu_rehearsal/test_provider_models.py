"""Whole models on the CUDA provider: every stage loads, no float is computed on the CPU, kernels are those of the ledger."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import crossfuse
from coverage.cases import CASES
from crossfuse.assembly import Stages, assemble
from crossfuse.build.files import load_graph
from crossfuse.build.precision.choose import half_stages
from crossfuse.build.targets import TARGETS, lower_stages
from crossfuse.bundle.store import Bundle
from crossfuse.specs import CONTEXTS, Dim
from gpu_rehearsal.provider import CAPABILITIES, GRID, Job, Provider, kernels_promised

PRECISIONS = ("fp32", "fp16", "bf16")
TARGET = TARGETS["ort-cuda"]
ZOO = ("cross_modal_attention", "clip", "vilt", "qformer", "dalle")


def stages_of(bundle: Bundle) -> Stages:
    """Split, even if the bundle is whole; a model that can't be split stays whole."""
    manifest = bundle.manifest
    model = load_graph(bundle, manifest.fused_graph)
    decode = None if manifest.decode is None else manifest.decode.tokens
    return assemble(model, manifest.context, manifest.dims, manifest.example, decode=decode)


def sizes_of(dims: Mapping[str, Dim], example: Mapping[str, int], grid: tuple[int, ...]) -> Iterator[dict[str, int]]:
    """The example, all smallest, and each dimension over the grid as far as its range goes; the batch stays small."""
    batches = {name for name, dim in dims.items() if name in (CONTEXTS, "batch")}
    yield dict(example)
    yield {name: dim.min for name, dim in dims.items()}
    for name in dims.keys() - batches:
        for size in grid:
            if dims[name].min <= size <= (dims[name].max or size):
                yield {**example, name: size}


def pairs_of(dims: Mapping[str, Dim], example: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """All pairs of sizes of the grid, on the two sides of a model that has two lengths."""
    lengths = [name for name in dims if name not in (CONTEXTS, "batch")]
    for pair in itertools.product(GRID, repeat=len(lengths)) if len(lengths) == 2 else ():
        if all(dims[n].min <= size <= (dims[n].max or size) for n, size in zip(lengths, pair, strict=True)):
            yield {**example, **dict(zip(lengths, pair, strict=True))}


def check(provider: Provider, stages: Stages, precision: str, capability: str, grid: tuple[int, ...] = GRID) -> None:
    graphs = stages.graphs
    if precision != "fp32":
        graphs = half_stages(graphs, precision, half_frontier=True, without_bf16=TARGET.without_bf16).graphs
    lowered = lower_stages(graphs, TARGET)
    runs = [*sizes_of(stages.dims, stages.example, grid), *(pairs_of(stages.dims, stages.example) if grid is GRID else ())]
    # No fan-out: as many queries as contexts.
    batch = stages.example.get("batch", 2)
    runs = [{**sizes, **dict.fromkeys(sizes.keys() & {CONTEXTS, "batch"}, batch)} for sizes in runs]
    results = provider.run([Job(low.model, runs) for low in lowered.values()], capability)
    for (stage, low), result in zip(lowered.items(), results, strict=True):
        where = f"{stage} in {precision} on {capability}"
        assert "failed" not in result, f"{where}: {result['failed']}"
        assert result["on_cpu"] == [], where
        assert low.reasons == {}
        assert result["on_cuda"].get("Attention", 0) == len(low.kernels)
        for run in result["runs"]:
            assert run["error"] is None, f"{where}: {run}"
            promised = Counter(kernels_promised(text, 1, 1) for text in low.kernels.values())
            unequal = Counter(kernels_promised(text, 1, 2) for text in low.kernels.values())
            assert Counter(run["kernels"]) in (promised, unequal), f"{where}: {run}"
            assert "math" not in run["kernels"]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(provider: Provider, zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    stages = stages_of(zoo_bundle(name))
    for precision in PRECISIONS:
        check(provider, stages, precision, "8.0", (7, 8, 257))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ZOO)
def test_zoo_on_every_device(provider: Provider, zoo_bundle: Callable[[str], Bundle], name: str, capability: str) -> None:
    stages = stages_of(zoo_bundle(name))
    for precision in PRECISIONS:
        check(provider, stages, precision, capability)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_coverage(provider: Provider, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    bundle = crossfuse.export(case.make(), tmp_path / "b", ["onnx"], allow_unfused=bool(case.unfused))
    stages = stages_of(bundle)
    for precision in PRECISIONS:
        check(provider, stages, precision, "9.0")


def test_a_target_runs_at_every_size_of_its_ranges(provider: Provider, zoo_bundle: Callable[[str], Bundle]) -> None:
    """What the README builds, whole and split: every length that the bundle promises, and several queries per context."""
    bundle = zoo_bundle("qformer")
    stages = stages_of(bundle)
    (whole,) = bundle.target("ort-cuda").stages.values()
    runs = [stages.example | {CONTEXTS: 2, "batch": queries} for queries in (2, 6)]
    for name, dim in stages.dims.items():
        if name not in ("batch", CONTEXTS):
            assert dim.max is not None
            runs += [stages.example | {CONTEXTS: 1, "batch": 1, name: size} for size in range(dim.min, dim.max + 1)]
    split = [Job(low.model, runs) for low in lower_stages(stages.graphs, TARGET).values()]
    for result in provider.run([Job(bundle.path / whole, runs), *split]):
        assert result["on_cpu"] == []
        assert {run["error"] for run in result["runs"]} == {None}
        assert {kernel for run in result["runs"] for kernel in run["kernels"]} <= {"efficient"}
    assert {row.fused["ort-cuda"] for row in bundle.ledger} == {"Attention (efficient)"}
