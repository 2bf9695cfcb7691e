"""Whisper on real speech: encode once and step, against eager `generate` with its cache.

    python benchmarks/transcribing.py CHECKPOINT SOUND.wav [--json FILE] [--repeats N]

Runs alternate. The bundle runs in processes of its own that can't import PyTorch; its time is that
of encoding and decoding.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

sys.path.insert(0, str(Path(__file__).parent))
import whisper_steps
from transformers import WhisperForConditionalGeneration


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    eager = WhisperForConditionalGeneration.from_pretrained(
        options.checkpoint, dtype=torch.float32
    ).eval()
    features = torch.from_numpy(whisper_steps.log_mel(options.checkpoint, options.sound))
    end = eager.generation_config.eos_token_id

    def words(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token < end]

    ours: list[float] = []
    theirs: list[float] = []
    flat: list[float] = []
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        whisper_steps.transcribe(options.checkpoint, options.sound, Path(name))
        eager.generate(features, do_sample=False, num_beams=1)
        for _ in range(options.repeats):
            done = whisper_steps.transcribe(options.checkpoint, options.sound, Path(name))
            ours.append(done["encode_s"] + done["decode_s"])
            steps = done["token_ms"]
            flat.append(float(np.median(steps[-20:]) / np.median(steps[:20])))
            begin = time.perf_counter()
            generated = eager.generate(features, do_sample=False, num_beams=1)[0].tolist()
            theirs.append(time.perf_counter() - begin)
    result = {
        "tokens": len(done["tokens"]),
        "same_tokens": words(done["tokens"]) == words(generated),
        "median_s": {
            "crossfuse": round(float(np.median(ours)), 3),
            "eager generate": round(float(np.median(theirs)), 3),
        },
        "ratio": round(float(np.median(theirs) / np.median(ours)), 2),
        "encode_s": round(done["encode_s"], 3),
        "token_ms": round(float(np.median(done["token_ms"])), 2),
        "last 20 over first 20": round(float(np.median(flat)), 3),
        "context_mb": done["context_bytes"] / 1e6,
        "state_mb": done["state_bytes"] / 1e6,
        "peak_mb": round(done["peak_bytes"] / 1e6, 1),
        "environment": {
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cpus": 2,
        },
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
