"""Targets: what each is, told in one place, for those that build it, run it, check it and serve it.

A `Target` is a description that needs neither PyTorch nor an engine. The code of those that are
built in is bound to them where it may be imported: their openers in
:mod:`crossfuse.runtime.backends`, their lowerings in :mod:`crossfuse.targets.registry`. A target of
somebody else brings its own code along, or says where it is.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, replace

from crossfuse.core.engine_library import EngineLibrary
from crossfuse.core.missing_kernels import CUDA_WITHOUT_BF16, TENSORRT_WITHOUT_BF16
from crossfuse.core.plugins import Code, Registry
from crossfuse.core.requirements import install, is_installed
from crossfuse.errors import InputError, unknown

__all__ = [
    "CPU_TARGET",
    "GROUP",
    "HALF_PRECISIONS",
    "IO_DTYPES",
    "LOW_PRECISIONS",
    "PRECISIONS",
    "TARGETS",
    "EngineLibrary",
    "Target",
    "register_target",
    "require_precision",
    "require_target",
]

GROUP = "crossfuse.targets"
"""The entry points through which packages offer targets, each by the target's name."""

CPU_TARGET = "ort-cpu"
"""What an export builds where no target is asked for, and what executes the CPU equivalents of the
others."""

HALF_PRECISIONS = ("fp16", "bf16", "mixed")
"""Those in half floats; ``mixed`` is fp16 with as few nodes in fp32 as parity needs."""

LOW_PRECISIONS = ("int8", "mixed-int8", "fp8", "int4")
"""Those of linear layers in 8 bits or less, which have a parity policy of their own; ``mixed-int8``
keeps as few layers out of integers as that needs, ``fp8`` is of floats, and ``int4`` holds weights
alone."""

PRECISIONS = ("fp32", *HALF_PRECISIONS, *LOW_PRECISIONS)
"""What targets compute in."""

IO_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Choices for the inputs and outputs of a target: NumPy has no bfloat16."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


@dataclass(frozen=True)
class Target:
    """A target: what it is, what it needs, and, of a target that is not built in, its code.

    Functions may be given as ``"module:name"``, which is imported when it is first called: so a
    runtime without PyTorch can know a target whose lowering needs it.

    Args:
        name: small letters, digits, ``-`` and ``_``; it becomes part of file names.
        summary: for people, one line.
        lowering: the fused graph, in one of the precisions (an ``onnx_ir.Model``, left as it is) →
            :class:`~crossfuse.targets.lowering.Lowered`, whose graph goes into the bundle.
        opener: a :class:`~crossfuse.runtime.stage.StageRequest` → a
            :class:`~crossfuse.runtime.stage.Stage` over the graph file that it names.
        cpu_equivalent: the fused graph, in fp32 with the precision's roundings → a graph of
            operators that ONNX Runtime's CPU provider has, which computes what the target computes;
            it is checked in the target's place where that can't run. Where omitted, the lowering's
            own graph.
        precisions: of `PRECISIONS`, those that it can be built in, the default first.
        provider: what executes it, as its stages say it; where omitted, the target's name.
        requires: modules without which its opener can't work; of a tuple, one.
        install: the command that installs them, for advice.
        needs_gpu: it runs on NVIDIA GPUs alone.
        rank: of the targets of a bundle that run here, the one with the highest is taken.
        artifact_on_cpu: ONNX Runtime's CPU provider executes the target's own graphs, too.
        simulates: it executes half precision as fp32 that is rounded to it.
        portable: its graph is the fused graph itself, with nothing but the operator written out.
        compiles: its engine compiles graphs where they run. Its stages have to tell what
            attentions became (:class:`~crossfuse.runtime.stage.CompiledStage`), and the ledger has
            that instead of what the lowering asked for.
        joins_quantized: in low precision it takes products of numbers that are quantised and
            dequantised, and computes them in integers by itself.
        symmetric: its integers have 0 for 0, and what is no integer product is in half precision.
        without_bf16: operators that it has no bf16 kernel for; they stay in fp32.
        engine: the artifact is an engine of this library. Such a target needs no code of its own.
        triton: Triton's backend for graphs of one stage.
        suffix: of its graph files, behind a stage's name; where omitted, ``.NAME.onnx``.
        package: the distribution that provides it, by which a bundle names it where it is missing;
            an entry point fills it in.

    Raises:
        InputError: a name, precision or suffix that can't be.
    """

    name: str
    summary: str
    lowering: Code | None = None
    opener: Code | None = None
    _: KW_ONLY
    cpu_equivalent: Code | None = None
    precisions: tuple[str, ...] = ("fp32",)
    provider: str = ""
    requires: tuple[str | tuple[str, ...], ...] = ()
    install: str | None = None
    needs_gpu: bool = False
    rank: int = 0
    artifact_on_cpu: bool = False
    simulates: bool = False
    portable: bool = False
    compiles: bool = False
    joins_quantized: bool = False
    symmetric: bool = False
    without_bf16: frozenset[str] = frozenset()
    engine: EngineLibrary | None = None
    triton: str | None = None
    suffix: str = ""
    package: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise InputError(
                "a target's name becomes part of file names",
                got=repr(self.name),
                expected="small letters, digits, - and _",
            )
        if not self.precisions or not set(self.precisions) <= set(PRECISIONS):
            raise InputError(
                f"target {self.name!r} has precisions that can't be",
                got=self.precisions,
                expected=f"some of {', '.join(PRECISIONS)}, the default first",
            )
        ending = ".plan" if self.engine is not None else ".onnx"
        object.__setattr__(self, "suffix", self.suffix or f".{self.name}{ending}")
        object.__setattr__(self, "provider", self.provider or self.name)

    @property
    def builds_for_this_gpu(self) -> bool:
        """Its engines are built on the GPU that they are for."""
        return self.engine is not None and not self.engine.capabilities

    @property
    def hands_over_half(self) -> bool:
        """In half precision its stages hand over half floats. On the host these would be NumPy's
        arrays, which have no bfloat16."""
        return not (self.simulates or self.compiles)

    def file(self, stage: str) -> str:
        """File name of a stage's graph or engine."""
        return f"{stage}{self.suffix}"

    def weights_file(self, stage: str) -> str:
        """File name of the weights that a stage's graph has for itself."""
        return f"weights{'' if stage == 'model' else f'.{stage}'}.{self.name}.bin"

    def missing(self) -> str | None:
        """What its opener needs and is not installed, for people; None where all is there."""
        needed: list[str | tuple[str, ...]] = [*self.requires]
        if self.engine is not None:
            needed.append(self.engine.runtimes)
        for modules in needed:
            names = (modules,) if isinstance(modules, str) else modules
            if not any(is_installed(name) for name in names):
                return " or ".join(names)
        return None


_OF_ENGINES = ("fp16", "bf16", "mixed", "fp32", "int8", "mixed-int8", "fp8")
_GPU = "pip install 'crossfuse[gpu]'"

_BUILT_IN = (
    Target(
        "onnx",
        "portable ONNX with the operator as a function",
        precisions=("fp32",),
        provider="CPUExecutionProvider",
        requires=("onnxruntime",),
        install="pip install 'crossfuse[cpu]'",
        rank=10,
        artifact_on_cpu=True,
        portable=True,
        suffix=".onnx",
    ),
    Target(
        CPU_TARGET,
        "ONNX Runtime's fused operators for the CPU",
        precisions=("fp32", *HALF_PRECISIONS, "int8", "mixed-int8", "int4"),
        provider="CPUExecutionProvider",
        requires=("onnxruntime",),
        install="pip install 'crossfuse[cpu]'",
        rank=20,
        artifact_on_cpu=True,
        simulates=True,
        triton="onnxruntime_onnx",
    ),
    Target(
        "openvino",
        "OpenVINO's generated kernels for CPUs and Intel's GPUs",
        precisions=("fp32", "bf16", "fp16", "int8", "mixed-int8"),
        provider="OpenVINO",
        requires=("openvino",),
        install=install("openvino"),
        rank=15,
        compiles=True,
        joins_quantized=True,
    ),
    Target(
        "ort-cuda",
        "ONNX Runtime's fused operators for NVIDIA GPUs",
        precisions=("fp32", *HALF_PRECISIONS),
        provider="CUDAExecutionProvider",
        requires=("onnxruntime",),
        install=_GPU,
        needs_gpu=True,
        rank=30,
        without_bf16=CUDA_WITHOUT_BF16,
        artifact_on_cpu=True,
        triton="onnxruntime_onnx",
    ),
    Target(
        "tensorrt",
        "TensorRT engine for the GPU at hand",
        precisions=_OF_ENGINES,
        joins_quantized=True,
        symmetric=True,
        provider="TensorRT",
        install=_GPU,
        needs_gpu=True,
        rank=50,
        without_bf16=TENSORRT_WITHOUT_BF16,
        engine=EngineLibrary(
            "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), lean_module="tensorrt_lean"
        ),
        triton="tensorrt_plan",
    ),
    Target(
        "tensorrt-rtx",
        "TensorRT-RTX engine, built without a GPU",
        precisions=_OF_ENGINES,
        joins_quantized=True,
        symmetric=True,
        provider="TensorRT-RTX",
        install="pip install 'crossfuse[rtx]'",
        needs_gpu=True,
        rank=40,
        without_bf16=TENSORRT_WITHOUT_BF16,
        engine=EngineLibrary(
            "tensorrt_rtx",
            ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
            # Of TensorRT-RTX 1.7; the builder itself is asked again.
            capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        ),
    ),
)


def _accept(name: str, given: object, package: str) -> Target:
    if not isinstance(given, Target):
        raise InputError(
            "what is offered is no target", got=repr(given), expected="a crossfuse.Target"
        )
    if given.name != name:
        raise InputError(
            "a target's entry point has another name than the target",
            got=repr(name),
            expected=repr(given.name),
        )
    if given.engine is None and (given.lowering is None or given.opener is None):
        raise InputError(
            "a target needs a lowering and an opener", where=name, do="Give Target(...) both"
        )
    if not given.suffix.startswith(f".{name}."):
        # Another target's file could have the same name.
        raise InputError(
            "a target's file names can't be told from others",
            where=name,
            got=repr(given.suffix),
            expected=f"a suffix that begins with .{name}.",
        )
    return replace(given, package=given.package or package)


TARGETS: Registry[Target] = Registry(
    "target", GROUP, {target.name: target for target in _BUILT_IN}, _accept
)
"""All targets by name."""


def register_target(target: Target) -> None:
    """Make a target known to this process, by its name; again with the same target, nothing
    happens.

    A package makes its targets known to all processes by an entry point of the group
    ``crossfuse.targets`` instead, with the target's name.

    Raises:
        InputError: no target, one without code, or another one has the name.
    """
    TARGETS.register(getattr(target, "name", ""), target)


def require_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none, or the package that offers it can't be loaded.
    """
    try:
        return TARGETS[name]
    except (KeyError, TypeError):
        raise unknown("unknown target", name, TARGETS) from None


def require_precision(name: str | None, target: Target) -> str:
    """The precision, or the target's own where none is given.

    Raises:
        InputError: the target can't be built in it.
    """
    if name is None:
        return target.precisions[0]
    if name not in target.precisions:
        raise unknown(
            f"target {target.name!r} can't be built in this precision", name, target.precisions
        )
    return name
