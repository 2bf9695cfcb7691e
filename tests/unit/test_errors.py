"""Errors at the Python door: whatever a user's code, a library or a file does wrong arrives as one
paragraph with its cause."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crossfuse
from crossfuse import CrossfuseError, InputError, ModelSpec, ParityError, runtime
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle
from crossfuse.core.foreign import blaming, door
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.core.npz import load_arrays, save_arrays
from crossfuse.core.safetensors_files import require_whole
from crossfuse.errors import Advice, Door, FusionError, InternalError, Said, suggestion
from crossfuse.export.sources.factory import factory_spec, functions_in
from crossfuse.models.checkpoints import load_module

TINY = "cross_modal_attention"


class OwnError(Exception):
    """A user's exception that is of no common class, and can't even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


RAISED: list[BaseException] = [
    OwnError(),
    KeyError("weights"),
    AttributeError("'NoneType' object has no attribute 'shape'"),
    AssertionError(),
    StopIteration(),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError("9 GB"),
    SystemExit(3),
    ZeroDivisionError("division by zero"),
    FileNotFoundError(2, "No such file or directory", "vocabulary.txt"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ImportError("no tokenizer here"),
    NotImplementedError(),
]


class Raising(nn.Module):
    """Raises where it is told to: ``always``, or with more than two rows, which only points beyond
    the example have."""

    def __init__(self, error: BaseException, *, always: bool = True) -> None:
        super().__init__()
        self.error, self.always = error, always
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.always or x.shape[0] > 2:
            raise self.error
        return self.layer(x)


def paragraph(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_what_a_factory_raises_names_cause_file_and_line(
    tmp_path: Path, error: BaseException
) -> None:
    error = error.with_traceback(None)
    source = tmp_path / "mine.py"
    source.write_text("def make():\n    return helper()\n\ndef helper():\n    raise ERROR\n")
    import builtins

    builtins.ERROR = error  # type: ignore[attr-defined]
    with pytest.raises(InputError) as caught:
        crossfuse.export(f"{source}:make", tmp_path / "b")
    del builtins.ERROR  # type: ignore[attr-defined]
    text = paragraph(caught.value)
    assert type(error).__name__ in text
    assert f"{source}, line 5" in text
    assert caught.value.__cause__ is error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_what_a_module_raises_names_cause_and_line(tmp_path: Path, error: BaseException) -> None:
    spec = ModelSpec(Raising(error.with_traceback(None)), {"x": torch.randn(2, 4)})
    with pytest.raises(
        InputError, match="the eager model fails on inputs like its examples"
    ) as caught:
        crossfuse.export(spec, tmp_path / "b")
    text = paragraph(caught.value)
    assert type(error).__name__ in text
    assert f"{__file__}, line" in text
    assert caught.value.__cause__ is error
    assert "range" not in text, "the sizes are the example's own, so no dimension is to blame"


def test_a_failure_beyond_the_example_points_to_the_range(tmp_path: Path) -> None:
    from crossfuse.parity.eager import eager_reference

    spec = ModelSpec(
        Raising(KeyError("row 3"), always=False), {"x": torch.randn(2, 4)}, {"x": {0: "batch:1:8"}}
    )
    with pytest.raises(InputError, match="KeyError: 'row 3'.*narrow the range") as caught:
        eager_reference(spec)
    assert "--dynamic" not in paragraph(caught.value)
    assert "--dynamic" in caught.value.paragraph(Door.COMMAND_LINE)


def test_a_sampler_that_fails_is_named(tmp_path: Path) -> None:
    def sampler(sizes: dict[str, int], generator: torch.Generator) -> Any:
        return {"x": torch.zeros(sizes["rows"], 4)}

    with pytest.raises(
        InputError, match=r"the sampler raised KeyError: 'rows' .*test_errors.py, line"
    ):
        ModelSpec.from_sampler(
            nn.Linear(4, 4), sampler, dynamic={"x": {0: "batch"}}, example={"batch": 2}
        )
    spec = ModelSpec(
        nn.Linear(4, 4), {"x": torch.zeros(2, 4)}, {"x": {0: "batch"}}, sampler=sampler
    )
    with pytest.raises(InputError, match="the sampler raised KeyError"):
        spec.sample({"batch": 3}, 0)
    for made in (None, [torch.zeros(2, 4)], {"x": np.zeros((3, 4))}, {"x": None}):
        with pytest.raises(InputError):
            replace(spec, sampler=lambda *_, made=made: made).sample({"batch": 3}, 0)


INPUTS: dict[str, tuple[Any, str]] = {
    "dict": ({"a": 3}, r"holds a tensor.*got features\.a = 3"),
    "list": ([], "holds a tensor.*got empty containers"),
    "bool": (True, "holds a tensor.*got features = True"),
    "float": (0.5, "holds a tensor.*got features = 0.5"),
    "int": (3, "holds a tensor.*got features = 3"),
    "none": (None, "holds a tensor.*got features = None"),
    "text": ("a cat", "holds a tensor.*got features = 'a cat'"),
    "set": ({1, 2}, "a set"),
    "generator": ((i for i in range(2)), "a generator"),
    "numpy": (np.zeros(2), "from_numpy"),
    "numpy scalar": (np.float32(1), "holds a tensor.*got features = 1.0"),
    "meta": (torch.zeros(2, device="meta"), "without values"),
    "sparse": (torch.eye(2).to_sparse(), "not dense"),
    "complex": (torch.zeros(2, dtype=torch.complex64), "complex64"),
    "float8": (torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "module": (nn.Linear(2, 2), "a Linear"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_are_no_plain_tensors_are_named(kind: str) -> None:
    value, message = INPUTS[kind]
    with pytest.raises(InputError, match=message) as caught:
        ModelSpec(nn.Linear(2, 2), {"features": value})
    assert "inputs['features']" in paragraph(caught.value)


X = {"x": torch.zeros(2, 3)}
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "module": ({"module": torch.relu}, "ModelSpec.module"),
    "inputs list": ({"inputs": [torch.zeros(2)]}, "ModelSpec.inputs.*a list"),
    "inputs none": ({"inputs": None}, "ModelSpec.inputs.*got None"),
    "no inputs": ({"inputs": {}}, "no inputs"),
    "input's name": ({"inputs": {0: torch.zeros(2)}}, "name is no text"),
    "dynamic none": ({"dynamic": None}, "ModelSpec.dynamic.*got None"),
    "dynamic list": ({"dynamic": ["x"]}, "ModelSpec.dynamic.*a list"),
    "axes none": ({"dynamic": {"x": None}}, r"dynamic\['x'\].*got None"),
    "axes list": ({"dynamic": {"x": [0, 1]}}, r"dynamic\['x'\].*a list"),
    "axis text": ({"dynamic": {"x": {"0": "n"}}}, "axis is no number .*got '0'"),
    "dimension none": ({"dynamic": {"x": {0: None}}}, r"dynamic\['x'\]\[0\].*got None"),
    "dimension of torch": (
        {"dynamic": {"x": {0: torch.export.Dim("n")}}},
        "crossfuse.Dim, or text",
    ),
    "dimension number": ({"dynamic": {"x": {0: 8}}}, "got 8"),
    "context text": ({"context": "x"}, r"several names.*expected \('x',\)"),
    "context none": ({"context": None}, "ModelSpec.context.*got None"),
    "context numbers": ({"context": (0,)}, "ModelSpec.context"),
    "outputs text": ({"drop_outputs": "attentions"}, "several names"),
    "name": ({"name": None}, "ModelSpec.name"),
    "decode": ({"decode": 1}, "ModelSpec.decode"),
    "sampler": ({"sampler": {}}, "ModelSpec.sampler"),
    "tracing": ({"tracing": 3}, "ModelSpec.tracing"),
    "typo": ({"context": ("xx",)}, "Did you mean 'x'"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_a_spec_are_checked(case: str) -> None:
    fields, message = FIELDS[case]
    with pytest.raises(InputError, match=message) as caught:
        ModelSpec(**{"module": nn.Linear(3, 3), "inputs": X} | fields)
    paragraph(caught.value)


def test_dimensions_that_are_none() -> None:
    for arguments in (
        (None,),
        (3,),
        ("n", 1.5),
        ("n", "1"),
        ("n", 1, True),
        ("n", np.int64(2), 8.0),
    ):
        with pytest.raises(InputError):
            crossfuse.Dim(*arguments)  # type: ignore[arg-type]


def test_modules_without_values_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(
        InputError, match=r"hold no values.*0\.weight, 0\.bias, 1\.weight and 4 more"
    ):
        crossfuse.export(ModelSpec(module.eval(), {"input": torch.zeros(2, 4)}), tmp_path / "b")


def test_sources_of_the_wrong_kind(tmp_path: Path) -> None:
    bad: list[tuple[Any, str]] = [
        (nn.Linear(2, 2), "a module alone is no source.*ModelSpec"),
        (lambda: None, "a function is no source"),
        (None, "a source is"),
        (tmp_path, "a source is"),
        (3, "a source is"),
    ]
    for source, message in bad:
        with pytest.raises(InputError, match=message):
            crossfuse.export(source, tmp_path / "b")
    for argument in ("targets", "drop_outputs", "profile_shapes", "compute_capabilities"):
        with pytest.raises(InputError, match=f"several texts .{argument}.*'ort-cpu'"):
            crossfuse.export(TINY, tmp_path / "b", **{argument: "ort-cpu"})


SOURCE = """
import sys
raise_at_import = 0
def make(size=3): ...
def needs(size): ...
def keyword(*, size): ...
async def later(): ...
class Model: ...
def build_model(): return {}["weights"]
"""


def test_a_file_without_its_factory_lists_them_unexecuted(tmp_path: Path) -> None:
    file = tmp_path / "models.py"
    file.write_text(SOURCE + "raise RuntimeError('executed')\n")
    assert functions_in(file) == ["make", "build_model"]
    for source in (f"{file}", f"{file}:"):
        with pytest.raises(
            InputError, match=r"no function in it .*models.py:make or .*models.py:build_model"
        ) as caught:
            factory_spec(source)
        assert "executed" not in paragraph(caught.value)
    file.write_text(SOURCE)
    with pytest.raises(InputError, match=r"Did you mean 'build_model'\?"):
        factory_spec(f"{file}:build_modle")
    with pytest.raises(InputError, match=r"Did you mean 'loads'\?"):
        factory_spec("json:laods")
    file.write_text("def make(:\n")
    with pytest.raises(InputError, match=r"SyntaxError.*models.py, line 1"):
        factory_spec(f"{file}:make")
    file.write_bytes(b"def make(): return '\xff'\n")
    with pytest.raises(InputError, match="SyntaxError"):
        factory_spec(f"{file}:make")


def test_an_error_of_ours_in_a_factory_keeps_its_words_and_gets_the_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import crossfuse, torch\ndef make():\n    return crossfuse.ModelSpec(torch.nn.ReLU(), "
        "{'x': {1}})\n"
    )
    with pytest.raises(InputError, match=r"inputs\['x'\]; .*mine.py, line 3.*: got a set"):
        factory_spec(f"{file}:make")


# -- files ---------------------------------------------------------------------------------------


def npz(arrays: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two entries of one name
        for name, data in entries:
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def shaped(size: str) -> bytes:
    return header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({size},)}}\n")


def in_directory(data: bytes, offset: int, changed: bytes) -> bytes:
    """The archive with some bytes of its first directory entry changed."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + changed + data[at + len(changed) :]


WHOLE = npz({"x": np.arange(4096.0)})
DEFLATED = zipped(
    [("x.npy", npy(np.random.default_rng(0).normal(size=4096)))], zipfile.ZIP_DEFLATED
)
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"P",
    "magic alone": b"PK\x03\x04",
    "text": b"hello world",
    "pickle": pickle.dumps({"x": 1}),
    "cut in half": WHOLE[: len(WHOLE) // 2],
    "cut at the end": WHOLE[:-1],
    "beginning gone": WHOLE[1000:],
    "bytes changed": WHOLE[:2000] + b"\xff" * 64 + WHOLE[2064:],
    "compressed bytes changed": DEFLATED[:200] + b"\xff" * 64 + DEFLATED[264:],
    "another compression": in_directory(DEFLATED, 10, b"\x63\x00"),
    "encrypted": in_directory(WHOLE, 8, b"\x01\x00"),
    "not arrays inside": zipped([("x.npy", b"not an array")]),
    "no npy inside": zipped([("x.txt", b"text")]),
    "wrong magic": zipped([("x.npy", b"\x93NUMPI\x01\x00" + npy(np.ones(3))[8:])]),
    "unknown version": zipped([("x.npy", b"\x93NUMPY\x09\x00" + npy(np.ones(3))[8:])]),
    "array cut": zipped([("x.npy", npy(np.ones(100))[:-8])]),
    "header of a giant": zipped([("x.npy", shaped("1" + "0" * 15))]),
    "header overflows": zipped([("x.npy", shaped("1" + "0" * 30))]),
    "header negative": zipped([("x.npy", shaped("-1"))]),
    "header no Python": zipped([("x.npy", header("{'descr' '<f8'\n"))]),
    "header calls": zipped([("x.npy", header("{'descr': __import__('os').name, 'fortran_order': "
        "False, 'shape': ()}\n"))]),
    "header nested": zipped([("x.npy", header("(" * 5000 + "\n"))]),
    "objects": npz({"x": np.array([{}], dtype=object)}),
    "two of one name": zipped([("x.npy", npy(np.ones(3))), ("x.npy", npy(np.zeros(3)))]),
    "two of one name without ending": zipped([("x.npy", npy(np.ones(3))), ("x", npy(np.zeros(3)))]),
    "one array": npy(np.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_npz_is_one_paragraph(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "in.npz"
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(InputError, match="in.npz") as caught:
        load_arrays(file)
    paragraph(caught.value)


def test_every_cut_and_changed_byte_of_an_npz_is_told_or_harmless(tmp_path: Path) -> None:
    """No other exception, wherever the damage is."""
    small = zipped(
        [("x.npy", npy(np.arange(3))), ("y.npy", npy(np.ones((2, 2))))], zipfile.ZIP_DEFLATED
    )
    file = tmp_path / "in.npz"
    for i in range(len(small)):
        for data in (small[:i], small[:i] + bytes([small[i] ^ 0xFF]) + small[i + 1 :]):
            file.write_bytes(data)
            try:
                load_arrays(file)
            except InputError as error:
                paragraph(error)


def test_npz_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        load_arrays(tmp_path)
    with pytest.raises(InputError, match="doesn't exist"):
        load_arrays(tmp_path / "none.npz")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="doesn't exist"):
        load_arrays(tmp_path / "link")
    with pytest.raises(InputError, match="can't be written"):
        save_arrays(tmp_path / "no" / "out.npz", {"x": np.ones(2)})
    with pytest.raises(InputError, match="can't be written"):
        save_arrays(tmp_path / "out.npz", {"x": np.array([{}], dtype=object)})
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_a_damaged_reference_set_is_a_bundle_error(tmp_path: Path) -> None:
    from crossfuse.parity.reference import load_reference

    file = tmp_path / "reference.npz"
    for data in DAMAGED.values():
        file.write_bytes(data)
        with pytest.raises(crossfuse.BundleError, match="reference set can't be read"):
            load_reference(file)


def safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = safetensors(
    {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "__metadata__": {"a": "b"}},
    bytes(16),
)
WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n", "Git LFS "
        "pointer.*git lfs pull"),
    "cut in the data": (GOOD[:-1], "is cut .*: got .* bytes, expected"),
    "cut in the header": (GOOD[:20], "is cut"),
    "cut in the length": (GOOD[:5], "no safetensors file"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "no safetensors file"),
    "a pickle": (pickle.dumps({"w": list(range(100))}), "no safetensors file|is cut"),
    "header no JSON": (safetensors(b"{]", b""), "no safetensors file"),
    "header a list": (safetensors([1], b""), "no safetensors file"),
    "entry without offsets": (safetensors({"w": {"dtype": "F32"}}, b""), "no safetensors file"),
    "offsets text": (safetensors({"w": {"data_offsets": ["a", "b"]}}, b""), "no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_safetensors_are_told_apart(tmp_path: Path, damage: str) -> None:
    data, message = WEIGHTS[damage]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        require_whole(file)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertModel"]})
    )
    with pytest.raises(InputError, match=message):
        crossfuse.huggingface_spec(str(tmp_path))


def test_a_zoo_checkpoint_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS["pointer"][0])
    with pytest.raises(InputError, match="Git LFS pointer"):
        load_module("clip", str(tmp_path))


def test_whole_safetensors_pass(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    require_whole(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="can't be read"):
        require_whole(tmp_path / "none.safetensors")


# -- bundles -------------------------------------------------------------------------------------


def test_numbers_of_numpy_enter_a_manifest_as_numbers(zoo_bundle: Callable[[str], Bundle]) -> None:
    manifest = zoo_bundle(TINY).manifest
    odd = {
        "flag": np.bool_(True),
        "count": np.int64(3),
        "share": np.float32(0.5),
        "text": np.str_("a"),
    }
    again = Manifest.loads(replace(manifest, source=odd).dumps(), "manifest.json")
    assert again.source == {"flag": True, "count": 3, "share": 0.5, "text": "a"}
    row = replace(manifest.ledger[0], num_heads=np.int64(2))
    assert (
        Manifest.loads(replace(manifest, ledger=Ledger((row,))).dumps(), "").ledger[0].num_heads
        == 2
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(manifest, source={"share": np.float64("nan")}).dumps()


class Two(nn.Module):
    """Cross-attention with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        out, _ = self.attention(x, y, y, need_weights=False)
        return {"out": out, "aside": out.mean(-1)}


def two(**changes: Any) -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(
        Two().eval(), {"x": torch.randn(2, 3, 8), "y": torch.randn(2, 5, 8)}, **changes
    )


def test_verify_with_a_source(tmp_path: Path) -> None:
    """Of the same model, whatever was dropped or made dynamic at export; another model is told to
    be one."""
    dynamic = {"x": {0: "batch:1:8", 1: "text:1:9"}, "y": {0: "batch"}}
    crossfuse.export(two(dynamic=dynamic, context=("y",)), tmp_path / "b", drop_outputs=["as*"])
    assert crossfuse.verify(tmp_path / "b", source=two()).passed
    assert crossfuse.verify(tmp_path / "b", source=two(drop_outputs=("aside",))).passed

    others: list[tuple[ModelSpec, str]] = [
        (
            ModelSpec(nn.Linear(8, 8), {"input": torch.zeros(2, 8)}),
            "other inputs: got inputs input",
        ),
        (
            replace(
                two(),
                inputs={"x": torch.zeros(2, 3, 8), "y": torch.zeros(2, 5, 8), "z": torch.zeros(2)},
            ),
            "other inputs",
        ),
        (
            replace(two(), inputs={"x": torch.zeros(2, 3, 8), "y": torch.zeros(2, 5, 4)}),
            "other inputs .y",
        ),
        (
            replace(two(), inputs={"x": torch.zeros(3, 8), "y": torch.zeros(2, 5, 8)}),
            "other inputs .x",
        ),
        (replace(two(), module=Renamed().eval()), "other outputs: got other, expected out"),
    ]
    for spec, message in others:
        with pytest.raises(InputError, match=message):
            crossfuse.verify(tmp_path / "b", source=spec)


class Renamed(Two):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other": super().forward(x, y)["out"]}


def test_a_target_that_refuses_the_references_inputs_is_a_failed_check(
    zoo_bundle: Callable[[str], Bundle],
) -> None:
    from crossfuse.parity.reference import load_reference
    from crossfuse.parity.session_check import check_session

    bundle = zoo_bundle(TINY)
    reference = load_reference(bundle.verified(["reference.npz"])[0])
    points = tuple(
        replace(p, inputs={n: a[..., None] for n, a in p.inputs.items()}) for p in reference.points
    )
    with (
        runtime.load(bundle.path, "ort-cpu") as session,
        pytest.raises(ParityError, match="that the eager model takes"),
    ):
        check_session(session, replace(reference, points=points), "fp32")


# -- sessions ------------------------------------------------------------------------------------


class Ids(nn.Module):
    """Token ids attend to a context; ids beyond the table make the engine fail."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x = x + self.own(x, x, x, attn_mask=hidden, need_weights=False)[0]
        return x + self.cross(x, memory, memory, need_weights=False)[0]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(7, (2, 5)), "memory": torch.randn(2, 4, 8)}
    dynamic = {"ids": {0: "batch:1:8", 1: "tokens:1:16"}, "memory": {0: "batch"}}
    spec = ModelSpec(Ids().eval(), inputs, dynamic, context=("memory",), decode="ids")
    path = tmp_path_factory.mktemp("decoder") / "b"
    crossfuse.export(spec, path)
    return path


def test_bad_values_are_told_at_every_step_and_in_bindings(decoder: Path) -> None:
    memory = np.zeros((2, 4, 8), np.float32)
    with runtime.load(decoder) as session:
        context = session.encode(memory=memory)
        state = session.start(context)
        good = session.step(state, [1, 2])["output"].copy()
        for _ in range(2):
            with pytest.raises(InputError, match=r"engine refused|outside"):
                session.step(state, [1, 99])
        assert state.position == 1, "a step that failed is none"
        state.rewind(0)
        np.testing.assert_array_equal(session.step(state, [1, 2])["output"], good)

        ids = np.zeros((2, 5), np.int64)
        binding = session.bind(ids=ids, memory=memory)
        ids[:] = 99
        with pytest.raises(InputError, match=r"engine refused|outside"):
            binding.run()
        ids[:] = 0
        assert np.isfinite(binding.run()["output"]).all()


class BadDlpack:
    """Another library's array, broken."""

    shape = (2, 5)

    def __dlpack_device__(self) -> tuple[int, int]:
        raise OwnError

    def __dlpack__(self, **_: Any) -> Any:
        raise OwnError


class WorseDlpack(BadDlpack):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_calls_with_wrong_things(decoder: Path) -> None:
    memory = np.zeros((2, 4, 8), np.float32)
    ids = np.zeros((2, 5), np.int64)
    with runtime.load(decoder) as session:
        context = session.encode(memory=memory)
        state = session.start(context)
        calls: list[Callable[[], Any]] = [
            lambda: session.run(ids=BadDlpack(), memory=memory),
            lambda: session.run(ids=WorseDlpack(), memory=memory),
            lambda: session.run(ids=None, memory=memory),
            lambda: session.run(ids="text", memory=memory),
            lambda: session.run(ids=np.array([{}], dtype=object), memory=memory),
            lambda: session.query(None, ids=ids),
            lambda: session.query(context, ids=[[0]]),
            lambda: session.step(None, ids[:, 0]),
            lambda: session.step(state, [[1], [2, 3]]),
            lambda: session.step(state, ["a", "b"]),
            lambda: session.step(state, None),
            lambda: session.bind(ids=ids.tolist(), memory=memory),
            lambda: context.select(["a"]),
            lambda: context.select(None),
            lambda: context.select([0.5]),
            lambda: state.reorder([[0], [1, 2]]),
            lambda: state.rewind("0"),
            lambda: runtime.ContextCache(session, "1GB"),
            lambda: runtime.ContextCache(session, 1000).encode(memory=BadDlpack()),
            lambda: runtime.SessionOptions(threads="4"),
            lambda: runtime.SessionOptions(lanes=1.5),
        ]
        for call in calls:
            with pytest.raises(CrossfuseError) as caught:
                call()
            paragraph(caught.value)
        with pytest.raises(InputError, match="Did you mean 'memory'"):
            session.run(ids=ids, memroy=memory)


# -- the mechanism -------------------------------------------------------------------------------


def test_each_door_words_advice_its_own_way() -> None:
    error = FusionError(
        "2 attentions", do=Advice("Pass {}", Said("--allow-unfused", "allow_unfused=True"))
    )
    assert str(error) == "2 attentions. Pass allow_unfused=True."
    assert error.paragraph(Door.COMMAND_LINE) == "2 attentions. Pass --allow-unfused."
    assert error.to_json() == {
        "kind": "fusion",
        "what": "2 attentions",
        "where": None,
        "got": None,
        "expected": None,
        "do": "Pass --allow-unfused",
    }
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.to_json()) == (str(error), error.to_json())


def test_python_is_not_told_flags() -> None:
    """In the source: what may be said in Python names a flag only as the command line's half of a
    pair."""
    import ast

    root = Path(crossfuse.__file__).parent
    for path in root.rglob("*.py"):
        if path.name == "cli.py" or path.parent.name == "commands":
            continue
        for call in [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]:
            for keyword in call.keywords:
                if keyword.arg in ("do", "expected", "where", "got"):
                    pairs = [
                        n
                        for n in ast.walk(keyword.value)
                        if isinstance(n, ast.Call) and ast.unparse(n.func) == "Said"
                    ]
                    inside = {id(n) for pair in pairs for n in ast.walk(pair)}
                    texts = [
                        n.value
                        for n in ast.walk(keyword.value)
                        if isinstance(n, ast.Constant) and id(n) not in inside
                    ]
                    flags = [
                        t
                        for t in texts
                        if isinstance(t, str)
                        and (" --" in t or t.startswith("--") or "`crossfuse " in t)
                    ]
                    assert [f for f in flags if "ray start" not in f] == [], (
                        f"{path.name}:{call.lineno}"
                    )


def test_suggestions() -> None:
    assert suggestion("Clip", ["clip", "vilt"]) == "Did you mean 'clip'?"
    assert suggestion("ort_cpu", ["onnx", "ort-cpu"]) == "Did you mean 'ort-cpu'?"
    assert suggestion("tpu", ["onnx", "ort-cuda"]) is None
    assert suggestion(None, ["onnx"]) is None


def test_sites_of_one_reason_are_one_line() -> None:
    rows = [
        LedgerRow(f"layers.{i}.cross_attn", "unknown", None, reasons={"capture": "capped scores"})
        for i in range(18)
    ]
    rows += [LedgerRow("pool", "unknown", None, reasons={"capture": "mixed heads"})]
    rows += [
        LedgerRow(
            f"text.{i}.attn", "self", "sdpa", fused={"onnx": None}, reasons={"onnx": "no kernel"}
        )
        for i in range(2)
    ]
    rows += [LedgerRow("fine", "self", "sdpa", fused={"onnx": "Attention"})]
    assert Ledger(tuple(rows)).unfused(["onnx"]) == [
        "18 × layers.*.cross_attn: capped scores",
        "pool: mixed heads",
        "2 × text.*.attn in onnx: no kernel",
    ]
    with pytest.raises(FusionError, match="21 of 22 attentions did not fuse: 18 × layers"):
        Ledger(tuple(rows)).require_fused(["onnx"])


def test_blaming_lets_interrupts_pass() -> None:
    for error in (KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), blaming("never"):
            raise error
    with (
        pytest.raises(InputError, match="a library raised StopIteration"),
        blaming("a library raised"),
    ):
        next(iter(()))


def test_a_door_turns_everything_but_wrong_calls() -> None:
    @door
    def enter(error: BaseException) -> None:
        raise error

    for raised, kind in (
        (KeyError("x"), InternalError),
        (TypeError("inside"), InternalError),
        (MemoryError(), InputError),
    ):
        with pytest.raises(kind) as caught:
            enter(raised)
        assert caught.value.__cause__ is raised
        paragraph(caught.value)
    with pytest.raises(InputError, match=r"No space left on device .*weights.bin"):
        enter(OSError(28, "No space left on device", "weights.bin"))
    with pytest.raises(TypeError, match="positional argument"):
        enter()  # type: ignore[call-arg]


@pytest.mark.parametrize("entry", ["build", "verify", "profile"])
def test_entry_points_raise_our_errors_only(entry: str, tmp_path: Path) -> None:
    arguments = ["onnx"] if entry == "build" else []
    for path in (tmp_path, tmp_path / "none", None, 3, "\0", b"bytes"):
        for call in (
            lambda p=path: getattr(crossfuse, entry)(p, *arguments),
            lambda p=path: runtime.load(p),
        ):
            with pytest.raises(CrossfuseError) as caught:
                call()
            paragraph(caught.value)
