"""Whisper on real speech: crossfuse against CTranslate2, faster-whisper and eager PyTorch.

    python benchmarks/transcribing.py CHECKPOINT SOUND.wav [--rivals PYTHON] [--json FILE]

Every library runs in a process of its own, with two threads, and they take turns: in each round
each transcribes once, each round beginning with another one. Times are those of encoding and
decoding, the features computed before; ``whole`` is from the sound to the tokens, with five beams
and times, as faster-whisper does by default. Ratios are taken round by round: above 1, crossfuse
is faster. PYTHON has ctranslate2, faster-whisper, torch and transformers; without it, crossfuse is
compared with eager alone.

``--shapes base`` takes a model of the size of Whisper base in the checkpoint's place, of random
weights, which says a fixed number of tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import whisper_steps

import crossfuse
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

THREADS, REST, TOKENS = 2, 0.3, 100
FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
CONVERT = """
import sys
from ctranslate2.converters import TransformersConverter
source, target = sys.argv[1:]
files = ["preprocessor_config.json", "tokenizer.json"]
TransformersConverter(source, copy_files=files).convert(target, quantization="float32")
"""
VERSIONS = """
from importlib.metadata import version
print(*(f"{n}={version(n)}" for n in ("ctranslate2", "faster-whisper", "torch", "transformers")))
"""


class Library:
    """A process that transcribes when it is told to."""

    def __init__(self, python: str, name: str, about: Mapping[str, Any], folder: Path) -> None:
        settings = folder / f"{len(list(folder.iterdir()))}.json"
        settings.write_text(json.dumps(dict(about)))
        script = Path(__file__).with_name("transcribers.py")
        self._process = subprocess.Popen(
            [python, str(script), name, str(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ways: list[str] = self._answer()

    def run(self, way: str) -> dict[str, Any]:
        """Seconds and tokens of one transcript; the threads of what ran before sleep by then."""
        time.sleep(REST)
        assert self._process.stdin is not None
        print(way, file=self._process.stdin, flush=True)
        answer: dict[str, Any] = self._answer()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)


def random_base(checkpoint: str, folder: Path) -> str:
    """A checkpoint of the size of Whisper base, beside the other's tokenizer and settings."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig.from_pretrained(
        checkpoint,
        d_model=512,
        num_hidden_layers=6,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    del model.generation_config.alignment_heads
    model.save_pretrained(folder / "checkpoint")
    for name in FILES:
        shutil.copyfile(Path(checkpoint) / name, folder / "checkpoint" / name)
    return str(folder / "checkpoint")


def libraries(options: argparse.Namespace, folder: Path) -> dict[str, Library]:
    """All that are there."""
    checkpoint = options.checkpoint
    if options.shapes == "base":
        checkpoint = random_base(checkpoint, folder)
    bundle = options.bundle or folder / "bundle"
    if not bundle.exists():
        crossfuse.export(
            f"hf:{checkpoint}", bundle, drop_outputs=["encoder_last_hidden_state"], quick=True
        )
    np.save(folder / "features.npy", whisper_steps.log_mel(checkpoint, options.sound))
    config = json.loads((Path(checkpoint) / "generation_config.json").read_text())
    own_words = options.shapes == "checkpoint"
    prompt = [config["decoder_start_token_id"], config["no_timestamps_token_id"]]
    end = [] if own_words else [config["eos_token_id"]]
    about = {
        "bundle": str(bundle),
        "checkpoint": checkpoint,
        "converted": str(folder / "converted"),
        "features": str(folder / "features.npy"),
        "sound": str(options.sound),
        "threads": THREADS,
        "prompt": prompt,
        "suppressed": [*config["suppress_tokens"], *end],
        "longest": config["max_length"] if own_words else len(prompt) + TOKENS,
    }
    made = [
        ("crossfuse", sys.executable, "crossfuse", {}),
        ("eager", sys.executable, "eager", {}),
    ]
    if options.rivals:
        convert = [options.rivals, "-c", CONVERT, checkpoint, about["converted"]]
        subprocess.run(convert, check=True, capture_output=True)
        for kind in ("float32", "int8"):
            of_kind = {"compute_type": kind}
            made.append((f"CTranslate2 {kind}", options.rivals, "ctranslate2", of_kind))
        if own_words:
            made.append(("faster-whisper", options.rivals, "faster-whisper", {}))
    work = folder / "settings"
    work.mkdir()
    return {name: Library(python, kind, about | more, work) for name, python, kind, more in made}


def measured(
    running: Mapping[str, Library], rounds: int
) -> tuple[dict[tuple[str, str], list[list[int]]], dict[tuple[str, str], list[int]]]:
    """Nanoseconds by round, and the tokens, of each library's ways."""
    ways = [(name, way) for name, library in running.items() for way in library.ways]
    tokens = {(name, way): running[name].run(way)["tokens"] for name, way in ways}
    taken: dict[tuple[str, str], list[list[int]]] = {one: [] for one in ways}
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(ways)
        for name, way in ways:
            taken[name, way].append([round(1e9 * running[name].run(way)["seconds"])])
    return taken, tokens


def ratios(taken: Mapping[tuple[str, str], Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Each library's time over crossfuse's, with its interval, by way."""
    found: dict[str, Any] = {}
    for (name, way), times in taken.items():
        if name != "crossfuse":
            ratio = paired_ratio(times, taken["crossfuse", way])
            found.setdefault(way, {})[name] = [round(end, 3) for end in ratio.to_json()]
    return found


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--shapes", choices=("checkpoint", "base"), default="checkpoint")
    parser.add_argument("--bundle", type=Path, help="exported before, of the same model")
    parser.add_argument("--rivals", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    about = environment()
    if options.rivals:
        asked = [options.rivals, "-c", VERSIONS]
        done = subprocess.run(asked, check=True, capture_output=True, text=True)
        about["rivals"] = dict(one.split("=") for one in done.stdout.split())
    with tempfile.TemporaryDirectory() as name:
        running = libraries(options, Path(name))
        taken, tokens = measured(running, options.rounds)
        for library in running.values():
            library.close()
    result = {
        "model": "base, random" if options.shapes == "base" else Path(options.checkpoint).name,
        "rounds": options.rounds,
        "tokens": {f"{name}, {way}": len(found) for (name, way), found in tokens.items()},
        "same_tokens_as_eager": {
            way: words(tokens["crossfuse", way]) == words(tokens["eager", way])
            for way in ("greedy", "5 beams")
        },
        "median_s": {
            f"{name}, {way}": [round(end, 4) for end in summarize(times).median.to_json()]
            for (name, way), times in taken.items()
        },
        "ratio": ratios(taken),
        "environment": about,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def words(tokens: Sequence[int]) -> list[int]:
    """Tokens of text; Whisper's others are behind these."""
    return [token for token in tokens if token < 50256]


if __name__ == "__main__":
    main()
