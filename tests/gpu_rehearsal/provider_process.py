"""Load and run graphs on ONNX Runtime's CUDA provider over the stand-ins: a program of its own, for
the loader finds them then.

    LD_LIBRARY_PATH=STANDINS python provider_process.py JOBS.json RESULTS.json

A job names a graph file and the sizes to run it at; its result says which nodes went to the CPU,
and, for each run, the kernels that the provider's log names and the error, if any. Inputs are
zeros, and what comes out means nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"] = "1"

import numpy as np
import onnx
import onnxruntime as ort

from crossfuse.core.dimensions import size_at

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
INT, BOOL = onnx.TensorProto.INT64, onnx.TensorProto.BOOL
RESULTS = dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin"), INT)
RESULTS |= dict.fromkeys(
    (
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "Not",
        "And",
        "Or",
    ),
    BOOL,
)
DATA = {"Where": 1, "OneHot": 2, "CastLike": 1}
"""Which input has the type of the output, where it isn't the first."""

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}
NAMES = {
    "FLASH_ATTENTION": "flash",
    "EFFICIENT_ATTENTION": "efficient",
    "MATH": "math",
    "CUDNN_FLASH_ATTENTION": "cudnn",
}


class Log:
    """What C code prints to the standard output, which is a file from now on."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self.at = 0
        self.c = ctypes.CDLL(None)
        os.dup2(self.file.fileno(), 1)

    def new(self) -> str:
        """What was printed since the last call."""
        self.c.fflush(None)
        self.file.seek(self.at)
        text = self.file.read()
        self.at += len(text)
        return text.decode(errors="replace")


def session_of(graph: Path, optimized: Path) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimized.bin"
    )
    settings.optimized_model_filepath = str(optimized)
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    session = ort.InferenceSession(
        str(graph), settings, providers=[("CUDAExecutionProvider", options)]
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("the CUDA provider did not load")
    session.disable_fallback()
    return session


def types_in(graph: onnx.GraphProto) -> dict[str, int]:
    """Element types of all values; the optimized graph doesn't tell them. Without a rule an output
    has its first input's."""
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    types.update({t.name: t.data_type for t in graph.initializer})
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Cast":
            made = attributes["to"].i
        elif node.op_type in ("Constant", "ConstantOfShape"):
            made = (
                attributes["value"].t.data_type if "value" in attributes else onnx.TensorProto.FLOAT
            )
        elif node.op_type in RESULTS:
            made = RESULTS[node.op_type]
        else:
            made = types[node.input[DATA.get(node.op_type, 0)]]
        for i, name in enumerate(node.output):
            types.setdefault(
                name, onnx.TensorProto.INT64 if (node.op_type, i) == ("TopK", 1) else made
            )
    return types


def floats_on_cpu(
    session: ort.InferenceSession, optimized: Path
) -> tuple[list[str], dict[str, int]]:
    """``operator name`` of each node that computes floats on the CPU, and the nodes on the GPU by
    operator."""
    model = onnx.load(optimized, load_external_data=False)
    types = types_in(model.graph)
    by_name = {node.name: node for node in model.graph.node}
    floats, cuda = [], Counter()
    for part in session.get_provider_graph_assignment_info():
        for found in part.get_nodes():
            if part.ep_name != "CPUExecutionProvider":
                cuda[found.op_type] += 1
                continue
            node = by_name.get(found.name)
            names = (
                [] if node is None else [*node.output] if node.op_type != "Cast" else [*node.input]
            )
            if node is None or any(name and types[name] in FLOATS for name in names):
                floats.append(
                    f"{found.op_type} {found.name}"
                    + ("" if node is not None else " (not in the optimized graph)")
                )
    return floats, dict(cuda)


def inputs_at(session: ort.InferenceSession, sizes: dict[str, int]) -> Any:
    binding = session.io_binding()
    for value in session.get_inputs():
        shape = [size_at(d, sizes) or sizes.get("", 2) for d in value.shape]
        if value.type == "tensor(bfloat16)":
            made = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.zeros(shape, np.uint16), onnx.TensorProto.BFLOAT16
            )
        else:
            made = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, TYPES[value.type]))
        binding.bind_ortvalue_input(value.name, made)
    for value in session.get_outputs():
        binding.bind_output(value.name, "cuda")
    return binding


def do(job: dict[str, Any], log: Log, folder: Path) -> dict[str, Any]:
    optimized = folder / "optimized.onnx"
    try:
        session = session_of(Path(job["graph"]), optimized)
    except Exception as error:  # noqa: BLE001 -- a case that fails is a result, and others go on
        return {"failed": " ".join(str(error).split())[-400:]}
    floats, cuda = floats_on_cpu(session, optimized)
    runs = []
    for sizes in job["runs"]:
        log.new()
        error = None
        try:
            session.run_with_iobinding(inputs_at(session, sizes))
        except Exception as raised:  # noqa: BLE001 -- told in the result
            error = " ".join(str(raised).split())[-400:]
        kernels = [NAMES.get(k, k) for k in re.findall(r"SdpaKernel=(\w+)", log.new())]
        runs.append({"sizes": sizes, "kernels": kernels, "error": error})
    copies = Counter(
        node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node
    )
    return {"on_cpu": floats, "on_cuda": cuda, "to_host": copies["MemcpyToHost"], "runs": runs}


def main() -> None:
    jobs, results = map(Path, sys.argv[1:])
    log = Log()
    with tempfile.TemporaryDirectory() as folder:
        done = [do(job, log, Path(folder)) for job in json.loads(jobs.read_text())]
    results.write_text(json.dumps(done))


if __name__ == "__main__":
    main()
