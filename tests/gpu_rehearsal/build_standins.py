"""Compile libraries that stand in for CUDA's where ONNX Runtime's CUDA provider looks for them.

Which names they must have is read from the provider itself, so that another version of it gets what
it asks for. What is not written in `provider_*.c` returns 0.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from gpu_rehearsal.elf import imports_of

__all__ = ["build_provider_standins", "missing_for_provider", "provider_library"]

_HERE = Path(__file__).parent
_SOURCES = {
    "libcudart": "provider_cudart.c",
    "libcublas": "provider_cublas.c",
    "libcublasLt": "provider_cublas.c",
}
_CUDNN = "libcudnn.so.9"


def provider_library() -> Path | None:
    """The CUDA provider of the installed ONNX Runtime."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.is_file() else None


def missing_for_provider() -> str | None:
    """Why the provider can't be rehearsed here, or None."""
    if provider_library() is None:
        return "the installed ONNX Runtime has no CUDA provider for Linux"
    return None if shutil.which("cc") else "there is no C compiler (cc) on this machine"


def build_provider_standins(folder: Path) -> None:
    """Write the libraries into a folder, which goes into ``LD_LIBRARY_PATH`` of a process of its
    own.

    Raises:
        RuntimeError: the compiler refuses them.
    """
    provider = provider_library()
    assert provider is not None
    imports = imports_of(provider)
    names: dict[str, set[str]] = {
        library: set() for library in imports.needed if re.match(r"lib(cu|nv)", library)
    }
    versions: dict[str, str] = {}
    for (library, version), found in imports.versioned.items():
        if library in names:
            names[library] |= set(found)
            versions[library] = version
    for name in imports.plain:
        for prefix, library in (("curand", "libcurand"), ("cufft", "libcufft"), ("cu", "libcuda")):
            if re.match(prefix + "[A-Z]", name):
                for home in names:
                    if home.split(".")[0] == library:
                        names[home].add(name)
    names[_CUDNN] = set(imports.text)
    for library, wanted in names.items():
        source = _SOURCES.get(
            library.split(".")[0], "provider_cudnn.c" if library == _CUDNN else None
        )
        _compile(folder, library, wanted, versions.get(library), source)


def _compile(
    folder: Path, library: str, names: set[str], version: str | None, source: str | None
) -> None:
    rest = folder / f"{library}.rest.c"
    rest.write_text(
        "".join(
            f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in sorted(names)
        )
    )
    exported = folder / f"{library}.map"
    exported.write_text(f"{version or ''} {{ global: *; }};\n")
    sources = [rest] if source is None else [rest, _HERE / source]
    command = ["cc", "-w", "-shared", "-fPIC", "-O1", "-o", folder / library, *sources]
    command += [f"-Wl,-soname,{library}", f"-Wl,--version-script={exported}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the stand-in for {library} can't be compiled: {done.stderr}")
