"""What the documentation shows is run; what it names exists; the site is built and looked at."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossfuse
from crossfuse.bundle.store import Bundle
from crossfuse.models.registry import zoo_spec
from documented import CODE, PAGES, ROOT, Block, blocks_of, commands_in, holds, run, run_page

README = ROOT / "README.md"


def save_inputs(path: Path, sizes: dict[str, int] | None = None, *names: str) -> None:
    """An NPZ file with inputs of the tiny Q-Former, of some names or all."""
    spec = zoo_spec("qformer", "tiny")
    made = spec.sample(spec.example_sizes | (sizes or {}), seed=len(path.stem))
    np.savez(path, **{n: t.numpy() for n, t in made.items() if not names or n in names})


def context_and_queries(folder: Path) -> None:
    save_inputs(folder / "image.npz", {"batch": 1}, "image_features", "image_mask")
    for name in ("a", "b"):
        save_inputs(folder / f"{name}.npz", {"batch": 3}, "input_ids", "attention_mask")


def real_inputs(folder: Path) -> None:
    save_inputs(folder / "real.npz", {"text": 3})
    save_inputs(folder / "more.npz", {"batch": 1, "image_tokens": 20})


def one_row(folder: Path) -> None:
    (folder / "rows").mkdir()
    save_inputs(folder / "rows" / "first.npz", {"batch": 1})


def inputs(folder: Path) -> None:
    save_inputs(folder / "inputs.npz")


def a_factory(folder: Path) -> None:
    (folder / "matcher.py").write_text(
        "import crossfuse\nimport torch\n\n"
        "def spec():\n"
        "    module = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True).eval()\n"
        "    inputs = {n: torch.randn(2, 5, 16) for n in ('tgt', 'memory')}\n"
        "    return crossfuse.ModelSpec(module, inputs)\n"
    )
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal((2, 5, 16), np.float32) for n in ("tgt", "memory")}
    np.savez(folder / "real.npz", **arrays)


def an_onnx_file(folder: Path) -> None:
    import torch

    module = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    tensors = {n: torch.randn(2, size, 16) for n, size in (("query", 3), ("key", 5), ("value", 5))}
    torch.onnx.export(
        module,
        (),
        str(folder / "model.onnx"),
        kwargs=tensors | {"need_weights": False},
        input_names=list(tensors),
        dynamo=True,
        verbose=False,
    )
    np.savez(folder / "inputs.npz", **{n: t.numpy() for n, t in tensors.items()})


def a_checkpoint(folder: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 60, "intermediate_size": 16},
        vision_config={**sizes, "image_size": 16, "patch_size": 8, "intermediate_size": 16},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder / "checkpoint")


SETUPS: dict[str, Callable[[Path], None]] = {
    "docs/concepts/context-reuse.md": context_and_queries,
    "docs/guides/hugging-face.md": a_checkpoint,
    "docs/guides/onnx-files.md": an_onnx_file,
    "docs/guides/own-model.md": a_factory,
    "docs/guides/serving.md": one_row,
    "docs/guides/verify.md": real_inputs,
}
"""What a page's blocks find in their folder."""

WITH_A_BUNDLE = {f"docs/concepts/{name}.md" for name in ("bundles", "context-reuse", "precision")}
"""Pages whose blocks find the tiny Q-Former's bundle, too."""

TESTED_ELSEWHERE = {
    ROOT / "docs" / "one-attention.md": (
        ROOT / "tests" / "unit" / "export" / "matching" / "test_documented_attention.py"
    )
}
"""Pages whose code a test of their own runs."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(condition: Callable[[Block], bool]) -> list[Path]:
    pages = (page for page in PAGES if page != README)  # which has tests of its own
    return [page for page in pages if any(map(condition, blocks_of(page)))]


Runs = Callable[[Path, list[Block]], list[str]]


@pytest.fixture
def run_documented(
    tmp_path: Path,
    shared_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Runs:
    """Runs blocks of a page: what they printed, in order."""

    def runs(page: Path, blocks: list[Block]) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("COLUMNS", "140")
        if name_of(page) in WITH_A_BUNDLE:
            shutil.copytree(shared_bundle("qformer", size="tiny").path, tmp_path / "bundle")
        SETUPS.get(name_of(page), lambda _: None)(tmp_path)
        return list(run_page(blocks, tmp_path, capsys).values())

    return runs


@pytest.mark.parametrize("page", pages_with(lambda b: b.tested and not b.slow), ids=name_of)
def test_pages(page: Path, tmp_path: Path, run_documented: Runs) -> None:
    """The quick blocks of each page: they run, and print what the page says."""
    blocks = [block for block in blocks_of(page) if not block.slow]
    printed = run_documented(page, blocks)
    check = CHECKS.get(name_of(page))
    if check is not None and page not in SLOW_PAGES:
        check(printed, tmp_path)


SLOW_PAGES = pages_with(lambda b: b.slow)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_slow_pages(page: Path, tmp_path: Path, run_documented: Runs) -> None:
    """All blocks of the pages that have slow ones."""
    if page.stem == "tensorrt":
        pytest.importorskip(
            "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'crossfuse[rtx]')"
        )
    if page.stem == "serving":
        pytest.importorskip("ray", reason="ray is not installed")
    printed = run_documented(page, blocks_of(page))
    if name_of(page) in CHECKS:
        CHECKS[name_of(page)](printed, tmp_path)


def check_verify(printed: list[str], folder: Path) -> None:
    text = " ".join(printed[0].split())
    for promised in (
        "10 points, 2 of them given, against the eager model in float64",
        "2 points, 2 of them given, against the bundle's fused graph",
        "1 point, 1 of them given, against the eager model in float64",
    ):
        assert promised in text
    assert text.count("passed at") == 5


def check_tensorrt(printed: list[str], folder: Path) -> None:
    text = " ".join(printed[0].split())
    assert text.count("6 fused in tensorrt-rtx") >= 5
    assert "6 fused in tensorrt-rtx, 6 fused in ort-cpu" in text
    assert "profile batch=1:4:16, image_tokens" in text


def check_performance(printed: list[str], folder: Path) -> None:
    for promised in ("of the roofline", "4 callers", "95% interval"):
        assert promised in printed[0]
    assert not re.search(r"│ slower +│", printed[0])
    assert (folder / "report.html").exists()


def check_serving(printed: list[str], folder: Path) -> None:
    assert "qformer written to models" in printed[0]
    assert "1 rows (0 done before), 0 failed" in printed[0]
    assert (folder / "answers" / "first.npz").exists()
    assert (folder / "serve.yaml").exists()


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "docs/guides/performance.md": check_performance,
    "docs/guides/serving.md": check_serving,
    "docs/guides/tensorrt.md": check_tensorrt,
    "docs/guides/verify.md": check_verify,
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_a_test_does_with_it(page: Path) -> None:
    """No code is left out unsaid."""
    if page in TESTED_ELSEWHERE:
        pytest.skip("its own test runs it")
    known = re.compile(r"tested|tested: slow(, .+| alone)?|tested: alone|not run: .+|file: \S+")
    for block in blocks_of(page):
        where = f"{name_of(page)}, line {block.line}"
        if block.language in CODE:
            assert known.fullmatch(block.mark), f"{where}: {block.mark or 'nothing is said'}"
        else:
            assert block.mark in ("", "printed"), where
    text = page.read_text()
    unfenced = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^ {4,}(\$ )?(crossfuse|pip|make|python) ", unfenced, re.MULTILINE)


def test_what_a_page_promises_can_be_missing() -> None:
    """The comparison with what was printed can fail."""
    assert holds("a b  c\nd", "a b c\n…d") is None
    assert holds("a b", "a c") == "a c"
    assert holds("a\nb", "b\na") == "a"


@pytest.mark.parametrize("how", ["in process", pytest.param("processes", marks=pytest.mark.slow)])
def test_readme_commands(how: str, tmp_path: Path, run_documented: Runs) -> None:
    """The README's own commands; with the slow tests, as processes of their own."""
    inputs(tmp_path)
    (block,) = (b for b in blocks_of(README) if b.mark == "tested" and b.language == "sh")
    if how == "in process":
        run_documented(README, [block])
    else:
        for command in commands_in(block.text):
            run(command, tmp_path)
    assert (tmp_path / "outputs.npz").exists()
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("how", ["in process", pytest.param("process", marks=pytest.mark.slow)])
def test_readme_example_is_short_and_runs_without_anything_before(
    how: str, tmp_path: Path, run_documented: Runs
) -> None:
    (block,) = (b for b in blocks_of(README) if b.mark == "tested" and b.language == "python")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 16
    (promised,) = (b.text for b in blocks_of(README) if b.mark == "printed")
    if how == "process":
        printed = run([sys.executable, "-c", block.text], tmp_path).stdout
    else:
        (printed,) = run_documented(README, [block])
    assert holds(printed, promised) is None


DEMO = ROOT / "examples" / "demo.py"


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has PyTorch already."""
    arguments = ["--size", "tiny", "--bundle", str(tmp_path / "b"), "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", [str(DEMO), *arguments])
    monkeypatch.syspath_prepend(str(DEMO.parent))
    runpy.run_path(str(DEMO), run_name="__main__")
    assert "of eager's time" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_at_its_published_size(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--bundle", str(tmp_path / "b"), "--repeats", "2"]
    printed = run(command, tmp_path).stdout
    for promised in (
        "of eager's time",
        "18 attentions (12 self, 6 cross); 18 fused in ort-cpu",
        "without PyTorch; input: chelsea.jpg",
    ):
        assert promised in printed


@pytest.mark.slow
def test_the_documented_client_is_answered(
    tmp_path: Path, shared_bundle: Callable[..., Bundle]
) -> None:
    """The client of the serving guide, against the server that its next section starts."""
    pytest.importorskip("ray", reason="ray is not installed")
    serving = pytest.importorskip("serving", reason="tritonclient is not installed")
    bundle = shared_bundle("qformer", size="tiny").path
    (client,) = (
        block
        for block in blocks_of(ROOT / "docs" / "guides" / "serving.md")
        if block.language == "python"
    )
    port, metrics = serving.free_port(), serving.free_port()
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        str(bundle),
        "--port",
        str(port),
        "--metrics-port",
        str(metrics),
    ]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        serving.wait_until_ready(port, "qformer")
        code = client.text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert run([sys.executable, "-c", code], tmp_path).stdout == "(2, 5, 32)\n"
    finally:
        server.terminate()
        assert server.wait(120) == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), f"{name_of(page)}: {link}"


def test_pages_that_code_names_exist() -> None:
    """Messages, docstrings and comments name pages of the documentation."""
    named = 0
    for folder in ("src", "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
                named += 1
                assert (ROOT / name).is_file(), f"{name_of(path)}: {name}"
    assert named


def test_options_that_pages_name_exist() -> None:
    """Every ``--option`` in the pages is one of a command's, or of a tool's that is listed here."""
    from typer.main import get_command

    from crossfuse.cli import app

    group = get_command(app)
    known = {
        option
        for command in [group, *group.commands.values()]
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
    } | {"--help"}
    of_others = {
        "--out", "--dry-run", "--rounds", "--address", "--head", "--non-blocking", "--strict",
        "--output", "--jobs", "--eager", "--page", "--processor-time", "--rivals",
            "--prepare",
        "--require-hashes", "--no-deps",
    }  # fmt: skip
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", page.read_text()))
        assert named - known - of_others == set(), name_of(page)


def test_pages_that_are_tested_elsewhere_are() -> None:
    for page, test in TESTED_ELSEWHERE.items():
        assert page.name in test.read_text()


def test_files_that_pages_name_exist() -> None:
    homes = (ROOT, ROOT / "src" / "crossfuse")
    for page in PAGES:
        names = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|json|c|md))\b", page.read_text())
        for name in names:
            if name != "path/file.py":
                assert any((home / name).is_file() for home in homes), f"{name_of(page)}: {name}"


def named_in_architecture() -> dict[str, set[str]]:
    """Room → modules that ARCHITECTURE.md lists in its section."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = text.partition("\n## The rooms\n")[2].partition("\n## ")[0]
    named: dict[str, set[str]] = {}
    for section in rooms.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        words: list[str] = []
        for line in body.splitlines():
            if line.startswith("|") and "---" not in line:
                cells = line.strip("|").split("|")
                words.append(cells[-2])  # the column before what they hold
            elif not line.startswith("|"):
                words.append(line)
        stems = set(re.findall(r"`([a-z][a-z0-9_]*)`", " ".join(words)))
        for room in re.findall(r"`(\w+)/`", heading):
            named.setdefault(room, set()).update(stems)
    return named


def test_architecture_names_every_module_and_no_other() -> None:
    source = ROOT / "src" / "crossfuse"
    named = named_in_architecture()
    rooms = {p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert named.keys() == rooms
    modules = {
        room: {p.stem for p in (source / room).rglob("*.py")} - {"__init__"} for room in rooms
    }
    assert {r: modules[r] - named[r] for r in rooms if modules[r] - named[r]} == {}
    # One heading may be of two rooms; words that are no modules at all are something else.
    every = {stem for stems in modules.values() for stem in stems}
    stale = {r: named[r] - every - NO_MODULES for r in rooms}
    assert {room: words for room, words in stale.items() if words} == {}


NO_MODULES = {"onnx_ir", "api", "transformers"}
"""Words in ARCHITECTURE.md's sections of rooms that are names of something else."""


def test_every_error_has_a_line_in_the_reference() -> None:
    from crossfuse import errors

    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__
    ]
    kinds = {c.kind for c in classes if issubclass(c, errors.CrossfuseError)} - {"error"}
    assert len(kinds) > 8
    assert all(f"| `{kind}` |" in text for kind in kinds)


def test_every_public_name_is_in_the_reference() -> None:
    from crossfuse import runtime

    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert [name for name in crossfuse.__all__ if not re.search(rf"\b{name}\b", text)] == []
    text = (ROOT / "docs" / "reference" / "runtime.md").read_text()
    assert [name for name in runtime.__all__ if f"::: crossfuse.runtime.{name}" not in text] == []
