"""Whisper tiny.en on real speech in low precision: its words and its time, against CTranslate2 in
int8.

    python benchmarks/whisper_int8.py CHECKPOINT SOUND.wav [--work FOLDER] [--json FILE]

int8 is built with the metric of `spoken_words.py`, on the two halves of the sound, and heard on the
whole. Times are those of encoding and decoding, greedy, the features computed before; all take
turns in one process, with all cores. CTranslate2 has to be installed; with ``--prepare`` nothing is
measured. Word errors are against the words of ``ort-cpu`` in fp32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spoken_words import errors

import crossfuse
from crossfuse import CrossfuseError, runtime
from crossfuse.core.linear_ledger import in_words
from crossfuse.core.media_files import read_sound
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

RATE = 16_000
WAYS = (
    ("ort-cpu", "fp32"),
    ("ort-cpu", "int8"),
    ("openvino", "int8"),
)
RIVAL = "ctranslate2 int8"


def bundles(checkpoint: str, sound: Path, work: Path) -> dict[str, Path]:
    """Way → bundle; where int8 fails the metric, ``mixed-int8`` takes its place."""
    base = work / "ort-cpu-fp32"
    if not base.exists():
        dropped = ["encoder_last_hidden_state"]
        crossfuse.export(f"hf:{checkpoint}", base, drop_outputs=dropped, quick=True, step=print)
    data = work / "halves"
    if not data.exists():
        data.mkdir()
        heard = read_sound(sound, RATE)
        for number, part in enumerate(np.array_split(heard, 2)):
            np.savez(data / f"{number}.npz", **labelled(checkpoint, base, part))
    found = {}
    for target, precision in WAYS:
        for one in (precision, "mixed-int8") if precision == "int8" else (precision,):
            folder = work / f"{target}-{one}"
            if folder.exists() or built(folder, base, target, one, data):
                found[f"{target} {one}"] = folder
                break
    return found


def labelled(checkpoint: str, base: Path, sound: Any) -> dict[str, Any]:
    """A sound as the model's inputs, and the tokens that fp32 hears."""
    features = features_of(base, sound)
    prompt = prompt_of(checkpoint)
    with runtime.load(base, "ort-cpu", stages=["context", "step"]) as session:
        heard = of_session(session, features, prompt)()
    return {
        "input_features": features,
        "decoder_input_ids": np.array([[*prompt, *heard]]),
        "prompt": np.array(prompt),
        "heard": np.array(heard),
    }


def features_of(bundle: Path, sound: Any) -> Any:
    """Log-mel features of a sound, as the bundle's processor makes them."""
    made = np.asarray(runtime.load_processor(bundle).sounds(sound)[0], np.float32)
    return np.ascontiguousarray(made.reshape(1, *made.shape[-2:]))


def prompt_of(checkpoint: str) -> list[int]:
    """The first tokens: English, without times."""
    config = json.loads((Path(checkpoint) / "generation_config.json").read_text())
    return [config["decoder_start_token_id"], config["no_timestamps_token_id"]]


def built(folder: Path, base: Path, target: str, precision: str, data: Path) -> bool:
    """Whether the check lets it pass."""
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(base, making)
    settings: dict[str, Any] = {}
    if "int8" in precision:
        metric = f"{Path(__file__).with_name('spoken_words.py')}:words"
        settings = {"calibrate": data, "metric": metric, "max_drop": 0.005}
    try:
        crossfuse.build(making, target, precision=precision, step=print, **settings)
    except CrossfuseError as error:
        print(error)
        return False
    making.rename(folder)
    return True


def converted(checkpoint: str, work: Path) -> Path:
    """The checkpoint in CTranslate2's form."""
    from ctranslate2.converters import TransformersConverter

    path = work / "ctranslate2"
    if not path.exists():
        TransformersConverter(checkpoint).convert(str(path), quantization="int8")
    return path


def of_ctranslate2(path: Path, features: Any, prompt: Sequence[int]) -> Callable[[], list[int]]:
    """Greedy, as ours."""
    import ctranslate2

    model = ctranslate2.models.Whisper(
        str(path), device="cpu", compute_type="int8", intra_threads=2
    )

    def run() -> list[int]:
        given = ctranslate2.StorageView.from_array(features)
        (found,) = model.generate(given, [list(prompt)], beam_size=1)
        return list(found.sequences_ids[0])

    return run


def of_session(session: Any, features: Any, prompt: Sequence[int]) -> Callable[[], list[int]]:
    """Encode once, then step."""

    def run() -> list[int]:
        context = session.encode(input_features=features)
        return [int(t) for t in runtime.generate(session, context, [list(prompt)]).new_tokens[0]]

    return run


def measured(checkpoint: str, sound: Path, work: Path, plan: Plan) -> dict[str, Any]:
    """Words and times of all."""
    from transformers import AutoTokenizer

    ways = bundles(checkpoint, sound, work)
    prompt = prompt_of(checkpoint)
    features = features_of(ways["ort-cpu fp32"], read_sound(sound, RATE))
    calls = {}
    for way, folder in ways.items():
        session = runtime.load(folder, way.partition(" ")[0], stages=["context", "step"])
        calls[way] = of_session(session, features, prompt)
    calls[RIVAL] = of_ctranslate2(converted(checkpoint, work), features, prompt)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    end = tokenizer.eos_token_id
    tokens = {way: [t for t in call() if t < end] for way, call in calls.items()}
    words = {way: tokenizer.decode(made).split() for way, made in tokens.items()}
    taken = sample(calls, plan)
    rounds = {way: taken[way].rounds for way in calls}
    truth = words["ort-cpu fp32"]
    return {
        "words": len(truth),
        "linears": {
            way: in_words(crossfuse.open_bundle(f).target(way.partition(" ")[0]).linears)
            for way, f in ways.items()
        },
        "ways": {
            way: {
                "median_ms": round(summarize(rounds[way]).median.value * 1e3, 2),
                "word_error_rate": round(errors(words[way], truth), 5),
                "tokens": len(tokens[way]),
                "ctranslate2 / this": [
                    round(number, 3) for number in interval(rounds[RIVAL], rounds[way])
                ],
            }
            for way in calls
        },
        "environment": environment(),
    }


def interval(first: Any, second: Any) -> tuple[float, float, float]:
    """One's time over another's, round by round."""
    found = paired_ratio(first, second)
    return found.value, found.low, found.high


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles/whisper-int8"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        bundles(options.checkpoint, options.sound, options.work)
        converted(options.checkpoint, options.work)
        return
    begin = time.perf_counter()
    plan = Plan(rounds=options.rounds, seconds=0.2, calls=1)
    found = measured(options.checkpoint, options.sound, options.work, plan)
    print(json.dumps(found, indent=1), f"{time.perf_counter() - begin:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
