"""Whisper: export encoder and decoder, then transcribe in a process that can't import PyTorch.

python examples/whisper.py CHECKPOINT SOUND.wav [--output FOLDER]

CHECKPOINT is a folder with a Whisper model of transformers (safetensors); SOUND is up to 30 s of 16 kHz mono.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np


def spec_encoder(checkpoint: str):
    """Log-mel spectrum → states."""
    import torch

    from crossfuse import huggingface_spec

    encoder = load(checkpoint).model.encoder
    mels, frames = encoder.config.num_mel_bins, 2 * encoder.config.max_source_positions
    features = torch.randn(1, mels, frames, generator=torch.Generator().manual_seed(0)) * 0.5
    return huggingface_spec(encoder, inputs={"input_features": features}, dynamic={"input_features": {0: "batch:1:2"}})


def spec_decoder(checkpoint: str):
    """Tokens so far and the encoder's states → logits."""
    import torch
    from torch import Tensor, nn

    from crossfuse import huggingface_spec

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whisper = load(checkpoint)
            self.decoder, self.logits = whisper.model.decoder, whisper.proj_out

        def forward(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            states = self.decoder(input_ids=decoder_input_ids, encoder_hidden_states=encoder_hidden_states)
            return self.logits(states.last_hidden_state)

    decoder = Decoder().eval()
    config = decoder.decoder.config
    generator = torch.Generator().manual_seed(0)
    return huggingface_spec(
        decoder,
        inputs={
            "decoder_input_ids": torch.randint(config.vocab_size, (2, 7), generator=generator),
            "encoder_hidden_states": torch.randn(2, config.max_source_positions, config.d_model, generator=generator),
        },
        dynamic={
            "decoder_input_ids": {0: "batch:1:8", 1: f"tokens:1:{config.max_target_positions}"},
            "encoder_hidden_states": {0: "batch"},
        },
    )


def load(checkpoint: str):
    """The whole model, in float32, without a cache among its outputs."""
    from crossfuse.export.huggingface.load import load_model

    return load_model(checkpoint)


def log_mel(checkpoint: str, sound: Path) -> np.ndarray:
    """``[1, mels, frames]`` by the checkpoint's own feature extractor."""
    from transformers import WhisperFeatureExtractor

    with wave.open(str(sound)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    return extractor(samples, sampling_rate=rate, return_tensors="np").input_features.astype(np.float32)


TRANSCRIBE = """
import json, sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None
import numpy as np
from crossfuse import runtime

folder, prompt, end, silent, longest = sys.argv[1], *map(json.loads, sys.argv[2:])
tokens = list(prompt)
with runtime.load(folder + "/encoder") as encoder, runtime.load(folder + "/decoder") as decoder:
    states = encoder.run(input_features=np.load(folder + "/features.npy"))["last_hidden_state"]
    while len(tokens) < longest and (len(tokens) == len(prompt) or tokens[-1] != end):
        ids = np.array([tokens], dtype=np.int64)
        logits = decoder.run(decoder_input_ids=ids, encoder_hidden_states=states)["output"][0, -1]
        if len(tokens) == len(prompt):
            logits[silent] = -np.inf
        tokens.append(int(logits.argmax()))
print(json.dumps(tokens))
"""


def transcribe(checkpoint: str, sound: Path, folder: Path) -> list[int]:
    """Export both parts to ``folder`` and decode greedily without PyTorch; the tokens, prompt included."""
    import crossfuse

    crossfuse.export(spec_encoder(checkpoint), folder / "encoder")
    crossfuse.export(spec_decoder(checkpoint), folder / "decoder")
    np.save(folder / "features.npy", log_mel(checkpoint, sound))
    config = json.loads((Path(checkpoint) / "generation_config.json").read_text())
    prompt = [config["decoder_start_token_id"], config["no_timestamps_token_id"]]
    arguments = [prompt, config["eos_token_id"], config["begin_suppress_tokens"], config["max_length"]]
    command = [sys.executable, "-c", TRANSCRIBE, str(folder), *map(json.dumps, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Export, transcribe, print."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--output", type=Path, default=Path("whisper-bundles"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    tokens = transcribe(options.checkpoint, options.sound, options.output)
    print(AutoTokenizer.from_pretrained(options.checkpoint).decode(tokens, skip_special_tokens=True).strip())


if __name__ == "__main__":
    main()
