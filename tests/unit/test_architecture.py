"""The order of the source: floors, circles, sizes, names, and the public surface."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

import crossfuse
from import_graph import arrows, circles, imported, module_files

ROOT = Path(crossfuse.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = module_files(ROOT)
ENTRY_POINTS = {"crossfuse.targets", "crossfuse.passes", "crossfuse.input_rules"}
"""Groups of entry points; the first has a room's name."""
ARROWS = [
    arrow for arrow in arrows(ROOT) if arrow.how != "text" or arrow.target not in ENTRY_POINTS
]
HEAVY = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"}

AT_THE_ROOT = {"__init__.py", "__main__.py", "cli.py", "errors.py"}

FLOORS = {
    "errors": "",
    "core": "errors",
    "ops": "errors core",
    "spec": "errors core",
    "bundle": "errors core",
    "graph": "errors core ops",
    "runtime": "errors core bundle",
    "models": "errors core ops spec",
    "export": "errors core ops spec bundle graph",
    "targets": "errors core ops bundle graph",
    "parity": "errors core ops spec bundle graph runtime export targets",
    "profiling": "errors core ops spec bundle graph runtime export parity",
    "serve": "errors core bundle runtime parity",
    "api": "errors core ops spec bundle graph runtime models export targets parity profiling serve",
}
"""Room → the rooms that it may use, lowest first. ``ARCHITECTURE.md`` has the same as a drawing."""
FLOORS["commands"] = " ".join(FLOORS)
FLOORS["cli"] = " ".join(FLOORS)
FLOORS["__main__"] = FLOORS["crossfuse"] = " ".join(FLOORS)

GENERATED = {
    "build", "dist", "develop-eggs", "downloads", "eggs", "lib", "lib64", "parts", "sdist", "var",
    "wheels", "htmlcov", "cover", "site", "target", "instance", "env", "venv", "out", "output",
    "bin", "obj", "cache", "tmp", "temp", "node_modules",
}  # fmt: skip
"""Folders that templates of .gitignore, editors and build tools take for generated."""


def room(module: str) -> str:
    """The room of a module: ``core`` of ``crossfuse.core.npz``; ``crossfuse`` of the root."""
    return [*module.split(".")[1:2], "crossfuse"][0]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def module_level(path: Path) -> set[str]:
    """The packages that importing a file imports."""
    names = imported(ast.parse(path.read_text()), module_level=True)
    return {name.split(".")[0] for name in names}


def test_no_arrow_points_up() -> None:
    assert set(FLOORS) == {room(module) for module in FILES}
    upward = {
        (arrow.source, arrow.target, arrow.how)
        for arrow in ARROWS
        if room(arrow.source) != room(arrow.target)
        and room(arrow.target) not in FLOORS[room(arrow.source)].split()
    }
    assert not upward


def test_floors_are_floors() -> None:
    """What is allowed has no circle itself."""
    allowed = [(a, b) for a, below in FLOORS.items() for b in below.split()]
    assert circles(allowed) == []


def test_no_circle_of_modules() -> None:
    assert circles((arrow.source, arrow.target) for arrow in ARROWS) == []


def test_no_circle_of_rooms_or_of_folders_within_one() -> None:
    def folder(module: str) -> str:
        is_package = FILES[module].name == "__init__.py"
        return module if is_package else module.rpartition(".")[0]

    pairs = [(a.source, a.target) for a in ARROWS]
    assert circles((room(a), room(b)) for a, b in pairs) == []
    for name in FLOORS:
        inside = [(folder(a), folder(b)) for a, b in pairs if room(a) == room(b) == name]
        home = f"crossfuse.{name}"
        # A room's own modules stand around its folders: what they share, and what calls them.
        assert circles((a, b) for a, b in inside if home not in (a, b)) == []


def test_the_graph_sees_lazy_imports_and_texts(tmp_path: Path) -> None:
    """The checks above can fail: a circle through a function and one through a command line."""
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text('"""See house.c."""\n')
    (package / "a.py").write_text("from house import b\n")
    (package / "b.py").write_text("def f():\n    import house.a\n")
    (package / "c.py").write_text('COMMAND = ["-m", "house.d"]\nCODE = "import house.a; run()"\n')
    (package / "d.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import a\n"
        "def f():\n    from house.c import COMMAND\n    return 'house.key', COMMAND\n"
    )
    found = {(a.source[6:], a.target[6:], a.how) for a in arrows(package)}
    assert found == {
        ("a", "b", "import"),
        ("b", "a", "lazy import"),
        ("c", "d", "text"),
        ("c", "a", "text"),
        ("d", "c", "lazy import"),
    }
    assert circles((a, b) for a, b, _ in found) == [["a", "b"], ["c", "d"]]


def test_the_root_holds_four_modules() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == AT_THE_ROOT
    assert len(AT_THE_ROOT) <= 5


def test_no_folder_has_the_name_of_something_else() -> None:
    """Neither of generated output, which tools leave out, nor of a standard module."""
    folders = {p.parent.name for p in FILES.values()} - {"crossfuse"}
    assert "report" in folders
    assert not folders & GENERATED
    assert not folders & sys.stdlib_module_names


def test_modules_are_small() -> None:
    lengths = {name: lines_of(path) for name, path in FILES.items()}
    assert {name for name, n in lengths.items() if n > 350} == set()
    modules = [n for name, n in lengths.items() if FILES[name].name != "__init__.py"]
    assert statistics.median(modules) <= 150


def test_every_module_is_named_by_a_test() -> None:
    """A module that no test imports fails only as part of something else."""
    named: set[str] = set()
    for path in TESTS.rglob("*.py"):
        if path == Path(__file__):
            continue
        text = path.read_text()
        named |= imported(ast.parse(text))
        named |= set(re.findall(r"crossfuse(?:\.[a-z_]\w*)+", text))
    prefixes = {".".join(name.split(".")[:n]) for name in named for n in range(1, 9)}
    modules = {n for n, p in FILES.items() if p.name not in ("__init__.py", "__main__.py")}
    assert modules - prefixes == set()


def test_runtime_and_what_it_imports_need_no_pytorch_or_onnx() -> None:
    todo, seen = [n for n in FILES if room(n) == "runtime"], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        packages = {n.split(".")[0] for n in imported(ast.parse(FILES[module].read_text()))}
        assert not packages & HEAVY, f"{module} imports {packages & HEAVY}"
        todo += [arrow.target for arrow in ARROWS if arrow.source == module]
    assert {"crossfuse.errors", "crossfuse.core.tensors", "crossfuse.core.ledger"} <= seen


def test_the_lower_floors_need_no_pytorch_or_onnx_to_be_imported() -> None:
    for name in ("core", "spec", "bundle", "runtime", "serve", "api", "commands"):
        for path in files_of(name):
            assert not module_level(path) & HEAVY or _may_be_heavy(path), path


def _may_be_heavy(path: Path) -> bool:
    """``spec`` makes inputs with PyTorch."""
    return path.relative_to(ROOT).as_posix() in ("spec/imitation.py", "spec/input_kinds.py")


def test_models_use_the_operator_and_specs_only() -> None:
    allowed = {
        "crossfuse.core.checkpoint_folder",
        "crossfuse.core.checkpoint_weights",
        "crossfuse.core.safetensors_files",
        "crossfuse.core.tensors",
        "crossfuse.errors",
    }
    for arrow in ARROWS:
        if room(arrow.source) == "models" and room(arrow.target) not in ("models", "ops", "spec"):
            assert arrow.target in allowed, f"{arrow.source} uses {arrow.target}"


def test_only_servers_import_ray_and_triton() -> None:
    homes = {
        "ray": ("serve/rayserve/", "serve/bulk/", "serve/cluster.py"),
        "pyarrow": ("serve/bulk/",),
        "triton_python_backend_utils": (
            "serve/triton/model.py",
            "serve/triton/generation_model.py",
        ),
    }
    for path in FILES.values():
        packages = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        for package in packages & homes.keys():
            assert path.relative_to(ROOT).as_posix().startswith(homes[package]), path


def test_command_line_starts_without_heavy_packages() -> None:
    for path in (ROOT / "cli.py", ROOT / "__init__.py", *files_of("commands"), *files_of("api")):
        assert not module_level(path) & HEAVY, path


def test_public_surface() -> None:
    assert sorted(crossfuse.__all__) == [
        "Bundle", "BundleError", "CheckError", "CrossfuseError", "Dim", "FusionError",
        "InputError", "ModelSpec", "ParityError", "Target", "TensorSpec", "__version__", "build",
        "diffusers_spec", "export", "fused_attention",
        "huggingface_spec", "open_bundle", "profile", "register_input_rule", "register_pass",
        "register_target", "runtime", "sign",
        "tune", "verify",
    ]  # fmt: skip
    for name in crossfuse.__all__:
        assert getattr(crossfuse, name) is not None
    with pytest.raises(AttributeError):
        _ = crossfuse.nothing


def test_every_module_says_what_it_exports() -> None:
    for path in FILES.values():
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
