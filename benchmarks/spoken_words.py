"""A metric for `--metric`: the share of spoken words that a Whisper bundle hears as its fp32 does.

    crossfuse build BUNDLE --target ort-cpu --precision int8 --calibrate FOLDER \\
        --metric benchmarks/spoken_words.py:words --max-drop 0.005

Each NPZ file holds ``input_features``, ``prompt`` (the first tokens) and ``heard``, the tokens that
fp32 gives, which `whisper_int8.py` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfuse import runtime

__all__ = ["errors", "words"]


def words(run: Any, data: Sequence[Mapping[str, Any]]) -> float:
    """1 − errors over tokens, of all sounds."""
    wrong = total = 0.0
    for one in data:
        context = run.session.encode(input_features=one["input_features"])
        prompt = [one["prompt"].tolist()]
        said = runtime.generate(run.session, context, prompt).new_tokens[0]
        truth = one["heard"].tolist()
        wrong += errors([int(token) for token in said], truth) * len(truth)
        total += len(truth)
    return 1.0 - wrong / total


def errors(said: Sequence[Any], truth: Sequence[Any]) -> float:
    """Insertions, deletions and substitutions, the fewest, over the length of the truth."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(truth, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1] / max(len(truth), 1)
