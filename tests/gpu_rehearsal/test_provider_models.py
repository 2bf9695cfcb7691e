"""Whole models on the CUDA provider: every stage loads, no float is computed on the CPU, kernels
are those of the ledger."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import crossfuse
from coverage.cases import CASES
from crossfuse.bundle.store import Bundle
from crossfuse.core.target import TARGETS
from crossfuse.core.tensors import CONTEXTS, Dim
from crossfuse.export.split.assembly import Stages, assemble
from crossfuse.targets.graph_files import load_graph
from crossfuse.targets.precision.stages import half_stages
from crossfuse.targets.registry import lower_stages
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


def sizes_of(
    dims: Mapping[str, Dim], example: Mapping[str, int], grid: tuple[int, ...]
) -> Iterator[dict[str, int]]:
    """The example, all smallest, and each dimension over the grid as far as its range goes; the
    batch stays small."""
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
        if all(
            dims[n].min <= size <= (dims[n].max or size)
            for n, size in zip(lengths, pair, strict=True)
        ):
            yield {**example, **dict(zip(lengths, pair, strict=True))}


@dataclass(frozen=True)
class Found:
    """What one precision of a model gave: graphs, runs and their errors, nodes with floats on the
    CPU, copies from the device to integer nodes on the CPU, and the kernels that ran.
    """

    graphs: int
    runs: int
    errors: tuple[str, ...]
    on_cpu: tuple[str, ...]
    to_host: int
    kernels: frozenset[str]


def check(
    provider: Provider,
    stages: Stages,
    precision: str,
    capability: str,
    grid: tuple[int, ...] = GRID,
    *,
    pairs: bool = False,
) -> Found:
    """Run all stages at all sizes; graphs that don't load or kernels that the ledger doesn't
    promise are errors."""
    graphs = stages.graphs
    if precision != "fp32":
        graphs = half_stages(
            graphs, precision, half_handover=True, without_bf16=TARGET.without_bf16
        ).graphs
    lowered = lower_stages(graphs, TARGET)
    runs = [
        *sizes_of(stages.dims, stages.example, grid),
        *(pairs_of(stages.dims, stages.example) if pairs else ()),
    ]
    # No fan-out: as many queries as contexts.
    batch = stages.example.get("batch", 2)
    runs = [{**sizes, **dict.fromkeys(sizes.keys() & {CONTEXTS, "batch"}, batch)} for sizes in runs]
    results = provider.run([Job(low.model, runs) for low in lowered.values()], capability)
    errors, on_cpu, kernels, executed, to_host = [], [], set(), 0, 0
    for (stage, low), result in zip(lowered.items(), results, strict=True):
        where = f"{stage} in {precision} on {capability}"
        if "failed" in result:
            errors.append(f"{where}: {result['failed']}")
            continue
        on_cpu += result["on_cpu"]
        errors += [f"{where}: {site}: {reason}" for site, reason in low.reasons.items()]
        to_host += result["to_host"]
        if result["on_cuda"].get("Attention", 0) != len(low.kernels):
            errors.append(f"{where}: {result['on_cuda']}")
        promised = Counter(kernels_promised(text, 1, 1) for text in low.kernels.values())
        unequal = Counter(kernels_promised(text, 1, 2) for text in low.kernels.values())
        for run in result["runs"]:
            executed += 1
            kernels |= set(run["kernels"])
            if run["error"] is not None or Counter(run["kernels"]) not in (promised, unequal):
                errors.append(f"{where}: {run}")
    return Found(len(lowered), executed, tuple(errors), tuple(on_cpu), to_host, frozenset(kernels))


def require(found: Found) -> None:
    assert found.errors == ()
    assert found.on_cpu == ()
    assert "math" not in found.kernels


@pytest.mark.parametrize("name", ZOO)
def test_zoo(provider: Provider, zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    stages = stages_of(zoo_bundle(name))
    for precision in PRECISIONS:
        require(check(provider, stages, precision, "8.0", (7, 8, 257)))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ZOO)
def test_zoo_on_every_device(
    provider: Provider, zoo_bundle: Callable[[str], Bundle], name: str, capability: str
) -> None:
    stages = stages_of(zoo_bundle(name))
    for precision in PRECISIONS:
        require(check(provider, stages, precision, capability, pairs=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_coverage(provider: Provider, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    bundle = crossfuse.export(
        case.make(), tmp_path / "b", ["onnx"], allow_unfused=bool(case.unfused)
    )
    stages = stages_of(bundle)
    for precision in PRECISIONS:
        require(check(provider, stages, precision, "9.0"))


def test_a_target_runs_at_every_size_of_its_ranges(
    provider: Provider, zoo_bundle: Callable[[str], Bundle]
) -> None:
    """What the README builds, whole and split: every length that the bundle promises, and several
    queries per context."""
    bundle = zoo_bundle("qformer")
    stages = stages_of(bundle)
    (whole,) = bundle.target("ort-cuda").stages.values()
    runs = [stages.example | {CONTEXTS: 2, "batch": queries} for queries in (2, 6)]
    for name, dim in stages.dims.items():
        if name not in ("batch", CONTEXTS):
            assert dim.max is not None
            runs += [
                stages.example | {CONTEXTS: 1, "batch": 1, name: size}
                for size in range(dim.min, dim.max + 1)
            ]
    split = [Job(low.model, runs) for low in lower_stages(stages.graphs, TARGET).values()]
    for result in provider.run([Job(bundle.path / whole, runs), *split]):
        assert result["on_cpu"] == []
        assert {run["error"] for run in result["runs"]} == {None}
        assert {kernel for run in result["runs"] for kernel in run["kernels"]} <= {"efficient"}
    assert {row.fused["ort-cuda"] for row in bundle.ledger} == {"Attention (efficient)"}
