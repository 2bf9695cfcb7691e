"""Whisper step by step, with times: a checkpoint of one language, exported once, transcribes in a
process that can't import PyTorch. For `transcribing.py` and `cases.py`.

The sound is encoded once; each token is one step. CHECKPOINT is a folder with a Whisper model of
transformers (safetensors); the sound is up to 30 s of 16 kHz mono.
"""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np


def log_mel(checkpoint: str, sound: Path) -> np.ndarray:
    """``[1, mels, frames]`` by the checkpoint's own feature extractor."""
    from transformers import WhisperFeatureExtractor

    with wave.open(str(sound)) as file:
        rate = file.getframerate()
        samples = (
            np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        )
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    return extractor(samples, sampling_rate=rate, return_tensors="np").input_features.astype(
        np.float32
    )


TRANSCRIBE = """
import json, resource, sys, time
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None
import numpy as np
from crossfuse import runtime

bundle, features = sys.argv[1:3]
prompt, end, silent, longest = map(json.loads, sys.argv[3:])
tokens, seconds = list(prompt), []
begin = time.perf_counter()
with runtime.load(bundle) as session:
    loaded = time.perf_counter()
    context = session.encode(input_features=np.load(features))
    encoded = time.perf_counter()
    state = session.start(context)
    for token in prompt:
        logits = session.step(state, np.array([token]))["logits"][0, -1].copy()
    logits[silent] = -np.inf
    while len(tokens) < longest:
        tokens.append(int(logits.argmax()))
        if tokens[-1] == end:
            break
        start = time.perf_counter()
        logits = session.step(state, np.array([tokens[-1]]))["logits"][0, -1]
        seconds.append(time.perf_counter() - start)
    done = time.perf_counter()
    print(json.dumps({
        "tokens": tokens,
        "load_s": loaded - begin,
        "encode_s": encoded - loaded,
        "decode_s": done - encoded,
        "token_ms": [1e3 * s for s in seconds],
        "context_bytes": context.nbytes,
        "state_bytes": state.nbytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))
"""


def transcribe(checkpoint: str, sound: Path, folder: Path) -> dict:
    """Export to ``folder`` unless that was done before, and decode greedily without PyTorch.

    Returns:
        ``tokens`` (prompt included), and how long loading, encoding and each step took.
    """
    import crossfuse

    if not (folder / "bundle").exists():
        crossfuse.export(
            f"hf:{checkpoint}", folder / "bundle", drop_outputs=["encoder_last_hidden_state"]
        )
    np.save(folder / "features.npy", log_mel(checkpoint, sound))
    config = json.loads((Path(checkpoint) / "generation_config.json").read_text())
    prompt = [config["decoder_start_token_id"], config["no_timestamps_token_id"]]
    arguments = [
        prompt,
        config["eos_token_id"],
        config["begin_suppress_tokens"],
        config["max_length"],
    ]
    files = [str(folder / "bundle"), str(folder / "features.npy")]
    command = [sys.executable, "-c", TRANSCRIBE, *files, *map(json.dumps, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
