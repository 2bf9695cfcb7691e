"""The user's own data: compared on by `verify`, among the points of an export, and seen by the
search for mixed precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import crossfuse
from crossfuse import InputError, ModelSpec, ParityError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.cli import app
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.fused import FUSED
from crossfuse.parity.reference import load_reference
from crossfuse.parity.shape_points import EXAMPLE
from unit.parity.test_bisect import damaged, weights_of

NAME = "cross_modal_attention"


def inputs_of(name: str, seed: int, **sizes: int) -> dict[str, np.ndarray]:
    spec = zoo_spec(name, "tiny")
    return {n: t.numpy() for n, t in spec.sample(spec.example_sizes | sizes, seed).items()}


def halved(model: ir.Model) -> None:
    value, _ = next(weights_of(model))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(0.5), name=value.name)


@pytest.fixture(scope="module")
def broken(zoo_bundle: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged(
        zoo_bundle(NAME).path, tmp_path_factory.mktemp("broken"), "ort-cpu", "model", halved
    )


def test_without_the_model(
    zoo_bundle: Callable[[str], Bundle], broken: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **inputs_of(NAME, 71))
    several = [tmp_path / "a.npz", str(tmp_path / "a.npz"), inputs_of(NAME, 72, batch=3)]
    report = crossfuse.verify(zoo_bundle(NAME).path, "ort-cpu", inputs=several)
    assert report.passed
    assert report.computed_by == FUSED
    assert "not the eager model" in FUSED
    assert report.kinds == (EXAMPLE,) * 3
    assert report.points[2]["batch"] == 3
    assert all(output.tolerance < 1e-4 for output in report.outputs.values())
    failed = crossfuse.verify(broken, "ort-cpu", inputs=inputs_of(NAME, 73))
    assert not failed.passed
    with pytest.raises(ParityError, match="does not compute what the bundle's fused graph"):
        failed.require_passed()


def test_with_the_model(zoo_bundle: Callable[[str], Bundle], broken: Path) -> None:
    """Against eager in float64, computed here by hand as well."""
    given = inputs_of(NAME, 74)
    report = crossfuse.verify(
        zoo_bundle(NAME).path, "ort-cpu", source=zoo_spec(NAME, "tiny"), inputs=given
    )
    assert report.passed
    assert (report.reference_dtype, report.computed_by) == ("float64", "the eager model")
    module = zoo_spec(NAME, "tiny").module.double()
    with torch.no_grad():
        tensors = {n: torch.from_numpy(a) for n, a in given.items()}
        truth = module(
            **{n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        )
    with runtime.load(zoo_bundle(NAME).path, "ort-cpu") as session:
        got = session.run(**given)
    for name, output in report.outputs.items():
        assert output.max_abs == pytest.approx(
            np.abs(got[name] - truth[name].numpy()).max(), rel=1e-6
        )
    assert not crossfuse.verify(
        broken, "ort-cpu", source=zoo_spec(NAME, "tiny"), inputs=given
    ).passed


def test_magnitudes_beyond_the_bundles_own(zoo_bundle: Callable[[str], Bundle]) -> None:
    """The tolerance follows the magnitude of what the user gives; a thousandth of it is no rounding
    error."""
    given = inputs_of(NAME, 75)
    large = {n: a * 100 if a.dtype.kind == "f" else a for n, a in given.items()}
    assert crossfuse.verify(zoo_bundle(NAME).path, "ort-cpu", inputs=large).passed
    on_cpu = runtime.SessionOptions(provider="CPUExecutionProvider")
    assert crossfuse.verify(zoo_bundle(NAME).path, "ort-cuda", inputs=large, options=on_cpu).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("a"), "names are wrong.*missing a"),
        (lambda a: a.update(c=np.ones(3)), "unknown c"),
        (lambda a: a.update(a=a["a"].astype(np.float64)), "wrong dtype.*float64.*float32"),
        (lambda a: a.update(a=a["a"][0]), "wrong rank"),
        (lambda a: a.update(a=a["a"][..., :3]), "wrong size"),
        (lambda a: a.update(a=np.repeat(a["a"], 100, 0)), "outside its range"),
        (lambda a: a.update(a=a["a"][:1]), "disagree about dimension"),
        (lambda a: a.update(a=[[1.0]]), "not an array"),
        (lambda a: a.update(a=np.array([["x"]])), "wrong dtype"),
        (lambda a: a["a"].fill(np.nan), "NaN or infinity"),
    ],
    ids=[
        "missing",
        "unknown",
        "dtype",
        "rank",
        "width",
        "range",
        "two sizes",
        "list",
        "text",
        "NaN",
    ],
)
@pytest.mark.parametrize("with_source", [False, True], ids=["graph", "source"])
def test_wrong_inputs(
    change: Callable[[dict[str, np.ndarray]], object],
    message: str,
    with_source: bool,
    zoo_bundle: Callable[[str], Bundle],
) -> None:
    given = inputs_of(NAME, 76)
    change(given)
    source = zoo_spec(NAME, "tiny") if with_source else None
    with pytest.raises(InputError, match=message) as caught:
        crossfuse.verify(
            zoo_bundle(NAME).path, "ort-cpu", source=source, inputs=[inputs_of(NAME, 76), given]
        )
    assert "inputs 2" in str(caught.value)


def test_what_are_no_inputs(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = zoo_bundle(NAME).path
    with pytest.raises(InputError, match="no inputs to compare on"):
        crossfuse.verify(path, "ort-cpu", inputs=[])
    with pytest.raises(InputError, match="can't be read: got int"):
        crossfuse.verify(path, "ort-cpu", inputs=[3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="doesn't exist"):
        crossfuse.verify(path, "ort-cpu", inputs=tmp_path / "none.npz")
    with pytest.raises(InputError, match="it is the portable graph itself"):
        crossfuse.verify(path, "onnx", inputs=inputs_of(NAME, 77))
    assert crossfuse.verify(
        path, "onnx", source=zoo_spec(NAME, "tiny"), inputs=inputs_of(NAME, 77)
    ).passed


class Sentences(nn.Module):
    """Words that look at an image; one row of the table is beyond what fp16 holds once it is
    multiplied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(200, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        with torch.no_grad():
            self.table.weight[150] *= 3e4
            self.up.weight *= 50
            self.down.weight /= 50

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        words = torch.tanh(self.down(self.up(self.table(ids))) / 100)
        return words + self.attention(words, image, image, need_weights=False)[0]


def sentences() -> ModelSpec:
    return ModelSpec(
        Sentences().eval(),
        {"ids": torch.tensor([[3, 4, 5], [9, 9, 1]]), "image": torch.randn(2, 5, 16)},
        {"ids": {0: "batch:1:8", 1: "text:1:16"}, "image": {0: "batch", 1: "image:1:32"}},
        context=("image",),
        name="sentences",
    )


def test_mixed_precision_sees_rows_that_the_example_has_not(tmp_path: Path) -> None:
    """A token outside of all that a search had looked at gave NaN after it had passed."""
    (tmp_path / "real").mkdir()
    real = {"ids": np.array([[150, 2, 7, 150]]), "image": np.ones((1, 3, 16), np.float32)}
    np.savez(tmp_path / "real" / "first.npz", **real)
    path = tmp_path / "b"
    bundle = crossfuse.export(
        sentences(), path, ["ort-cpu"], precision="mixed", example=[tmp_path / "real" / "first.npz"]
    )
    points = load_reference(path / "reference.npz").points
    assert np.array_equal(points[1].inputs["ids"], real["ids"])
    assert points[1].kind == EXAMPLE
    assert any("fp16 ends at 65504" in why for why in bundle.target("ort-cpu").kept.values())
    with pytest.raises(ParityError, match="NaN or infinity"):
        crossfuse.build(path, "ort-cuda", precision="fp16")
    # Each question of two about one image: the reference repeats the image, the session does not.
    given = {
        "ids": np.array([[150, 2], [3, 150], [1, 1], [150, 150]]),
        "image": np.ones((2, 3, 16), np.float32),
    }
    for source in (None, sentences()):
        report = crossfuse.verify(path, "ort-cpu", source=source, inputs=given)
        assert report.passed
        assert report.points[0]["contexts"] == 2
    with pytest.raises(InputError, match="no multiple"):
        crossfuse.verify(path, "ort-cpu", inputs={**given, "ids": given["ids"][:3]})


def test_examples_of_every_kind_of_source(tmp_path: Path) -> None:
    from crossfuse.api.arguments import Examples, paths
    from crossfuse.api.sources import Source, SourceOptions

    def resolve(source: ModelSpec | str, example: Examples) -> ModelSpec:
        return Source.of(
            source, SourceOptions(size="tiny", examples=paths("example", example))
        ).load()

    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.npz")
        np.savez(files[-1], **inputs_of(NAME, 80 + i))
    code = (
        "from crossfuse.models.registry import zoo_spec\ndef make(): return "
        "zoo_spec('cross_modal_attention', 'tiny')\n"
    )
    (tmp_path / "factory.py").write_text(code)
    for source in (NAME, f"{tmp_path / 'factory.py'}:make", zoo_spec(NAME, "tiny")):
        spec = resolve(source, files)
        assert len(spec.examples) == 2
        assert np.array_equal(spec.examples[1]["a"].numpy(), np.load(files[1])["a"])
    assert len(resolve(NAME, files[0]).examples) == 1
    np.savez(tmp_path / "bad.npz", a=np.ones((1, 2)))
    with pytest.raises(InputError, match=r"names are wrong.*bad\.npz"):
        resolve(NAME, [tmp_path / "bad.npz"])
    np.savez(tmp_path / "text.npz", **{**inputs_of(NAME, 80), "a": np.array(["x"])})
    with pytest.raises(InputError, match=r"dtype that no tensor has.*text\.npz, a"):
        resolve(NAME, [tmp_path / "text.npz"])


def test_on_the_command_line(
    zoo_bundle: Callable[[str], Bundle], broken: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **inputs_of(NAME, 90))
    np.savez(tmp_path / "b.npz", **inputs_of(NAME, 91, batch=1))
    both = ["--input", str(tmp_path / "a.npz"), "--input", str(tmp_path / "b.npz")]
    done = CliRunner().invoke(
        app, ["verify", str(zoo_bundle(NAME).path), "--target", "ort-cpu", *both]
    )
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "passed at 2 points, 2 of them given, against the bundle's fused graph" in said
    assert "not the eager model" in said
    done = CliRunner().invoke(
        app, ["verify", str(zoo_bundle(NAME).path), "--target", "ort-cpu", "--json", *both]
    )
    assert json.loads(done.stdout)["computed_by"] == FUSED
    done = CliRunner().invoke(app, ["verify", str(broken), "--target", "ort-cpu", *both])
    assert done.exit_code == 1
