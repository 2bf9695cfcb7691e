"""Sources: checkpoints of transformers, factories, ONNX files; and what is said about those that
can't be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from onnx import TensorProto, helper
from torch import Tensor, nn

import crossfuse
from coverage.cases import SEQ2SEQ, TEXT, VISION, perturbed
from crossfuse import FusionError, InputError, ModelSpec, huggingface_spec, runtime
from crossfuse.api.sources import Source, SourceOptions
from crossfuse.cli import main
from crossfuse.export.capture.guards import NotFreeError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP with both a retrieval and a question-answering head's weights missing: the
    matching head's are there."""
    torch.manual_seed(0)
    text = TEXT | {
        "encoder_hidden_size": 32,
        "projection_dim": 16,
        "bos_token_id": 0,
        "sep_token_id": 2,
    }
    model = perturbed(
        hf.BlipForImageTextRetrieval(
            hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
        )
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "blip"
    model.save_pretrained(folder)
    return folder


def test_checkpoint_is_exported_and_runs(checkpoint: Path, tmp_path: Path) -> None:
    bundle = crossfuse.export(f"hf:{checkpoint}", tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == bundle.ledger.counts() == {"self": 4, "cross": 2}
    assert bundle.manifest.context == ("pixel_values",)
    assert set(bundle.manifest.dims) == {"batch", "text", "contexts"}
    model = hf.BlipForImageTextRetrieval.from_pretrained(checkpoint).eval()
    ids, mask = (
        torch.randint(3, 98, (3, 9)),
        torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2]),
    )
    pixels = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).itm_score
    with runtime.load(bundle.path) as session:
        got = session.run(
            input_ids=ids.numpy(), pixel_values=pixels.numpy(), attention_mask=mask.numpy()
        )["itm_score"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_verify_against_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    crossfuse.export(f"hf:{checkpoint}", tmp_path / "b")
    assert crossfuse.verify(tmp_path / "b", source=f"hf:{checkpoint}", seed=5).passed


def test_task_chooses_the_head(checkpoint: Path) -> None:
    from crossfuse.export.sources.huggingface.load import load_model

    assert type(load_model(str(checkpoint)).module).__name__ == "BlipForImageTextRetrieval"
    assert (
        type(load_model(str(checkpoint), "BlipModel", allow_missing=True).module).__name__
        == "BlipModel"
    )
    assert (
        type(load_model(str(checkpoint), "feature-extraction", allow_missing=True).module).__name__
        == "BlipModel"
    )
    with pytest.raises(InputError, match="no class of this model does the task.*got 'fill-mask'"):
        load_model(str(checkpoint), "fill-mask")
    with pytest.raises(InputError, match="no class of this model does the task.*got 'cook-dinner'"):
        load_model(str(checkpoint), "cook-dinner")


def test_inputs_and_dimensions_of_ones_own(tmp_path: Path) -> None:
    """The parts of a model as specs, with inputs given instead of derived."""
    torch.manual_seed(0)
    decoder = perturbed(hf.BartModel(hf.BartConfig(**SEQ2SEQ))).decoder
    spec = huggingface_spec(
        decoder,
        inputs={
            "input_ids": torch.randint(3, 99, (2, 5)),
            "encoder_hidden_states": torch.randn(2, 7, 32),
        },
        dynamic={
            "input_ids": {0: "batch:1:8", 1: "text:1:32"},
            "encoder_hidden_states": {0: "batch", 1: "memory:1:32"},
        },
        context=["encoder_hidden_states"],
    )
    bundle = crossfuse.export(spec, tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"self": 2, "cross": 2}
    assert {row.captured for row in bundle.ledger} == {"interface"}


def test_grouped_heads_stay_grouped(tmp_path: Path) -> None:
    """Through the interface no keys are repeated."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=37,
        max_position_embeddings=64,
    )
    bundle = crossfuse.export(
        huggingface_spec(perturbed(hf.LlamaForCausalLM(config))), tmp_path / "b"
    )
    (row,) = bundle.ledger
    assert (row.num_heads, row.kv_num_heads, row.captured, row.kind) == (4, 2, "interface", "self")


# -- dropped outputs


class WithWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        out, weights = self.attention(x, y, y, average_attn_weights=False)
        return {"out": out, "weights": weights}


def with_weights() -> ModelSpec:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 3, 16), "y": torch.randn(2, 5, 16)}
    return ModelSpec(
        WithWeights().eval(), inputs, {"x": {0: "batch:1:8"}, "y": {0: "batch", 1: "keys:1:32"}}
    )


def test_dropped_output_lets_its_attention_fuse(tmp_path: Path) -> None:
    with pytest.raises(FusionError, match="attention: its attention probabilities are an output"):
        crossfuse.export(with_weights(), tmp_path / "b")
    bundle = crossfuse.export(with_weights(), tmp_path / "b", drop_outputs=["weights"])
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    assert [spec.name for spec in bundle.manifest.stages["model"].outputs] == ["out"]
    with pytest.raises(
        InputError, match="output to drop doesn't exist.*got 'wieghts'.*out, weights"
    ):
        crossfuse.export(with_weights(), tmp_path / "c", drop_outputs=["wieghts"])
    with pytest.raises(InputError, match="every output is dropped"):
        crossfuse.export(with_weights(), tmp_path / "c", drop_outputs=["*"])


# -- what can't be used

FACTORIES = """
import torch
from torch import nn
from crossfuse import ModelSpec

def raises():
    raise RuntimeError("no weights today")

def wrong():
    return {"not": "a spec"}

def needs():
    import a_package_that_is_not_there

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def data_dependent():
    return ModelSpec(Branching(), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}})
"""


def graph(name: str = "m", *, opset: int = 20, location: str | None = None) -> onnx.ModelProto:
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [4, 4], np.eye(4, dtype="f4").tobytes(), raw=True
    )
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "64")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    return helper.make_model(
        helper.make_graph([node], name, [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    made = tmp_path_factory.mktemp("bad")
    (made / "mine.py").write_text(FACTORIES)
    (made / "broken.py").write_text("def make(:\n")
    (made / "text.onnx").write_text("this is no protobuf")
    (made / "outside.bin").write_bytes(bytes(64))
    (made / "inside").mkdir()
    onnx.save(graph(location="../outside.bin"), made / "inside" / "escapes.onnx")
    (made / "inside" / "link.bin").symlink_to(made / "outside.bin")
    onnx.save(graph(location="link.bin"), made / "inside" / "linked.onnx")
    onnx.save(graph(location="absent.bin"), made / "absent.onnx")
    onnx.save(graph(opset=27), made / "future.onnx")
    pickled = made / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"a pickle that must never be read")
    (made / "empty").mkdir()
    coded = made / "coded"
    coded.mkdir()
    (coded / "config.json").write_text(
        '{"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "code.C", '
        '"AutoModel": "code.M"}}'
    )
    (coded / "model.safetensors").write_bytes(bytes(16))
    (coded / "code.py").write_text("raise SystemExit('code that must not run')")
    return made


BAD = {
    "factory raises": ("mine.py:raises", "the factory raised RuntimeError: no weights today"),
    "factory returns something else": (
        "mine.py:wrong",
        "the factory returned something else.*got dict",
    ),
    "factory needs a package": ("mine.py:needs", "No module named 'a_package_that_is_not_there'"),
    "file that is no Python": ("broken.py:make", "the source file raised SyntaxError"),
    "data-dependent control flow": (
        "mine.py:data_dependent",
        "can't trace the model.*depend on tensor values",
    ),
    "pickled checkpoint": (
        "hf:pickled",
        "pickles are never loaded.*got pytorch_model.bin.*save_pretrained",
    ),
    "empty folder": ("hf:empty", "the folder holds no model"),
    "code in the checkpoint": ("hf:coded", "can't be loaded.*--trust-remote-code"),
    "no such checkpoint": ("hf:nobody/nothing-here", "the model can't be loaded"),
    "no ONNX file": ("absent/model.onnx", "the ONNX file doesn't exist"),
    "not an ONNX file": ("text.onnx", "the ONNX file can't be read"),
    "weights outside": (
        "inside/escapes.onnx",
        "ONNX file can't be read.*(outside the directory|symbolic link)",
    ),
    "weights through a link": (
        "inside/linked.onnx",
        "ONNX file can't be read.*(outside the directory|symbolic link)",
    ),
    "weights that are missing": ("absent.onnx", "the ONNX file can't be read.*absent.bin"),
    "unknown opset": ("future.onnx", "opset can't be read.*got 27"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_unusable_sources_say_what_to_do(
    folder: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    source, message = BAD[case]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stop:
        main(["export", source, "-o", "out"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert len(errors[0]) < 1200
    assert not (folder / "out").exists()


def test_an_onnx_file_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(graph(), tmp_path / "plain.onnx")
    np.savez(tmp_path / "example.npz", x=np.ones((3, 4), "f4"))
    for extra in ([], ["--example", str(tmp_path / "example.npz")]):
        main_returns(["export", str(tmp_path / "plain.onnx"), "-o", str(tmp_path / "b"), *extra])
    assert "0 attentions" in capsys.readouterr().out
    with runtime.load(tmp_path / "b") as session:
        x = np.arange(8, dtype="f4").reshape(2, 4)
        np.testing.assert_array_equal(session.run(x=x)["y"], x)


def main_returns(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_only_dimensions_that_were_found_give_way() -> None:
    axes = {"input": {0: "batch", 1: "width"}}
    spec = ModelSpec(nn.Identity(), {"input": torch.ones(2, 3)}, axes, dims_found=True)
    asked = spec.with_dynamic(axes)
    error = NotFreeError("'batch' is fixed")
    error.narrower = {"batch": None}
    fitted = Source.of(spec, SourceOptions()).refitted(spec, error)
    assert (set(fitted.dims), fitted.inputs["input"].shape) == ({"width"}, (1, 3))
    assert fitted.dims_found
    with pytest.raises(NotFreeError, match="'batch' is fixed"):
        Source.of(asked, SourceOptions()).refitted(asked, error)
