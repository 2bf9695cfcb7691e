"""Words with times, against the words that ``transformers`` makes of the same tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.speech.segments import Word
from crossfuse.runtime.speech.spoken_words import words_of
from unit.runtime.speech.toy_speech import WORDS, speech_processor

TEXTS = {
    "en": ' It was the "best" of times, (it was) the worst... of times! Didn\'t it cost $5?',
    "fr": " « L'été » était [très] chaud à São-Paulo – n'est-ce pas ?",
    "zh": "今天天气很好，我们去公园吧。😀",
    "ja": "こんにちは、世界！",
}


def byte_level() -> Processor:
    """A tokenizer over bytes: characters may take several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXTS["en"]], trainer)
    return Processor(Path("toy"), {"tokenizer.json": made.to_str().encode()})


@pytest.mark.parametrize("language", list(TEXTS))
def test_words_are_the_librarys(language: str) -> None:
    from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

    processor = byte_level()
    tokens = processor.words.encode(TEXTS[language])
    theirs = SimpleNamespace(
        decode=lambda ids, **_: processor.words.decode(ids), eos_token_id=10**6, language=None
    )
    names = {"zh": "chinese", "ja": "japanese"}
    expected, _, places = _combine_tokens_into_words(theirs, tokens, names.get(language, "french"))
    first = len(tokens) + 1000
    timed = [first, *tokens, first + 3]
    times = [(float(i), i + 0.5) for i in range(len(timed))]
    found = words_of(processor, timed, times, language=language, first=first)
    assert found == tuple(
        Word(text, at[0] + 1.0, at[-1] + 1.5) for text, at in zip(expected, places, strict=True)
    )
    assert "".join(word.text for word in found) == TEXTS[language]


def test_a_tokenizer_of_whole_words() -> None:
    found = words_of(speech_processor(), [0, 1, 5], [(0, 1), (1, 2), (2, 4)],
                     language=None, first=None)  # fmt: skip
    assert [word.text.strip() for word in found] == [WORDS[0], WORDS[1], WORDS[5]]
    assert [word.end for word in found] == [1, 2, 4]


def test_nothing_said() -> None:
    assert words_of(speech_processor(), [30, 31], [(0, 1), (1, 2)], language="en", first=28) == ()
