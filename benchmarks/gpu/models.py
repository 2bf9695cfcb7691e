"""Whole models: their numbers, their decoding and serving, their latency."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from case import Run, kernels

import crossfuse
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.reference import REFERENCE_FILE, load_reference
from crossfuse.profiling.measure.sampling import sample
from crossfuse.profiling.measure.statistics import summarize
from crossfuse.runtime import load
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.gpu import Gpu
from crossfuse.serve.request_engine import Request, RequestEngine

__all__ = ["decoding", "latency", "parity"]

_PRECISIONS = ("fp32", "fp16", "bf16")


def parity(run: Run) -> None:
    """Numbers of the zoo, and which kernels computed them."""
    targets = [run.target] if run.dry else ["ort-cuda", "tensorrt-rtx"]
    for name in run.models:
        for precision in _PRECISIONS[:1] if run.dry else _PRECISIONS:
            for target in targets:
                if (target, precision) == ("tensorrt-rtx", "fp32"):
                    continue
                run.case(
                    lambda n=name, t=target, p=precision: _parity(run, n, t, p),
                    model=name,
                    target=target,
                    precision=precision,
                )


def _parity(run: Run, name: str, target: str, precision: str) -> dict[str, Any]:
    folder = run.work / f"{name}-{target}-{precision}"
    if not folder.exists():
        shutil.copytree(run.bundle(name), folder)
    capabilities = [Gpu(run.device).capability] if target == "tensorrt-rtx" else []
    crossfuse.build(folder, target, precision=precision, compute_capabilities=capabilities)
    report = crossfuse.verify(folder, target, options=run.options)
    ledger = {row.site: row.fused.get(target) for row in crossfuse.open_bundle(folder).ledger}
    ran = (
        kernels(run, [{"bundle": str(folder), "target": target}])[0]
        if target.startswith("ort")
        else {}
    )
    return {"passed": report.passed, "report": report.to_json(), "ledger": ledger, **ran}


def decoding(run: Run) -> None:
    """Steps with the state where the engine computes, and a server over contexts kept there."""
    run.case(lambda: _steps(run), what="steps")
    run.case(lambda: _served(run), what="a server")


def bart(size: str) -> Any:
    """BART, with random weights."""
    import transformers as hf

    torch.manual_seed(0)
    small = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 1), ("ffn_dim", 37))
    }
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    small |= {"d_model": 32, "vocab_size": 99, "max_position_embeddings": 64}
    model = hf.BartForConditionalGeneration(
        hf.BartConfig(**(small if size == "tiny" else {}))
    ).eval()
    model.config.use_cache = False
    return crossfuse.huggingface_spec(model)


def _steps(run: Run) -> dict[str, Any]:
    folder = run.bundle("bart", bart(run.size))
    report = crossfuse.verify(folder, run.target, options=run.options)
    inputs = dict(load_reference(folder / REFERENCE_FILE).points[0].inputs)
    with load(folder, run.target, run.options) as session:
        names = [spec.name for spec in session.stages["context"].inputs]
        context = session.encode(**{n: inputs[n] for n in names})
        state = session.start(context)
        ids = np.full(state.batch, 5)

        def step() -> object:
            if state.position == state.length:
                state.rewind()
            return session.step(state, ids)

        samples = sample({"step": step}, run.plan)["step"]
        on_device = all(isinstance(array, DeviceArray) for array in state.memory.tensors.values())
    steps = {
        name: asdict(output) for name, output in report.outputs.items() if "step by step" in name
    }
    return {
        "passed": report.passed,
        "steps": steps,
        "state_on_device": on_device,
        "seconds": summarize(samples.rounds).to_json(),
    }


def _served(run: Run) -> dict[str, Any]:
    folder = run.bundle("qformer")
    inputs = dict(load_reference(folder / REFERENCE_FILE).points[0].inputs)
    with load(folder, run.target, run.options) as session:
        engine = RequestEngine(session)
        merges = engine.prove_merging(inputs)
        (alone,) = engine.answer([Request(inputs)])
        together = engine.answer([Request(inputs)] * 8)
        if not isinstance(alone, dict):
            raise alone
        close = all(
            np.allclose(got[n], a, atol=1e-2)
            for got in together
            if isinstance(got, dict)
            for n, a in alone.items()
        )
        calls = {
            "1 request": lambda: engine.answer([Request(inputs)]),
            "8 requests": lambda: engine.answer([Request(inputs)] * 8),
        }
        taken = sample(calls, run.plan)
    seconds = {name: summarize(samples.rounds).to_json() for name, samples in taken.items()}
    return {
        "merges": merges,
        "agree": close and all(isinstance(got, dict) for got in together),
        "seconds": seconds,
    }


def latency(run: Run) -> None:
    """The zoo against what one would use otherwise, all in the same rounds."""
    known = ("eager", "onnx")
    if not run.dry:
        known = ("eager", "eager-fp16", "compile", "compile-max", "onnx")
    rivals = run.rivals or known
    for name in run.models:
        for precision in ("fp32",) if run.dry else ("fp32", "fp16"):
            run.case(
                lambda n=name, p=precision: _latency(run, n, p, rivals),
                model=name,
                precision=precision,
            )


def _latency(run: Run, name: str, precision: str, rivals: tuple[str, ...]) -> dict[str, Any]:
    folder = run.work / f"{name}-latency-{precision}"
    if not folder.exists():
        shutil.copytree(run.bundle(name), folder)
    crossfuse.build(folder, run.target, precision=precision)
    report = crossfuse.profile(
        folder,
        run.target,
        against=rivals,
        source=zoo_spec(name, run.size),
        plan=run.plan,
        cold_starts=0,
        trace=not run.dry,
        options=run.options,
    )
    return {"report": report.to_json()}
