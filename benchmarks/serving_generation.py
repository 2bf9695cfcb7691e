"""Streams of generated text from one server, many at once, beside one after the other.

    python benchmarks/serving_generation.py CHECKPOINT SOUND.wav [--json FILE] [--work FOLDER]
                                            [--streams N] [--slots N] [--rounds N]

Whisper on as many parts of a recording as there are streams, each another one. ``crossfuse serve``
runs on this machine with one replica and all its cores, and keeps no contexts, so each request is
encoded. Every round asks for all parts one after the other, and then for all at once. Each
transcript is compared with that of `runtime.generate` alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

import crossfuse
import serving
from crossfuse import runtime
from crossfuse.core.media_files import read_sound
from crossfuse.profiling.environment import environment
from crossfuse.serve.open_inference import BINARY_HEADER, DATATYPES

SECONDS = (6, 20)
"""The shortest and the longest part of the recording."""


class Answer(NamedTuple):
    """Tokens of a stream, and when its events were there."""

    tokens: list[int]
    times: list[float]

    @property
    def gaps(self) -> list[float]:
        """Seconds between its events."""
        return np.diff(self.times).tolist()


def parts_of(sound: np.ndarray, rate: int, count: int) -> list[np.ndarray]:
    """Parts of different beginnings and lengths."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length = int(rng.uniform(*SECONDS) * rate)
        begin = int(rng.integers(0, max(1, len(sound) - length)))
        made.append(sound[begin : begin + length])
    return made


def body_of(arrays: dict[str, np.ndarray]) -> tuple[bytes, int]:
    """A request with its tensors as bytes, and how many bytes of it are JSON."""
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPES[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return b"".join([head, *(array.tobytes() for array in arrays.values())]), len(head)


def stream(port: int, body: bytes, length: int) -> Answer:
    """Ask for one sequence, and read its events."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {BINARY_HEADER: str(length)}
    connection.request("POST", "/v2/models/m/generate_stream", body, headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read().decode()}")
    tokens: list[int] = []
    times: list[float] = []
    for line in response:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(event["error"])
            tokens += event["tokens"]
            times.append(time.perf_counter() - start)
    connection.close()
    return Answer(tokens, times)


def summary(answers: list[list[Answer]], seconds: list[float]) -> dict[str, object]:
    """Of all rounds in one way."""
    every = [answer for one in answers for answer in one]
    firsts = [answer.times[0] for answer in every]
    gaps = [gap for answer in every for gap in answer.gaps]
    tokens = sum(len(answer.tokens) for answer in answers[0])
    return {
        "seconds": [round(one, 3) for one in seconds],
        "tokens_per_second": round(tokens / statistics.median(seconds), 1),
        "first_token_s": percentiles(firsts),
        "between_events_s": percentiles(gaps),
        "tokens_per_event": round(tokens / (sum(len(a.times) for a in every) / len(answers)), 2),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The middle, and what 95 of 100 are within."""
    return {f"p{one}": round(float(np.percentile(seconds, one)), 3) for one in (50, 95)}


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles"))
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = options.work / "whisper"
    if not bundle.exists():
        crossfuse.export(
            f"hf:{options.checkpoint}",
            bundle,
            targets=["ort-cpu"],
            drop_outputs=["encoder_last_hidden_state"],
        )
    processor = runtime.load_processor(bundle)
    rate = processor.log_mel.sampling_rate
    parts = parts_of(read_sound(options.sound, rate), rate, options.streams)
    features = [processor.log_mel(part)[None] for part in parts]
    with runtime.load(bundle, stages=["context", "step"]) as session:
        own = session.generation
        prompt = [own["decoder_start_token_id"], own["no_timestamps_token_id"]]
        expected = [
            runtime.generate(session, session.encode(input_features=one), [prompt])
            .new_tokens[0]
            .tolist()
            for one in features
        ]
        tokens = session.decode.tokens if session.decode else ""
    bodies = [body_of({"input_features": one, tokens: np.array([prompt])}) for one in features]
    ways = {"one by one": 1, "together": options.streams}
    answers: dict[str, list[list[Answer]]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    more = ("--slots", str(options.slots), "--cache-mb", "0", "--timeout", "600")
    with serving.server(bundle, *more) as port:
        stream(port, *bodies[0])
        for number in range(options.rounds):
            for name, callers in ways.items():
                start = time.perf_counter()
                with ThreadPoolExecutor(callers) as pool:
                    found = list(pool.map(lambda body: stream(port, *body), bodies))
                seconds[name].append(time.perf_counter() - start)
                answers[name].append(found)
                print(f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s", flush=True)
    right = [
        answer.tokens == truth
        for rounds in answers.values()
        for one in rounds
        for answer, truth in zip(one, expected, strict=True)
    ]
    ratios = [a / b for a, b in zip(seconds["one by one"], seconds["together"], strict=True)]
    result = {
        "streams": options.streams,
        "slots": options.slots,
        "transcripts": len(right),
        "right": sum(right),
        "tokens": sum(map(len, expected)),
        "throughput_ratio": {
            "median": round(statistics.median(ratios), 2),
            "rounds": [round(ratio, 2) for ratio in ratios],
        },
        **{name: summary(answers[name], seconds[name]) for name in ways},
        "environment": {**environment(), "cpus": os.cpu_count()},
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
