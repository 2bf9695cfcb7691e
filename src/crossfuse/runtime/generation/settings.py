"""`GenerationSettings`: how tokens are chosen, under the names of ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from crossfuse.errors import InputError, suggestion

__all__ = ["CHANGES_NOTHING", "GenerationSettings"]

CHANGES_NOTHING: Mapping[str, tuple[object, ...]] = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "top_h": (None,),
    "typical_p": (None, 1),
    "watermarking_config": (None,),
}
"""Settings of others that would change which tokens come out, with the values that change nothing:
what else they say is refused."""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
    )


def _number(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int | float | np.number)
        and not isinstance(value, bool)
        and bool(np.isfinite(value))
        and fits(float(value))
    )


def _ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(_whole(0)(one) for one in value)


def _id_lists(value: Any) -> bool:
    return isinstance(value, tuple) and all(_ids(one) and one for one in value)


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("max_new_tokens", "max_length"), (_whole(1), "a whole number from 1 on")),
    **dict.fromkeys(("num_beams", "num_return_sequences"), (_whole(1), "a number from 1 on")),
    **dict.fromkeys(
        (
            "min_length",
            "min_new_tokens",
            "top_k",
            "no_repeat_ngram_size",
            "seed",
            "max_initial_timestamp_index",
        ),
        (_whole(0), "a whole number from 0 on"),
    ),
    **dict.fromkeys(
        (
            "pad_token_id",
            "bos_token_id",
            "decoder_start_token_id",
            "forced_bos_token_id",
            "no_timestamps_token_id",
        ),
        (_whole(0), "an id"),
    ),
    **dict.fromkeys(
        ("temperature", "repetition_penalty"), (_number(lambda n: n > 0), "a number above 0")
    ),
    **dict.fromkeys(("top_p", "min_p"), (_number(lambda n: 0 <= n <= 1), "a number from 0 to 1")),
    "length_penalty": (_number(lambda n: True), "a number"),
    "early_stopping": (lambda v: v in (True, False, "never"), "true, false or 'never'"),
    **dict.fromkeys(
        ("do_sample", "renormalize_logits", "remove_invalid_values", "return_timestamps"),
        (lambda v: isinstance(v, bool), "true or false"),
    ),
    **dict.fromkeys(
        ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
        (_ids, "ids"),
    ),
    **dict.fromkeys(("bad_words_ids", "stop_sequences"), (_id_lists, "lists of ids")),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen.

    Attributes:
        max_new_tokens, max_length: the most tokens to add, or with the prompt; the first goes
            before the second, and what is omitted is as far as the state reaches.
        min_length, min_new_tokens: no end before so many tokens, with or without the prompt.
        do_sample: draw tokens instead of taking the likeliest.
        num_beams: sequences looked at side by side; 1 is greedy.
        num_return_sequences: results per prompt: the best beams, or as many samples.
        length_penalty: exponent of the length that a beam's score is divided by.
        early_stopping: end as soon as there are as many finished beams as looked at; ``"never"``
            ends only where no better one is possible.
        temperature: that scores are divided by.
        top_k: only so many of the likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that have this probability together.
        min_p: only tokens with this share of the likeliest one's probability.
        repetition_penalty: that scores of tokens so far are divided by (negative ones multiplied).
        no_repeat_ngram_size: no so many tokens twice in a sequence; 0 is off.
        bad_words_ids: sequences of tokens that must not come.
        suppress_tokens, begin_suppress_tokens: tokens that must not come; not first.
        forced_bos_token_id: the token behind a prompt of one.
        forced_eos_token_id: tokens at ``max_length``.
        eos_token_id: tokens that end a sequence.
        stop_sequences: further sequences of new tokens that end one.
        pad_token_id: what stands behind a sequence's end.
        bos_token_id, decoder_start_token_id: the prompt where none is given, the second first.
        renormalize_logits: scores behind all others are log-probabilities again.
        remove_invalid_values: NaN is 0, infinities the largest numbers, before a token is chosen.
        seed: of the samples; each sequence has numbers of its own.
        return_timestamps: tokens of time come by Whisper's rules.
        no_timestamps_token_id: the token before the first of them.
        max_initial_timestamp_index: how many of them the first one may be from the first of all.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    renormalize_logits: bool = False
    remove_invalid_values: bool = False
    seed: int | None = None
    return_timestamps: bool = False
    no_timestamps_token_id: int | None = None
    max_initial_timestamp_index: int | None = None

    def __post_init__(self) -> None:
        for name, (fits, expected) in _CHECKS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not fits(value):
                raise InputError(
                    "a setting of generation is wrong", where=name, got=value, expected=expected
                )
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.do_sample:
            raise InputError(
                "one sequence per prompt comes out of greedy search",
                where="num_return_sequences",
                got=self.num_return_sequences,
                do="Set num_beams, or do_sample=True",
            )
        if self.return_timestamps and self.no_timestamps_token_id is None:
            raise InputError(
                "which tokens say times is not known",
                where="no_timestamps_token_id",
                got="nothing",
                do="Give it, or return_timestamps=False",
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise InputError(
                "more results than beams",
                where="num_return_sequences",
                got=self.num_return_sequences,
                expected=f"at most {self.num_beams}",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> GenerationSettings:
        """Settings from what a caller gives and what a bundle holds.

        Args:
            given: go first; a value of None takes the default away.
            defaults: of ``generation_config.json``; what has nothing to do with choosing tokens is
                passed over.

        Raises:
            InputError: an unknown name, a wrong value, or a setting that would change which tokens
                come out and is not known here.
        """
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known and name not in CHANGES_NOTHING:
                raise InputError(
                    "there is no such setting of generation",
                    got=name,
                    do=suggestion(name, known),
                )
        whole = {**_without(defaults, given), **given}
        for name, neutral in CHANGES_NOTHING.items():
            value = whole.get(name)
            if not any(value is one or value == one for one in neutral):
                raise InputError(
                    "a setting of generation is not supported here",
                    where=name,
                    got=value,
                    do=f"Give {name}={neutral[-1]} to go on without it",
                )
        chosen = {n: _plain(n, v) for n, v in whole.items() if n in known and v is not None}
        return cls(**chosen)

    def changed(self, **values: Any) -> GenerationSettings:
        """The same with other values."""
        return replace(self, **values)


_OPTIONAL = {
    "max_new_tokens", "max_length", "min_p", "forced_bos_token_id", "pad_token_id",
    "bos_token_id", "decoder_start_token_id", "seed", "no_timestamps_token_id",
    "max_initial_timestamp_index",
}  # fmt: skip
_SEVERAL = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


def _without(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that stand beside what a caller gives: one way to say the longest is enough."""
    lengths = {"max_new_tokens", "max_length"}
    named = any(given.get(name) is not None for name in lengths)
    return {name: value for name, value in defaults.items() if not (named and name in lengths)}


def _plain(name: str, value: Any) -> Any:
    """One id or several, arrays or lists, as tuples; ids below 0, which stand for none, left
    out."""
    if name in ("bad_words_ids", "stop_sequences") and isinstance(value, list | tuple | np.ndarray):
        return tuple(tuple(one) if hasattr(one, "__len__") else (one,) for one in value)
    if name not in _SEVERAL:
        return value
    ids = value if isinstance(value, list | tuple | np.ndarray) else [value]
    return tuple(one for one in ids if not (isinstance(one, int | np.integer) and one < 0))
