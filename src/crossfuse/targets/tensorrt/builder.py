"""Parses a lowered graph and builds its engine; only a worker process imports this.

Networks are parsed, and engines built, with a logger of ours, because the finished engine's layers
are known from the builder's messages alone; Polygraphy makes the profiles and the builder's
configuration.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

from crossfuse.core.tensorrt_layers import LISTING, read_layers
from crossfuse.targets.tensorrt.libraries import LIBRARY_VARIABLE, PROGRESS, RTX

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = importlib.import_module(os.environ[LIBRARY_VARIABLE])

__all__ = ["build", "library_version"]

_INTERVAL = 0.5
_USER_ALLOCATION = "REQUIRE_USER_ALLOCATION"


def library_version() -> str:
    """Version of the library that this process builds with."""
    return str(trt.__version__)


def build(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Build one engine into ``job["plan"]``: its layers, or the errors."""
    log = _Log()
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job["graph"]):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return {
            "parse_errors": [{"node": e.node_name(), "text": e.desc()} for e in errors],
            "errors": log.errors,
        }
    config = _config(builder, network, job, options)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None and any(_USER_ALLOCATION in text for text in log.errors):
        # Shapes that depend on values need memory while the engine is executed; it then runs
        # without CUDA graphs.
        log.errors.clear()
        log.listings.clear()
        config.clear_flag(getattr(trt.BuilderFlag, _USER_ALLOCATION))
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"errors": log.errors}
    Path(job["plan"]).write_bytes(plan)
    layers = [asdict(layer) for layer in read_layers(log.listings)]
    return {"layers": layers, "seconds": time.monotonic() - started, "errors": log.errors}


def _config(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    job: dict[str, Any],
    options: dict[str, Any],
) -> trt.IBuilderConfig:
    profiles = []
    for shapes in job["profiles"]:
        profile = Profile()
        for name, (smallest, typical, largest) in shapes.items():
            profile.add(name, min=tuple(smallest), opt=tuple(typical), max=tuple(largest))
        profiles.append(profile)
    common: dict[str, Any] = {
        "profiles": profiles,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": _Monitor(job["name"]),
    }
    if options.get("memory_limit"):
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options["memory_limit"]}
    if options.get("optimization_level") is not None:
        common["builder_optimization_level"] = options["optimization_level"]
    if options.get("lean"):
        common |= {"version_compatible": True, "exclude_lean_runtime": True}
    if os.environ[LIBRARY_VARIABLE] == RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [tuple(map(int, c.split("."))) for c in options["compute_capabilities"]]
        create = CreateConfigRTX(compute_capabilities=capabilities, **common)
    else:
        create = CreateConfig(**common)

    def flagged(
        builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
    ) -> None:
        # TF32 has the 10-bit mantissa of fp16: what stays in fp32 is to be computed in fp32.
        config.clear_flag(trt.BuilderFlag.TF32)
        if hasattr(trt.BuilderFlag, _USER_ALLOCATION):
            # TensorRT-RTX would else allocate memory while it executes, where sizes are large, and
            # then captures no CUDA graph.
            config.set_flag(getattr(trt.BuilderFlag, _USER_ALLOCATION))

    made: trt.IBuilderConfig = PostprocessConfig(create, flagged)(builder, network)
    return made


class _Log(trt.ILogger):
    """Keeps the errors, and the listing of the engine's layers."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.listings: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg)
        elif msg.startswith(LISTING):
            self.listings.append(msg)


class _Monitor(trt.IProgressMonitor):
    """Prints how far the builder is, now and then."""

    def __init__(self, name: str) -> None:
        trt.IProgressMonitor.__init__(self)
        self.name = name
        self.steps: dict[str, int] = {}
        self.last = time.monotonic()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self.steps[phase_name] = num_steps
        self.show(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self.show(phase_name, step)
        return True

    def phase_finish(self, phase_name: str) -> None:
        self.steps.pop(phase_name, None)

    def show(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if now - self.last >= _INTERVAL:
            self.last = now
            about = {
                "engine": self.name,
                "phase": phase,
                "step": step,
                "steps": self.steps.get(phase, 0),
            }
            sys.stdout.write(f"{PROGRESS}{json.dumps(about)}\n")
            sys.stdout.flush()
