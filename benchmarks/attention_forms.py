"""Which ONNX Runtime form of an attention is fastest on the CPU, in the same rounds of one process.

    python benchmarks/attention_forms.py [--threads 2] [--rounds 9] [--json FILE]

Forms: `mha` (com.microsoft.MultiHeadAttention, a mask as attention_bias), `attention` (ONNX
Attention, opset 23, a mask in
bool), `primitives` (MatMul, Add, Softmax, MatMul).
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import summarize

CASES = {
    "CLIP text, batch 8": (8, 8, 77, 77, 64),
    "ViLT, batch 1": (1, 12, 185, 185, 64),
    "ViLT, batch 4": (4, 12, 185, 185, 64),
    "Q-Former cross, batch 1": (1, 12, 32, 257, 64),
    "Q-Former cross, batch 8": (8, 12, 32, 257, 64),
    "BLIP text→image, batch 4": (4, 12, 20, 577, 64),
    "ViT of CLIP, batch 1": (1, 12, 50, 50, 64),
    "ViT of CLIP, batch 8": (8, 12, 50, 50, 64),
    "ViT of BLIP, batch 1": (1, 12, 577, 577, 64),
    "DETR encoder, batch 1": (1, 8, 850, 850, 32),
    "Whisper encoder, batch 1": (1, 6, 1500, 1500, 64),
    "one token over 448": (1, 6, 1, 448, 64),
    "long document, batch 1": (1, 12, 64, 4096, 64),
    "long document on itself": (1, 12, 4096, 4096, 64),
}
FORMS = ("mha", "attention", "primitives")
WITHOUT = ", no mask"


def model(form: str, heads: int, size: int) -> bytes:
    """One attention over [B, L, H·D] tensors, with a bool mask [B, 1, 1, S] where it has one."""
    masked = not form.endswith(WITHOUT)
    floating, boolean = TensorProto.FLOAT, TensorProto.BOOL
    width = heads * size
    nodes, scale = [], size**-0.5

    def op(
        name: str, inputs: list[str], output: str, domain: str = "", **attributes: object
    ) -> str:
        nodes.append(helper.make_node(name, inputs, [output], domain=domain, **attributes))
        return output

    def constant(name: str, values: object, dtype: type) -> str:
        array = np.asarray(values, dtype=dtype)
        tensor = helper.make_tensor(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.flatten()
        )
        return op("Constant", [], name, value=tensor)

    def all_rows(mask: str) -> str:
        rows = op("Shape", ["q"], "rows", start=1, end=2)
        keys = op("Shape", ["k"], "keys", start=1, end=2)
        one = constant("one", [1], np.int64)
        return op(
            "Expand", [mask, op("Concat", [one, one, rows, keys], "full", axis=0)], "mask_full"
        )

    def additive() -> str:
        zero, infinity = (
            constant("zero", 0.0, np.float32),
            constant("infinity", -np.inf, np.float32),
        )
        return op("Where", ["mask", zero, infinity], "bias")

    if form.startswith("mha"):
        mask = ["", "", all_rows(additive())] if masked else []
        op(
            "MultiHeadAttention",
            ["q", "k", "v", *mask],
            "y",
            "com.microsoft",
            num_heads=heads,
            scale=scale,
        )
    elif form.startswith("attention"):
        mask = [all_rows("mask")] if masked else []
        op(
            "Attention",
            ["q", "k", "v", *mask],
            "y",
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=scale,
        )
    else:
        split, merge = (
            constant("split", [0, 0, heads, size], np.int64),
            constant("merge", [0, 0, width], np.int64),
        )
        q = op("Transpose", [op("Reshape", ["q", split], "q4")], "qt", perm=[0, 2, 1, 3])
        k = op("Transpose", [op("Reshape", ["k", split], "k4")], "kt", perm=[0, 2, 3, 1])
        v = op("Transpose", [op("Reshape", ["v", split], "v4")], "vt", perm=[0, 2, 1, 3])
        q = op("Mul", [q, constant("scale", scale, np.float32)], "qs")
        scores = op("MatMul", [q, k], "s")
        weights = op(
            "Softmax", [op("Add", [scores, additive()], "sb") if masked else scores], "p", axis=-1
        )
        out = op("Transpose", [op("MatMul", [weights, v], "o")], "ot", perm=[0, 2, 1, 3])
        op("Reshape", [out, merge], "y")
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("q", floating, ["B", "L", width]),
            helper.make_tensor_value_info("k", floating, ["B", "S", width]),
            helper.make_tensor_value_info("v", floating, ["B", "S", width]),
            *([helper.make_tensor_value_info("mask", boolean, ["B", 1, 1, "S"])] if masked else []),
        ],
        [helper.make_tensor_value_info("y", floating, ["B", "L", width])],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def main() -> None:
    """Measure all cases and print a table of medians in ms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    rng, rows = np.random.default_rng(0), {}
    forms = [*FORMS, *(form + WITHOUT for form in FORMS)]
    print(f"{'median ms':28}" + "".join(f"{form:>21}" for form in forms))
    for case, (batch, heads, length, keys, size) in CASES.items():
        feeds = {
            "q": rng.standard_normal((batch, length, heads * size), dtype=np.float32),
            "k": rng.standard_normal((batch, keys, heads * size), dtype=np.float32),
            "v": rng.standard_normal((batch, keys, heads * size), dtype=np.float32),
            "mask": (np.arange(keys) < rng.integers(keys // 2, keys + 1, (batch, 1)))[
                :, None, None, :
            ],
        }
        runs = {}
        for form in forms:
            session = ort.InferenceSession(
                model(form, heads, size), options, providers=["CPUExecutionProvider"]
            )
            used = {i.name: feeds[i.name] for i in session.get_inputs()}
            runs[form] = partial(session.run, None, used)
        taken = sample(runs, Plan(rounds=arguments.rounds, seconds=0.1))
        rows[case] = {
            form: summarize(samples.rounds).median.value * 1e3 for form, samples in taken.items()
        }
        print(f"{case:28}" + "".join(f"{rows[case][form]:21.3f}" for form in forms), flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": environment(), "median_ms": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
