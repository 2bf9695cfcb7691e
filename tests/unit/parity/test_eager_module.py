"""The eager module for the reference: in float64 where it runs, else summed in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from crossfuse.errors import InputError
from crossfuse.export.sources.onnx_file.load import onnx_spec
from crossfuse.parity.eager_module import EagerModule
from crossfuse.spec.model_spec import ModelSpec
from onnx_building import Graph

X = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(256, 8, generator=generator))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x @ self.weight}


class Single(Product):
    """Asserts its dtype, as some models do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert x.dtype == torch.float32
        return super().forward(x)


class Uncopied(Product):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise RuntimeError("one of a kind")


def exact(module: Product) -> np.ndarray:
    return X.double().numpy() @ module.weight.detach().double().numpy()


def test_the_truth_is_float64s() -> None:
    module = Product()
    runner = EagerModule(ModelSpec(module, {"x": X}), {"x": X})
    results = runner.run({"x": X})
    assert (runner.dtype, runner.reason) == ("float64", "")
    np.testing.assert_allclose(results.truth["y"], exact(module), rtol=1e-12)
    assert results.single["y"].dtype == np.float32
    assert module.weight.dtype == torch.float32, "the user's module is left as it is"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Single, "does not run in float64"),
        (Uncopied, "can't be copied to float64: RuntimeError: one of a kind"),
    ],
)
def test_modules_that_refuse_float64_are_summed_in_it(kind: type[Product], why: str) -> None:
    """One rounding from exact, where plain float32 loses more."""
    module = kind()
    runner = EagerModule(ModelSpec(module, {"x": X}), {"x": X})
    results = runner.run({"x": X})
    assert runner.dtype == "float32"
    assert why in runner.reason
    error = np.abs(results.truth["y"] - exact(module))
    assert (error <= np.abs(exact(module)) * 2.0**-24 + 1e-12).all()
    assert np.abs(results.single["y"] - exact(module)).max() > error.max()


def test_a_module_may_write_into_its_input() -> None:
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x.mul_(2)}

    given = {"x": torch.ones(3)}
    runner = EagerModule(ModelSpec(Greedy(), given), given)
    for _ in range(2):
        np.testing.assert_array_equal(runner.run(given).truth["y"], [2, 2, 2])
    assert torch.equal(given["x"], torch.ones(3))


@pytest.mark.parametrize(("size", "do"), [(4, "Make the module run"), (3, "narrow the range")])
def test_a_module_that_fails_is_told_where(size: int, do: str) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            raise ValueError("only squares")

    spec = ModelSpec(Fails(), {"x": torch.ones(4, 4)}, name="mine")
    runner = EagerModule(spec, spec.inputs)
    with pytest.raises(InputError, match=rf"only squares.*mine on .*\({size}, 4\).*{do}"):
        runner.run({"x": torch.ones(size, 4)})


def test_a_file_that_holds_sizes_as_numbers(tmp_path: Path) -> None:
    """As an exporter leaves it that takes sizes for numbers: said of the file, not of a module."""
    g = Graph()
    g.input("x", ["batch", "n", 4])
    g.op("Reshape", "x", g.ints(2, 3, 2, 2), outputs=["y"])
    g.output("y", [2, 3, 2, 2])
    spec = onnx_spec(g.save(tmp_path / "fixed.onnx"))
    runner = EagerModule(spec, spec.inputs)
    with pytest.raises(InputError, match="the ONNX file fails: .*example=.*axes dynamic"):
        runner.run(spec.inputs)
    other = {"x": torch.randn(3, 3, 4)}
    with pytest.raises(InputError, match="the ONNX file fails: .*narrow the range"):
        runner.run(other)


class Looked(Product):
    """A word per place, added to the product; ``refuses`` to be watched, or float64."""

    def __init__(self, refuses: str) -> None:
        super().__init__()
        self.words, self.refuses = nn.Embedding(30, 8), refuses

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        if self.refuses == "watching" and _get_current_dispatch_mode() is not None:
            raise NotImplementedError("no mode for this operator")
        if self.refuses == "float64":
            assert x.dtype == torch.float32
        return {"y": x @ self.weight + self.words(ids)}


@pytest.mark.parametrize("refuses", ["", "watching", "float64"])
def test_tables_are_seen_in_the_run_that_is_made_anyway(refuses: str) -> None:
    """Where nobody can watch, the run counts all the same."""
    module, inputs = Looked(refuses), {"x": X, "ids": torch.tensor([3, 9, 4, 29])}
    runner = EagerModule(ModelSpec(module, inputs), inputs)
    if refuses:
        assert runner.tables is None
    else:
        assert runner.tables is not None
        assert {name: table.rows for name, table in runner.tables.items()} == {"ids": 30}
    truth = exact(module) + module.words.weight.detach().double()[inputs["ids"]].numpy()
    results = runner.run(inputs)
    assert runner.dtype == ("float32" if refuses == "float64" else "float64")
    np.testing.assert_allclose(results.truth["y"], truth, rtol=1e-6 if refuses else 1e-12)
