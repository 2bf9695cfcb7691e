"""Graph files that share their weights, and what is refused when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.bundle.store import open_bundle
from crossfuse.errors import BundleError
from crossfuse.targets.graph_files import Places, load_graph, save_graph
from onnx_building import Graph, normal
from small_graphs import computed, feeds_of, model_of


def product(*weights: np.ndarray) -> ir.Model:
    g = Graph()
    x = g.input("x", ["B", 32])
    for weight in weights:
        x = g.op("MatMul", x, g.weight(weight))
    g.op("Add", x, g.weight(normal(32)), outputs=["y"])
    g.output("y", ["B", 32])
    return model_of(g)


def test_equal_weights_are_written_once(tmp_path: Path) -> None:
    shared, own = normal(32, 32), normal(32, 32, seed=1)
    model = product(shared, own, shared)
    feeds = feeds_of(model)
    expected = computed(model, feeds)
    used = save_graph(model, tmp_path / "a.onnx", tmp_path / "w.bin")
    assert used == ("w.bin",)
    assert (tmp_path / "w.bin").stat().st_size == 2 * shared.nbytes
    loaded = ir.load(tmp_path / "a.onnx")
    inline = [v.const_value for v in loaded.graph.initializers.values()]
    assert sum(isinstance(t, ir.ExternalTensor) for t in inline) == 3
    np.testing.assert_array_equal(computed(loaded, feeds)[0], expected[0])


def test_further_graphs_add_only_what_is_new(tmp_path: Path) -> None:
    places: Places = {}
    shared, new = normal(32, 32), normal(32, 32, seed=1)
    save_graph(product(shared), tmp_path / "a.onnx", tmp_path / "w.bin", places)
    model = product(shared, new)
    feeds = feeds_of(model)
    expected = computed(model, feeds)
    used = save_graph(model, tmp_path / "b.onnx", tmp_path / "more.bin", places)
    assert used == ("more.bin", "w.bin")
    assert (tmp_path / "more.bin").stat().st_size == new.nbytes
    loaded = ir.load(tmp_path / "b.onnx")
    np.testing.assert_array_equal(computed(loaded, feeds)[0], expected[0])


def test_small_weights_need_no_file(tmp_path: Path) -> None:
    g = Graph()
    g.op("Add", g.input("x", [4]), g.weight(normal(4)), outputs=["y"])
    g.output("y", [4])
    assert save_graph(model_of(g), tmp_path / "a.onnx", tmp_path / "w.bin") == ()
    assert not (tmp_path / "w.bin").exists()


def test_a_graph_of_a_bundle(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    graphs = [name for name in bundle.manifest.files if name.endswith(".ort-cpu.onnx")]
    model = load_graph(bundle, graphs[0])
    assert len(list(model.graph)) > 0


def test_weights_beyond_their_file_are_refused(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    (name, *_) = [name for name in bundle.manifest.files if name.endswith(".ort-cpu.onnx")]
    weights = next(entry for file, entry in bundle.manifest.files.items() if file == "weights.bin")
    object.__setattr__(weights, "size", 1)
    with pytest.raises(BundleError):
        load_graph(bundle, name)
