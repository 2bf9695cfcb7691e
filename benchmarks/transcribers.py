"""One library that transcribes, in a process of its own, for `transcribing.py`.

python benchmarks/transcribers.py LIBRARY SETTINGS.json

Each line that comes in is a way; the answer is one line of JSON, with the seconds that it took and
the tokens. Features are computed before; a way named ``whole`` takes the sound itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Way = Callable[[], list[int]]
BEAMS = {"greedy": 1, "5 beams": 5}


def of_crossfuse(about: dict[str, Any]) -> dict[str, Way]:
    """A session of the stages that decode; PyTorch can't be imported."""
    for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers"):
        sys.modules[name] = None  # type: ignore[assignment]
    from crossfuse import runtime

    options = runtime.SessionOptions(threads=about["threads"])
    session = runtime.load(about["bundle"], options=options, stages=["context", "step"])
    processor = runtime.load_processor(about["bundle"])
    features = np.load(about["features"])
    fixed = {"suppress_tokens": about["suppressed"], "max_length": about["longest"]}

    def asked(beams: int) -> list[int]:
        context = session.encode(input_features=features)
        found = runtime.generate(session, context, [about["prompt"]], num_beams=beams, **fixed)
        return list(map(int, found.new_tokens[0]))

    def whole() -> list[int]:
        found = runtime.transcribe(session, processor, about["sound"], timestamps=True, num_beams=5)
        return list(map(int, found.tokens))

    return {**{name: lambda n=n: asked(n) for name, n in BEAMS.items()}, "whole": whole}


def of_ctranslate2(about: dict[str, Any]) -> dict[str, Way]:
    """The converted checkpoint, in ``about["compute_type"]``."""
    import ctranslate2

    model = ctranslate2.models.Whisper(
        about["converted"],
        device="cpu",
        compute_type=about["compute_type"],
        intra_threads=about["threads"],
    )
    features = np.ascontiguousarray(np.load(about["features"]))
    # It writes half of `max_length` at most.
    longest = 2 * (about["longest"] - len(about["prompt"]))

    def asked(beams: int) -> list[int]:
        found = model.generate(
            ctranslate2.StorageView.from_array(features),
            [about["prompt"]],
            beam_size=beams,
            max_length=longest,
            suppress_blank=True,
            suppress_tokens=about["suppressed"],
        )
        return list(map(int, found[0].sequences_ids[0]))

    return {name: lambda n=n: asked(n) for name, n in BEAMS.items()}


def of_faster_whisper(about: dict[str, Any]) -> dict[str, Way]:
    """With its defaults: five beams, times, higher temperatures where a window goes wrong."""
    from faster_whisper import WhisperModel

    model = WhisperModel(about["converted"], device="cpu", cpu_threads=about["threads"])

    def whole() -> list[int]:
        segments, _ = model.transcribe(about["sound"], language="en")
        return [int(token) for segment in segments for token in segment.tokens]

    return {"whole": whole}


def of_eager(about: dict[str, Any]) -> dict[str, Way]:
    """PyTorch and the library's own ``generate``, with its cache."""
    import torch
    import transformers

    torch.set_num_threads(about["threads"])
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        about["checkpoint"], dtype=torch.float32
    ).eval()
    model.generation_config.suppress_tokens = about["suppressed"]
    features = torch.from_numpy(np.load(about["features"]))

    @torch.inference_mode()
    def asked(beams: int) -> list[int]:
        found = model.generate(
            features, do_sample=False, num_beams=beams, max_length=about["longest"]
        )
        return list(map(int, found[0]))

    return {name: lambda n=n: asked(n) for name, n in BEAMS.items()}


LIBRARIES: dict[str, Callable[[dict[str, Any]], dict[str, Way]]] = {
    "crossfuse": of_crossfuse,
    "ctranslate2": of_ctranslate2,
    "faster-whisper": of_faster_whisper,
    "eager": of_eager,
}


def main() -> None:
    """Answer until the input ends."""
    ways = LIBRARIES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
    answers = sys.stdout
    sys.stdout = sys.stderr
    print(json.dumps(list(ways)), file=answers, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        tokens = ways[line.strip()]()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
