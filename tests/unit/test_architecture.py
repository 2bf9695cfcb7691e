"""The dependency rule and the public surface, checked on the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import crossfuse

ROOT = Path(crossfuse.__file__).parent
HEAVY = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"}


def imports(path: Path, *, module_level: bool = False) -> set[str]:
    """Modules that a file imports; ``TYPE_CHECKING`` blocks don't count."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            return
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "banned"),
    [
        ("export", ["build", "runtime", "models", "pipeline", "cli", "bundle"]),
        ("build", ["export", "models", "runtime", "pipeline", "cli", "verify"]),
        ("models", ["export", "build", "runtime", "verify", "pipeline", "cli", "bundle"]),
        (
            "runtime",
            ["export", "build", "models", "verify", "pipeline", "cli", "graphs", "model_spec"],
        ),
        (
            "bundle",
            [
                "export",
                "build",
                "models",
                "verify",
                "runtime",
                "pipeline",
                "cli",
                "graphs",
                "model_spec",
            ],
        ),
        ("profile", ["build", "models", "pipeline", "cli", "console"]),
        (
            "serve",
            [
                "export",
                "build",
                "models",
                "profile",
                "pipeline",
                "cli",
                "console",
                "graphs",
                "model_spec",
            ],
        ),
        (
            "operator",
            ["export", "build", "models", "verify", "runtime", "pipeline", "cli", "bundle"],
        ),
    ],
)
def test_packages_keep_to_their_side(package: str, banned: list[str]) -> None:
    for path in files_of(package):
        used = {
            name
            for name in imports(path)
            if any(name.split(".")[:2] == ["crossfuse", b] for b in banned)
        }
        assert not used, f"{path.relative_to(ROOT)} imports {used}"


def test_runtime_and_what_it_imports_need_no_pytorch_or_onnx() -> None:
    todo, seen = [*files_of("runtime")], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            assert name.split(".")[0] not in HEAVY, f"{path.relative_to(ROOT)} imports {name}"
            parts = name.split(".")
            if parts[0] == "crossfuse" and len(parts) > 1:
                base = ROOT.joinpath(*parts[1:])
                todo += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
    assert {"errors.py", "specs.py", "ledger.py"} <= {p.name for p in seen}


def test_models_use_the_operator_and_specs_only() -> None:
    allowed = {
        "operator",
        "models",
        "specs",
        "errors",
        "model_spec",
        "safetensors_files",
        "checkpoint_folder",
        "checkpoint_weights",
    }
    for path in files_of("models"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("crossfuse.")}
        assert used <= allowed, f"{path.name} imports {used - allowed}"


def test_command_line_starts_without_heavy_packages() -> None:
    for name in ("cli.py", "console.py", "pipeline.py", "__init__.py"):
        assert not {n.split(".")[0] for n in imports(ROOT / name, module_level=True)} & HEAVY


def test_modules_are_small() -> None:
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_public_surface() -> None:
    assert sorted(crossfuse.__all__) == [
        "Bundle", "BundleError", "CheckError", "CrossfuseError", "Dim", "FusionError", "InputError", "ModelSpec",
        "ParityError", "TensorSpec", "__version__", "build", "export", "fused_attention",
        "huggingface_spec", "open_bundle", "profile", "runtime",
        "verify",
    ]  # fmt: skip
    for name in crossfuse.__all__:
        assert getattr(crossfuse, name) is not None
    with pytest.raises(AttributeError):
        _ = crossfuse.nothing


def test_every_module_says_what_it_exports() -> None:
    for path in ROOT.rglob("*.py"):
        if path.name in ("__init__.py", "__main__.py"):
            continue
        names = [
            t.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for t in node.targets
            if isinstance(t, ast.Name)
        ]
        assert "__all__" in names, path.name


def test_export_is_a_function_and_a_package() -> None:
    import inspect

    import crossfuse.export.fuse

    for name in ("export", "build", "verify"):
        assert callable(getattr(crossfuse, name))
    assert crossfuse.export.fuse.fuse is not None
    assert list(inspect.signature(crossfuse.export).parameters)[:3] == ["source", "path", "targets"]


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert crossfuse.__version__ == version("crossfuse")
