"""Encode once, ask many: BLIP-base's shapes, random weights.

12 text layers of width 768, 577 image tokens, 20 text tokens.

    python benchmarks/context_reuse.py [--json FILE] [--rounds N]

One image, G questions. All in one run, in the same rounds; medians, and ratios round by round with
their 95% intervals:

* ``crossfuse``: `session.query` on an encoded context: K and V of the image are there, queries are
  folded.
* ``fused, states cached``: the same graph, not split, in ONNX Runtime; the image encoder's states
  are kept by hand and repeated for the G questions.
* ``onnx, states cached``: the same with PyTorch's plain export at opset 20.
* ``eager, states cached`` and ``eager``: PyTorch, with the encoder's states kept by hand, and
  encoding the image each time.

Memory: the peak that G = 64 questions on one context add, against copies of K and V for each (Linux
only).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval

import crossfuse
from crossfuse import ModelSpec, huggingface_spec, runtime
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

TOKENS, IMAGE_TOKENS, WIDTH, LAYERS = 20, 577, 768, 12
QUESTIONS = (1, 4, 16)


class Matcher(nn.Module):
    """The part behind the image encoder, as a user would export it to keep the states by hand."""

    def __init__(self, model: BlipForImageTextRetrieval) -> None:
        super().__init__()
        self.text, self.head = model.text_encoder, model.itm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_states: Tensor) -> Tensor:
        """``[B, T]`` twice and ``[B, 577, 768]`` → ``[B, 2]``."""
        states = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=torch.ones(image_states.shape[:-1], dtype=torch.long),
        )[0]
        return self.head(states[:, 0])


def export_all(folder: Path) -> tuple[BlipForImageTextRetrieval, Matcher, dict[str, Path]]:
    """The model, its text part, and the files of each way."""
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig()).eval().requires_grad_(False)
    spec = huggingface_spec(model)
    crossfuse.export(spec, folder / "split", drop_outputs=["last_hidden_state", "question_embeds"])
    matcher = Matcher(model).eval()
    inputs = {
        "input_ids": torch.randint(3, 30000, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
        "image_states": torch.randn(2, IMAGE_TOKENS, WIDTH),
    }
    dynamic = {
        "input_ids": {0: "batch", 1: "text:1:512"},
        "attention_mask": {0: "batch", 1: "text"},
        "image_states": {0: "batch"},
    }
    crossfuse.export(ModelSpec(matcher, inputs, dynamic), folder / "whole")
    dims = {
        "batch": torch.export.Dim("batch", min=1, max=64),
        "text": torch.export.Dim("text", min=1, max=512),
    }
    shapes = {
        n: {axis: dims[d.partition(":")[0]] for axis, d in axes.items()}
        for n, axes in dynamic.items()
    }
    plain = folder / "plain.onnx"
    torch.onnx.export(
        matcher,
        (),
        str(plain),
        kwargs=inputs,
        input_names=list(inputs),
        dynamic_shapes=shapes,
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    return model, matcher, {"split": folder / "split", "whole": folder / "whole", "plain": plain}


PEAK = """
import sys
from pathlib import Path
import numpy as np
from crossfuse import runtime

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) * 1024

session = runtime.load(sys.argv[1], "ort-cpu")
context = session.encode(pixel_values=np.zeros((1, 3, 384, 384), "f4"))
count = int(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
ids, mask = np.full((count, 20), 5), np.ones((count, 20), np.int64)
session.query(context, input_ids=ids, attention_mask=mask)
print(status("VmHWM") - before, context.nbytes)
"""


def fan_out_memory(bundle: Path, fan_out: int) -> dict[str, float]:
    """What ``fan_out`` queries on one context add to the peak of one, against copies of K and V.

    Each is measured in a fresh process.
    """
    peaks = {}
    for count in (1, fan_out):
        command = [sys.executable, "-c", PEAK, str(bundle), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count], size = map(int, done.stdout.split())
    copies = size * (fan_out - 1)
    added = peaks[fan_out] - peaks[1]
    return {
        "queries": fan_out,
        "context_mb": size / 1e6,
        "copies_would_take_mb": copies / 1e6,
        "peak_added_mb": added / 1e6,
        "part_of_copies": added / copies,
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    plan = Plan(rounds=options.rounds)
    result: dict[str, Any] = {"median_ms": {}, "ratio": {}}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        model, matcher, files = export_all(Path(name))
        split, whole = (
            runtime.load(files["split"], "ort-cpu"),
            runtime.load(files["whole"], "ort-cpu"),
        )
        plain = ort.InferenceSession(str(files["plain"]), providers=["CPUExecutionProvider"])
        pixels = torch.randn(1, 3, 384, 384)
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        begin = time.perf_counter_ns()
        context = split.encode(pixel_values=pixels.numpy())
        result["encode_ms"] = round((time.perf_counter_ns() - begin) / 1e6, 1)
        result["context_mb"] = round(context.nbytes / 1e6, 2)
        for count in QUESTIONS:
            ids, mask = (
                torch.randint(3, 30000, (count, TOKENS)),
                torch.ones(count, TOKENS, dtype=torch.long),
            )
            repeated = states.expand(count, -1, -1).contiguous()
            text = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            feeds = text | {"image_states": repeated.numpy()}

            def encode_each_time(i: Tensor = ids, m: Tensor = mask, count: int = count) -> Tensor:
                image = model.vision_model(pixel_values=pixels).last_hidden_state
                return matcher(i, m, image.expand(count, -1, -1))

            ways: dict[str, Callable[[], Any]] = {
                "crossfuse": lambda text=text: split.query(context, **text),
                "fused, states cached": lambda feeds=feeds: whole.run(**feeds),
                "onnx, states cached": lambda feeds=feeds: plain.run(None, feeds),
                "eager, states cached": lambda i=ids, m=mask, s=repeated: matcher(i, m, s),
                "eager": encode_each_time,
            }
            got, want = ways["crossfuse"]()["itm_score"], ways["eager, states cached"]().numpy()
            error = float(np.abs(got - want).max())
            taken = sample(ways, plan)
            times = {
                name: round(summarize(taken[name].rounds).median.value * 1e3, 2) for name in ways
            }
            ratios = {
                name: paired_ratio(taken[name].rounds, taken["crossfuse"].rounds) for name in ways
            }
            result["median_ms"][f"{count} questions"] = times | {"largest difference": error}
            result["ratio"][f"{count} questions"] = {
                n: [round(end, 3) for end in r.to_json()] for n, r in ratios.items()
            }
            print(
                count,
                times,
                result["ratio"][f"{count} questions"],
                f"error {error:.1e}",
                flush=True,
            )
        result["memory"] = {k: round(v, 4) for k, v in fan_out_memory(files["split"], 64).items()}
    print(json.dumps(result["memory"], indent=1))
    result["environment"] = environment()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
