"""Context split: both stages together compute what eager PyTorch computes, for any number of
queries per context."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from coverage.cases import CASES
from crossfuse import InputError, ModelSpec, runtime
from crossfuse.cli import main
from crossfuse.export.split import partition
from crossfuse.export.split.dependence import Content, Dependence
from crossfuse.models.registry import ZOO, zoo_spec

FAN_OUTS = [(1, 1), (1, 5), (3, 1), (2, 4)]
QUICK = ("cross_modal_attention", "qformer")
OTHERS = (
    *(name for name in ZOO if name not in QUICK),
    "blip_retrieval",
    "bart",
    "whisper",
    "blip_vqa",
    "t5",
    "trocr",
    "mllama",
    "kosmos2",
    "sam",
    "lxmert",
    "blip2_qformer",
    "vilt",
    "bridgetower",
    "speecht5",
)
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


def spec_of(name: str) -> ModelSpec:
    return zoo_spec(name, "tiny") if name in ZOO else CASES[name].make()


@pytest.fixture(scope="module")
def split_bundle(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[ModelSpec, crossfuse.Bundle]]:
    made: dict[str, tuple[ModelSpec, crossfuse.Bundle]] = {}

    def get(name: str) -> tuple[ModelSpec, crossfuse.Bundle]:
        if name not in made:
            spec = spec_of(name)
            made[name] = (
                spec,
                crossfuse.export(
                    spec, tmp_path_factory.mktemp("split") / name, ["onnx", "ort-cpu"]
                ),
            )
        return made[name]

    return get


def sample(
    spec: ModelSpec, shared: str | None, contexts: int, fan_out: int
) -> tuple[dict, dict, dict[str, Tensor]]:
    """Context inputs, query inputs, and what eager is given: each context repeated for its
    queries."""
    sizes = dict(spec.example_sizes)
    if shared is not None:
        sizes[shared] = contexts * fan_out
    inputs = spec.sample(sizes, seed=contexts * 10 + fan_out)
    own = {}
    for name in spec.context:
        batched = shared is not None and spec.axes.get(name, {}).get(0) == shared
        own[name] = inputs[name][::fan_out].contiguous() if batched else inputs[name]
        inputs[name] = own[name].repeat_interleave(fan_out, dim=0) if batched else own[name]
    queries = {name: t.numpy() for name, t in inputs.items() if name not in spec.context}
    return {name: t.numpy() for name, t in own.items()}, queries, inputs


@pytest.mark.parametrize("name", MODELS)
def test_split_equals_eager(split_bundle: Any, name: str) -> None:
    spec, bundle = split_bundle(name)
    shared = bundle.manifest.shared_batch
    assert set(bundle.manifest.stages) == {"context", "query"} | (
        {"step"} if spec.decode else set()
    )
    for target in bundle.targets:
        assert bundle.ledger.counts(target) == bundle.ledger.counts()
        assert bundle.manifest.targets[target].parity["passed"]
    with runtime.load(bundle.path, "ort-cpu") as session:
        for contexts, fan_out in FAN_OUTS if shared is not None else FAN_OUTS[:1]:
            own, queries, eager = sample(spec, shared, contexts, fan_out)
            with torch.no_grad():
                expected = spec.run(eager)
            context = session.encode(**own)
            results = [
                session.query(context, **queries),
                session.query(context, **queries),
                session.run(**own, **queries),
            ]
            for got in results:
                for output, tensor in expected.items():
                    scale = (
                        max(1.0, float(tensor.abs().max())) if tensor.is_floating_point() else 1.0
                    )
                    np.testing.assert_allclose(
                        got[output], tensor.numpy(), atol=5e-5 * scale, rtol=0, err_msg=output
                    )


@pytest.mark.parametrize("name", MODELS)
def test_no_product_of_the_context_is_left(split_bundle: Any, name: str) -> None:
    """In the query stage, nothing is multiplied that depends on the context alone; K and V
    projections are gone."""
    if name == "sam":
        pytest.skip("SAM tiles the image's tokens for each prompt before it projects them")
    _, bundle = split_bundle(name)
    frontier = {spec.name for spec in bundle.manifest.stages["context"].outputs}
    for target in bundle.targets:
        model = ir.load(bundle.path / bundle.manifest.targets[target].stages["query"])
        dependence = Dependence(model.graph, frontier)
        left = [
            n.name
            for n in model.graph
            if n.op_type in ("MatMul", "Gemm") and dependence.of(n.outputs[0]) == Content.CONTEXT
        ]
        assert left == []


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_is_stored_twice(split_bundle: Any, name: str) -> None:
    _, bundle = split_bundle(name)
    seen: dict[bytes, tuple[str, int]] = {}
    graphs = [f for entry in bundle.manifest.targets.values() for f in entry.stages.values()]
    for file in graphs:
        for value in ir.load(bundle.path / file).graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < 1024:
                continue
            assert isinstance(tensor, ir.ExternalTensor), (
                f"{file}: {value.name} is inside the graph"
            )
            place = (str(tensor.location), tensor.offset or 0)
            assert seen.setdefault(tensor.tobytes() + str(tensor.dtype).encode(), place) == place


def test_kernels_keep_one_context_for_many_queries(split_bundle: Any) -> None:
    """Keys and values reach the kernels as they are on the frontier: nothing expands or tiles
    them."""
    _, bundle = split_bundle("qformer")
    graph = onnx.load(
        bundle.path / bundle.manifest.targets["ort-cpu"].stages["query"], load_external_data=False
    ).graph
    frontier = {spec.name for spec in bundle.manifest.stages["context"].outputs}
    cross = [
        node
        for node in graph.node
        if node.op_type in ("Attention", "MultiHeadAttention") and "cross" in node.name
    ]
    assert len(cross) == 2
    assert all(set(node.input[1:3]) <= frontier for node in cross)


# Contexts


def qformer(split_bundle: Any, contexts: int, fan_out: int) -> tuple[Any, dict, dict]:
    spec, bundle = split_bundle("qformer")
    own, queries, _ = sample(spec, bundle.manifest.shared_batch, contexts, fan_out)
    return runtime.load(bundle.path, "ort-cpu"), own, queries


def test_contexts_are_selected(split_bundle: Any) -> None:
    session, own, queries = qformer(split_bundle, 3, 2)
    contexts = session.encode(**own)
    assert len(contexts) == contexts.count == 3
    assert contexts.nbytes == sum(t.nbytes for t in contexts.tensors.values())
    whole = session.query(contexts, **queries)
    for order in ([2, 0], [1], [0, 0, 2], [-1]):
        part = {
            n: q.reshape(3, 2, *q.shape[1:])[order].reshape(-1, *q.shape[1:])
            for n, q in queries.items()
        }
        got = session.query(contexts.select(order), **part)
        for name, array in whole.items():
            expected = array.reshape(3, 2, *array.shape[1:])[order].reshape(-1, *array.shape[1:])
            np.testing.assert_allclose(got[name], expected, atol=1e-5)
    for wrong in ([], [3], [-4]):
        with pytest.raises(InputError, match="out of range"):
            contexts.select(wrong)


def test_contexts_cannot_be_changed(split_bundle: Any) -> None:
    session, own, _ = qformer(split_bundle, 1, 1)
    context = session.encode(**own)
    for tensor in context.tensors.values():
        with pytest.raises(ValueError, match="read-only"):
            tensor[...] = 0
    with pytest.raises(TypeError):
        context.tensors["x"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        context.count = 5  # type: ignore[misc]


def test_misuse_is_refused_by_name(
    split_bundle: Any, zoo_bundle: Callable[[str], crossfuse.Bundle]
) -> None:
    session, own, queries = qformer(split_bundle, 2, 2)
    context = session.encode(**own)
    with pytest.raises(InputError, match="another bundle or target"):
        runtime.load(split_bundle("qformer")[1].path, "onnx").query(context, **queries)
    with pytest.raises(InputError, match="needs an encoded context"):
        session.query(own, **queries)
    with pytest.raises(
        InputError, match="no multiple of the number of contexts.*got 3 queries, 2 contexts"
    ):
        session.query(context, **{n: q[:3] for n, q in queries.items()})
    with pytest.raises(InputError, match="names are wrong"):
        session.query(context, **own)
    with pytest.raises(InputError, match="names are wrong"):
        session.encode(**queries)
    with runtime.load(zoo_bundle("cross_modal_attention").path, "ort-cpu") as unsplit:
        assert set(unsplit.stages) == {"model"}
        with pytest.raises(InputError, match="no context stage"):
            unsplit.encode(**own)
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.query(context, **queries)


def test_binding_of_both_stages(split_bundle: Any) -> None:
    session, own, queries = qformer(split_bundle, 2, 1)
    bound = session.bind(**own, **queries)
    for name, array in session.run(**own, **queries).items():
        np.testing.assert_allclose(bound.run()[name], array, atol=1e-6)


def alive() -> int:
    gc.collect()
    return sum(isinstance(o, runtime.Context) for o in gc.get_objects())


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_cache_under_eviction_from_many_threads(split_bundle: Any, count: int) -> None:
    """8 threads × so many queries over 16 contexts, with room for some of them."""
    session, own, queries = qformer(split_bundle, 1, 2)
    generator = np.random.default_rng(0)
    inputs = [
        {**own, "image_features": generator.standard_normal(own["image_features"].shape, "f4")}
        for _ in range(16)
    ]
    expected = [session.run(**given, **queries) for given in inputs]
    size = session.encode(**inputs[0]).nbytes
    cache = runtime.ContextCache(session, max_bytes=5 * size)
    wrong: list[object] = []
    before = alive()

    def ask(seed: int) -> None:
        choose = np.random.default_rng(seed)
        for _ in range(count):
            i = int(choose.integers(16))
            got = session.query(cache.encode(**inputs[i]), **queries)
            if cache.nbytes > cache.max_bytes:
                wrong.append(cache.nbytes)
            wrong.extend(n for n, a in expected[i].items() if not np.allclose(got[n], a, atol=1e-5))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.hits + cache.misses == 8 * count
    assert cache.misses > 16
    assert cache.nbytes == len(cache) * size <= cache.max_bytes
    assert alive() - before == len(cache), "what was dropped is gone"
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_cache_goes_by_content(split_bundle: Any) -> None:
    session, own, _ = qformer(split_bundle, 1, 1)
    cache = runtime.ContextCache(session, max_bytes=1 << 20)
    first = cache.encode(**own)
    assert cache.encode(**{name: array.copy() for name, array in own.items()}) is first
    changed = own | {"image_features": own["image_features"] + 1e-3}
    assert cache.encode(**changed) is not first
    assert (cache.hits, cache.misses, len(cache)) == (1, 2, 2)
    with pytest.raises(InputError, match="names are wrong"):
        cache.encode(other=own["image_mask"])
    small = runtime.ContextCache(session, max_bytes=16)
    small.encode(**own)
    assert (len(small), small.nbytes) == (0, 0)


class SingleStream(nn.Module):
    """Image and text meet before the first attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, self.embed(y)], 1)
        return self.attention(z, z, z, need_weights=False)[0]


@pytest.mark.parametrize("vilt", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_single_stream_says_what_it_is(
    split_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], vilt: bool
) -> None:
    """Only the image's embeddings can be computed once."""
    bundle = (
        split_bundle("vilt")[1]
        if vilt
        else crossfuse.export(two_inputs(SingleStream()), tmp_path / "b")
    )
    assert not any(
        tensor.name.endswith(".key") for tensor in bundle.manifest.stages["context"].outputs
    )
    exits(0, ["inspect", str(bundle.path)])
    assert (
        "but no attention's keys and values: the modalities meet before the first one"
        in capsys.readouterr().out
    )


def test_command_line_asks_one_context_many_files(
    split_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, bundle = split_bundle("qformer")
    shared = bundle.manifest.shared_batch
    own, first, _ = sample(spec, shared, 1, 2)
    second = {name: array[:1] for name, array in first.items()}
    files = {}
    for name, arrays in (("image", own), ("a", first), ("b", second)):
        files[name] = str(tmp_path / f"{name}.npz")
        np.savez(files[name], **arrays)
    run = [
        "run",
        str(bundle.path),
        "--target",
        "ort-cpu",
        "--context",
        files["image"],
        "--input",
        files["a"],
        "--input",
        files["b"],
    ]
    outputs = [str(tmp_path / "x.npz"), str(tmp_path / "y.npz")]
    exits(0, [*run, "--output", outputs[0], "--output", outputs[1]])
    with runtime.load(bundle.path, "ort-cpu") as session:
        context = session.encode(**own)
        for file, queries in zip(outputs, (first, second), strict=True):
            with np.load(file) as got:
                for name, array in session.query(context, **queries).items():
                    np.testing.assert_array_equal(got[name], array)
    exits(2, [*run, "--output", outputs[0]])
    assert "each --input needs its own --output" in capsys.readouterr().err
    exits(0, ["inspect", str(bundle.path)])
    shown = capsys.readouterr().out
    assert (
        "of the work is done once per context; so are the keys and values of 2 attentions" in shown
    )
    assert "keys and values of 2 attentions" in shown
    assert "context:layers.0.cross_attention.attention.key" in shown
    assert "GFLOP" in shown


def exits(code: int, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == code


# What can't be split


class Statistics(nn.Module):
    """Contexts that depend on each other: normalised over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = y - y.sum(0, keepdim=True) / 7
        return self.attention(x, y, y, need_weights=False)[0]


def two_inputs(module: nn.Module, context: tuple[str, ...] = ("y",)) -> ModelSpec:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 3, 16), "y": torch.randn(2, 5, 16)}
    dynamic = {"x": {0: "batch:1:16", 1: "text:1:32"}, "y": {0: "batch", 1: "image:1:32"}}
    return ModelSpec(module.eval(), inputs, dynamic, context)


def test_nothing_to_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to split: every input is context"):
        crossfuse.export(two_inputs(Statistics(), ("x", "y")), tmp_path / "b")


def test_dependent_contexts_are_not_encoded_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sum over the batch isn't what it is over repeated contexts, nor over some of them."""
    bundle = crossfuse.export(two_inputs(Statistics()), tmp_path / "b")
    assert set(bundle.manifest.stages) == {"model"}
    assert list(bundle.manifest.with_queries.values()) == ["it joins the samples of the batch"]
    exits(0, ["inspect", str(bundle.path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "not split: nothing worth keeping is computed from the context alone" in shown
    assert "it joins the samples of the batch" in shown


def test_parity_stands_behind_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture that nobody finds fails at several queries per context."""
    monkeypatch.setattr(partition, "mixing", lambda *_: {})
    with pytest.raises(
        crossfuse.ParityError,
        match=r"does not compute.*Without the split.*the same graph passes.*whole=True",
    ):
        crossfuse.export(two_inputs(Statistics()), tmp_path / "b")
