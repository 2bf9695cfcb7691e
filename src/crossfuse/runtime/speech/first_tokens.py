"""What stands in front of a transcript: the tokens of its beginning, of the language, of the task,
and the text before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfuse.errors import InputError, unknown
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.prepared import scoring_output
from crossfuse.runtime.session import Session

__all__ = ["first_time", "first_tokens", "language_of", "previous_text"]


def first_tokens(
    session: Session,
    context: Context,
    *,
    language: str | None = None,
    task: str | None = None,
    timed: bool = False,
) -> list[int]:
    """The tokens that a transcript begins with.

    Args:
        session: of the bundle.
        context: one window of the sound, which the language is heard in where none is given.
        language: its code, such as ``en``.
        task: ``transcribe`` or ``translate``; where omitted, what the bundle's settings say.
        timed: with times.

    Raises:
        InputError: settings without a beginning, or a language or task that the model doesn't
            know.
    """
    about = session.generation
    _require_asked(about, language, task)
    start = about.get("decoder_start_token_id")
    if start is None:
        raise InputError("the bundle's settings name no token that a transcript begins with")
    tokens: list[int | None] = [int(start)]
    if language is None and task is None:
        tokens += _forced(about)
    languages = _ids(about, "lang_to_id")
    heard: int | None = None
    if language is not None:
        heard = languages[_language(language, languages)]
    elif languages and (len(tokens) == 1 or tokens[1] is None):
        heard = _heard(session, context, int(start), sorted(set(languages.values())))
    if heard is not None:
        tokens[1:2] = [heard]
    tasks = _ids(about, "task_to_id")
    if task is not None:
        tokens.append(tasks[task])
    elif language is not None and tasks and not set(tokens) & set(tasks.values()):
        tokens.append(tasks["transcribe"])
    none = about.get("no_timestamps_token_id")
    if none is not None and tokens[-1] == none:
        tokens.pop()
    if none is not None and not timed:
        tokens.append(int(none))
    return [token for token in tokens if token is not None]


def previous_text(about: Mapping[str, Any], tokens: Sequence[int], longest: int) -> list[int]:
    """The text before, as it stands in front of a transcript; nothing where there is none.

    Args:
        about: the bundle's settings.
        tokens: of that text.
        longest: so many of its tokens, the last ones, count.
    """
    if not tokens:
        return []
    mark = about.get("prev_sot_token_id")
    if mark is None:
        silent = list(about.get("suppress_tokens") or ())
        mark = silent[-2] if len(silent) > 1 else None
    return [*([] if mark is None else [int(mark)]), *tokens[-longest:]]


def language_of(about: Mapping[str, Any], tokens: Sequence[int]) -> str | None:
    """The code of the language among first tokens; None for a model of one."""
    names = {number: name for name, number in _ids(about, "lang_to_id").items()}
    return next((names[token].strip("<|>") for token in tokens if token in names), None)


def first_time(about: Mapping[str, Any]) -> int | None:
    """The first token of time; None where the bundle's settings don't say."""
    none = about.get("no_timestamps_token_id")
    return None if none is None else int(none) + 1


def _require_asked(about: Mapping[str, Any], language: str | None, task: str | None) -> None:
    given = {"language": language, "task": task}
    asked: dict[str, str] = {name: value for name, value in given.items() if value is not None}
    if asked and about.get("is_multilingual") is False:
        raise InputError(
            "the model knows one language, and no task but to transcribe",
            got=", ".join(f"{name}={value}" for name, value in asked.items()),
            do="Leave them out",
        )
    for name, key in (("language", "lang_to_id"), ("task", "task_to_id")):
        if name in asked and not _ids(about, key):
            raise InputError(
                f"the bundle's settings name no token of a {name}",
                where=key,
                got=asked[name],
                do="Leave it out, or export a checkpoint whose generation_config.json has them",
            )
    tasks = _ids(about, "task_to_id")
    if task is not None and task not in tasks:
        raise unknown("there is no such task", task, tasks)


def _ids(about: Mapping[str, Any], name: str) -> dict[str, int]:
    found = about.get(name)
    if not isinstance(found, Mapping):
        return {}
    return {str(key): int(value) for key, value in found.items() if isinstance(value, int)}


def _language(given: str, known: Mapping[str, int]) -> str:
    for name in (given.lower(), f"<|{given.lower()}|>"):
        if name in known:
            return name
    raise unknown("the model knows no such language", given, [n.strip("<|>") for n in known])


def _forced(about: Mapping[str, Any]) -> list[int | None]:
    """Tokens by their places, as older settings have them; one that is not said is None."""
    found: list[int | None] = []
    for place, pair in enumerate(about.get("forced_decoder_ids") or (), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] != place:
            break
        found.append(None if pair[1] is None else int(pair[1]))
    return found


def _heard(session: Session, context: Context, start: int, languages: list[int]) -> int:
    """The likeliest language behind the first token."""
    outputs = session.start(context, prompt=[[start]]).outputs
    scores = np.asarray(outputs[scoring_output(session, None)], np.float32)[0, -1]
    return languages[int(scores[languages].argmax())]
