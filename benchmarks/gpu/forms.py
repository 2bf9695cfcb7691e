"""Forms of an attention side by side on ONNX Runtime: kernels, latency, and error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from case import Run, kernels
from onnx import TensorProto, helper

from crossfuse.errors import CrossfuseError
from crossfuse.ops.reference import attention_reference
from crossfuse.profiling.measure.sampling import sample
from crossfuse.profiling.measure.statistics import summarize
from crossfuse.runtime.onnxruntime_stage import OrtStage

__all__ = ["forms"]

_QUERIES, _KEYS = (1, 12, 32, 512), (257, 577, 1500)
_FORMS = ("mha", "mha, bias", "attention, lengths", "attention, mask")
_ELEMENTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_BATCH, _HEADS, _SIZE = 2, 12, 64


def forms(run: Run) -> None:
    """Forms of an attention side by side, against the operator's float64 reference."""
    queries, keys = ((1, 12), (13,)) if run.dry else (_QUERIES, _KEYS)
    for precision in ("fp32",) if run.dry else _ELEMENTS:
        for length in queries:
            for count in keys:
                about = {"precision": precision, "queries": length, "keys": count}
                run.case(lambda p=precision, q=length, k=count: _forms(run, p, q, k), **about)


def _forms(run: Run, precision: str, queries: int, keys: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    dtype = np.float32 if precision == "fp32" else np.float16
    width = _HEADS * _SIZE
    q = rng.standard_normal((_BATCH, queries, width)).astype(dtype)
    k, v = (rng.standard_normal((_BATCH, keys, width)).astype(dtype) for _ in range(2))
    lengths = np.array([keys, keys // 2 + 1], np.int64)
    provider = "CPUExecutionProvider" if run.dry else "CUDAExecutionProvider"
    calls: dict[str, Callable[[], object]] = {}
    jobs, errors = [], {}
    with tempfile.TemporaryDirectory() as name:
        for form in _FORMS:
            feeds = {"q": q, "k": k, "v": v}
            seen = np.arange(keys) < lengths[:, None]
            if form == "mha, bias":
                feeds["extra"] = (
                    np.where(seen, 0, -10_000)[:, None, None].repeat(queries, 2).astype(dtype)
                )
            elif form == "attention, lengths":
                feeds["extra"] = lengths
            elif form == "attention, mask":
                feeds["extra"] = seen[:, None, None].repeat(queries, 2)
            graph, inputs = Path(name) / f"{form}.onnx", Path(name) / f"{form}.npz"
            graph.write_bytes(_form(form, _ELEMENTS[precision], queries, keys))
            np.savez(inputs, **feeds)
            jobs.append({"graph": str(graph), "inputs": str(inputs), "provider": provider})
            try:
                engine = OrtStage(graph, provider, run.options)
                got = engine.run_mixed(feeds)[0]
            except CrossfuseError as error:
                errors[form] = {"refused": str(error)}
                continue
            wide = [x.astype(np.float64) for x in (q, k, v)]
            told = {} if form == "mha" else {"key_lengths": lengths}
            expected = attention_reference(
                *wide,
                num_heads=_HEADS,
                kv_num_heads=_HEADS,
                scale=_SIZE**-0.5,
                causal="none",
                **told,
            )
            errors[form] = {"largest_error": float(np.abs(got.astype(np.float64) - expected).max())}
            placed = run.place(feeds)
            calls[form] = lambda e=engine, p=placed: e.run_on_device(p)
        ran = kernels(run, jobs)
        taken = sample(calls, run.plan) if calls else {}
    found = {form: {**errors[form], **ran[i]} for i, form in enumerate(_FORMS)}
    for form, samples in taken.items():
        found[form]["seconds"] = summarize(samples.rounds).to_json()
    return {"forms": found}


def _form(form: str, element: int, queries: int, keys: int) -> bytes:
    """One attention over [B, L, H·D] tensors."""
    width = _HEADS * _SIZE
    inputs = [helper.make_tensor_value_info("q", element, ["b", queries, width])]
    inputs += [helper.make_tensor_value_info(name, element, ["b", keys, width]) for name in "kv"]
    extra = {
        "mha, bias": (element, ["b", 1, queries, keys]),
        "attention, lengths": (TensorProto.INT64, ["b"]),
        "attention, mask": (TensorProto.BOOL, ["b", 1, queries, keys]),
    }
    if form in extra:
        inputs.append(helper.make_tensor_value_info("extra", *extra[form]))
    if form.startswith("mha"):
        names = ["q", "k", "v", *(["", "", "extra"] if form in extra else [])]
        settings = {"domain": "com.microsoft", "num_heads": _HEADS}
        node = helper.make_node("MultiHeadAttention", names, ["o"], scale=_SIZE**-0.5, **settings)
    else:
        names = [
            "q",
            "k",
            "v",
            *(["", "", "", "extra"] if form == "attention, lengths" else ["extra"]),
        ]
        node = helper.make_node(
            "Attention", names, ["o"], q_num_heads=_HEADS, kv_num_heads=_HEADS, scale=_SIZE**-0.5
        )
    graph = helper.make_graph(
        [node], "form", inputs, [helper.make_tensor_value_info("o", element, None)]
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
