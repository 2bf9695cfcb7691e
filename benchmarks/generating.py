"""What prompts and batches of sequences cost: a Whisper checkpoint's step stage.

    python benchmarks/generating.py CHECKPOINT [--bundle FOLDER] [--json FILE] [--rounds N]

All in one run, in the same rounds; medians, and ratios round by round with their 95% intervals:

* ``prompt``: `session.start` with a prompt of 212 tokens, against `session.query` of the same.
* ``a step of 8``: eight sequences behind prompts of 1 to 40 tokens get one token more, against one
  sequence; over one context, and each over its own.
* ``8 sequences``: `runtime.generate` of 32 tokens for each of those prompts, against one of them.
* ``beams``: a step of five beams that change places, against five sequences that stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import crossfuse
from crossfuse import runtime
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

PROMPT, NEW = 212, 32
LENGTHS = (1, 4, 9, 15, 21, 28, 34, 40)
PAIRS = {
    "a prompt / query": ("prompt", "query"),
    "a step of 8 over one context / of 1": ("step of 8, one context", "step of 1"),
    "a step of 8 over 8 contexts / of 1": ("step of 8, own contexts", "step of 1"),
    "8 sequences over one context / 1": ("generate 8, one context", "generate 1"),
    "8 sequences over 8 contexts / 1": ("generate 8, own contexts", "generate 1"),
    "a step of 5 beams / of 5": ("step of 5 beams", "step of 5"),
}


def steps(state: runtime.DecodingState, *, beams: bool = False) -> Callable[[], object]:
    """One token more for each sequence, at the same places each time."""
    lengths = state.positions.copy()
    session_tokens = np.arange(state.batch)[:, None] + 11
    order = [*range(state.batch)][::-1]

    def step() -> object:
        if beams:
            state.reorder(order)
        found = state.append(session_tokens)
        state.truncate(lengths.tolist())
        return found

    return step


def ways(session: runtime.Session) -> dict[str, Callable[[], object]]:
    """What is measured."""
    generator = np.random.default_rng(0)
    spec = next(spec for spec in session.inputs if spec.name == "input_features")
    shape = [8, *spec.shape[1:]]
    features = generator.standard_normal(shape).astype(np.float32)
    one, own = (session.encode(input_features=given) for given in (features[:1], features))
    ids = generator.integers(1000, 50_000, (1, PROMPT))
    prompts = [generator.integers(1000, 50_000, count).tolist() for count in LENGTHS]
    settings = {"max_new_tokens": NEW, "eos_token_id": None, "forced_eos_token_id": None}

    def generated(context: runtime.Context, rows: list[list[int]]) -> Callable[[], object]:
        return lambda: runtime.generate(session, context, rows, **settings)

    median = [prompts[len(prompts) // 2]]
    five = [median[0] + [7 + i] for i in range(5)]
    return {
        "prompt": lambda: session.start(one, prompt=ids),
        "query": lambda: session.query(one, decoder_input_ids=ids),
        "step of 1": steps(session.start(one, prompt=median)),
        "step of 8, one context": steps(session.start(one, prompt=prompts)),
        "step of 8, own contexts": steps(session.start(own, prompt=prompts)),
        "generate 1": generated(one, median),
        "generate 8, one context": generated(one, prompts),
        "generate 8, own contexts": generated(own, prompts),
        "step of 5": steps(session.start(one, prompt=five)),
        "step of 5 beams": steps(session.start(one, prompt=five), beams=True),
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--bundle", type=Path, help="exported before, of the same checkpoint")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    about = environment()
    with tempfile.TemporaryDirectory() as name:
        bundle = options.bundle or Path(name) / "bundle"
        if not bundle.exists():
            crossfuse.export(
                f"hf:{options.checkpoint}",
                bundle,
                drop_outputs=["encoder_last_hidden_state"],
                quick=True,
            )
        with runtime.load(bundle) as session:
            taken = sample(ways(session), Plan(rounds=options.rounds, calls=2))
    rounds = {way: found.rounds for way, found in taken.items()}
    result = {
        "model": Path(options.checkpoint).name,
        "prompt_tokens": PROMPT,
        "prompts": LENGTHS,
        "new_tokens": NEW,
        "median_ms": {
            way: round(summarize(times).median.value * 1e3, 2) for way, times in rounds.items()
        },
        "ratio": {
            words: [round(end, 3) for end in paired_ratio(rounds[a], rounds[b]).to_json()]
            for words, (a, b) in PAIRS.items()
        },
        "environment": about,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
