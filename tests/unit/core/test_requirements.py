"""Which extra installs what, and the words for it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from crossfuse.core.requirements import EXTRAS, extra_of, install, is_installed, needed
from crossfuse.errors import BundleError, PackageError

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cuda": "cuda-core",
    "model_signing": "model-signing",
    "onnx_ir": "onnx-ir",
    "starlette": "ray",
    "tensorrt_rtx": "tensorrt-rtx",
    "yaml": "pyyaml",
    "pyarrow": "ray",
}
"""Where a distribution has another name than its module, or brings the module along."""


def test_extras_install_what_they_are_named_for() -> None:
    project = Path(__file__).parents[3] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        wanted = DISTRIBUTIONS.get(module, module)
        assert any(item.startswith(wanted) for item in extras[extra]), (module, extra)


def test_words() -> None:
    assert extra_of("onnx_ir.passes.common") == "export"
    assert extra_of("fcntl") is None
    assert extra_of(None) is None
    assert install("export", "cpu") == "pip install 'crossfuse[export,cpu]'"


def test_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed("numpy")
    assert not is_installed("no_such_module")
    bare = ModuleType("bare")
    bare.__spec__ = None
    monkeypatch.setitem(sys.modules, "bare", bare)
    assert is_installed("bare"), "there, although nobody can say from where"


def test_an_absent_package_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(PackageError) as error, needed("jinja2", "the page"):
        import jinja2
    assert str(error.value) == (
        "the page needs jinja2, which is not installed. "
        "Install it: pip install 'crossfuse[report]'."
    )
    with pytest.raises(BundleError), needed("jinja2", "the page", BundleError):
        import jinja2  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="other"), needed("jinja2", "the page"):
        import other.module  # noqa: F401
