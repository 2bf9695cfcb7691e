"""How a model's processor writes a prompt around a text: what it puts before and behind it, places
of an image expanded, and the inputs that belong to the first tokens.

It is found by calling the processor, and watching which text its tokenizer is given. It is kept
where the tokenizer makes the processor's own ids of such a text, for two texts; so whoever has the
tokenizer alone can write the prompt.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from crossfuse.core.foreign import cause_of
from crossfuse.core.processor_files import PLACES, PROMPTS, TOKENIZER_SETTINGS
from crossfuse.core.tensors import PREFIX
from crossfuse.export.capture.traceable import replaced
from crossfuse.export.sources.huggingface.asked import Asked
from crossfuse.export.sources.huggingface.processor_inputs import marks_of

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["with_prompt_form"]

_LOG = logging.getLogger(__name__)
_TEXT, _OTHER = "crossfusetext", "crossfuseother"
"""Words that stand for a text while the processor is watched."""
_SAMPLES = ("What is this?", "a photo of two small cats, and what else\nis there 1")
_IDS = "input_ids"
_MOST_TASKS = 64


def with_prompt_form(
    files: Mapping[str, str], asked: Asked | None, spec: ModelSpec
) -> dict[str, str]:
    """A bundle's files of the processor, with the form of prompts in the tokenizer's settings.

    Args:
        files: content by name.
        asked: the model with its processor; None where its inputs came from elsewhere.
        spec: whose first tokens are inputs of the context, or all.

    Returns:
        the files as they are where the form can't be told, or there are neither first tokens nor
        places in what is read.
    """
    found = dict(files)
    if asked is None or asked.processor.words is None or TOKENIZER_SETTINGS not in files:
        return found
    known = json.loads(files[TOKENIZER_SETTINGS])
    if PREFIX + _IDS not in spec.inputs and not (_IDS in spec.context and known.get(PLACES)):
        return found
    try:
        form = _form(asked, spec)
    except Exception as error:  # noqa: BLE001 -- a processor's code may raise anything
        _LOG.debug("the form of prompts can't be told: %s", cause_of(error))
        return found
    settings = {**known, PROMPTS: form}
    found[TOKENIZER_SETTINGS] = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    return found


def _form(asked: Asked, spec: ModelSpec) -> dict[str, Any]:
    """The form as plain data.

    Raises:
        Exception: the processor's, or a ValueError where the form is not that simple.
    """
    whole, _ = _written(asked, _TEXT)
    before, found, after = whole.partition(_TEXT)
    if not found or _TEXT in after:
        raise ValueError("the text stands in the prompt other than once")
    special = _special(asked, before, after)
    form: dict[str, Any] = {"before": before, "after": after, "special": special}
    form["first"] = _first(asked, spec)
    form["sizes"] = [_size(image) for image in asked.rows[0].images]
    form["tasks"] = _tasks(asked, before, after)
    for mark in marks_of(asked.processor, asked.recipe.kinds):
        try:
            return form | {"mark": mark, "stands_for": _stands_for(asked, mark, special=special)}
        except Exception as error:  # noqa: BLE001 -- a processor's code may raise anything
            _LOG.debug("%s in a text: %s", mark, cause_of(error))
    return form


def _size(image: Any) -> list[int]:
    """Height and width of an image of Pillow's, or of an array."""
    if hasattr(image, "convert"):
        return [int(image.height), int(image.width)]
    shape = image.shape
    return [int(n) for n in (shape[1:] if shape[-1] not in (1, 3, 4) else shape[:2])]


def _tasks(asked: Asked, before: str, after: str) -> dict[str, list[str]]:
    """Texts in whose place the processor writes others, among the words that it has texts for: what
    it writes, in two parts where what else is said stands between."""
    known = getattr(asked.processor.call, "__dict__", {}).values()
    texts = [one for one in known if isinstance(one, dict) and len(one) <= _MOST_TASKS]
    tasks = {task for one in texts for task in one if isinstance(task, str) and task.strip()}
    found = {task: _rewritten(asked, task, before, after) for task in sorted(tasks)}
    return {task: parts for task, parts in found.items() if parts != [task]}


def _rewritten(asked: Asked, task: str, before: str, after: str) -> list[str]:
    """What is written for a text, in two parts around what is said behind it."""
    given = [task]
    for text in (task, f"{task} {_TEXT}"):
        try:
            whole, _ = _written(asked, text)
        except Exception as error:  # noqa: BLE001 -- a processor's code may raise anything
            _LOG.debug("%s: %s", text, cause_of(error))
            continue
        inner = whole.removeprefix(before).removesuffix(after)
        if whole != f"{before}{inner}{after}":
            raise ValueError("a text is written elsewhere than others")
        if _TEXT in inner and inner != text:
            given = list(inner.partition(_TEXT)[::2])
        elif _TEXT not in text:
            given = [inner]
    return given


def _written(asked: Asked, text: str) -> tuple[str, list[int]]:
    """What the tokenizer is given for one row with a text, and the ids that come out."""
    with _watched(type(asked.processor.words)) as seen:
        made = asked.made([replace(asked.rows[0], text=text)])
    if len(seen) != 1 or made[_IDS].shape[0] != 1:
        raise ValueError("the tokenizer is given other than one text")
    ids: list[int] = made[_IDS][0].tolist()
    return seen[0], ids


@contextmanager
def _watched(kind: Any) -> Iterator[list[str]]:
    """The texts that tokenizers of a class are given."""
    seen: list[str] = []
    original = kind.__call__

    def call(self: Any, *given: Any, **named: Any) -> Any:
        text = given[0] if given else named.get("text")
        seen.extend([text] if isinstance(text, str) else list(text or ()))
        return original(self, *given, **named)

    with replaced(kind, "__call__", call):
        yield seen


def _special(asked: Asked, before: str, after: str) -> bool:
    """Whether the tokenizer's own tokens are put around; the ids have to be the processor's."""
    expected = [_written(asked, text)[1] for text in _SAMPLES]
    for special in (True, False):
        texts = (before + text + after for text in _SAMPLES)
        if [_ids(asked, text, special=special) for text in texts] == expected:
            return special
    raise ValueError("the processor makes other ids than its tokenizer")


def _ids(asked: Asked, text: str, *, special: bool) -> list[int]:
    found: list[int] = asked.processor.words(text, add_special_tokens=special)[_IDS]
    return found


def _first(asked: Asked, spec: ModelSpec) -> dict[str, list[list[int]]]:
    """Inputs of the first tokens that are whole numbers, of one row: ``[axes, tokens]`` each; none
    where they are not apart."""
    ids = spec.inputs.get(PREFIX + _IDS)
    if ids is None:
        return {}
    own = _written(asked, asked.rows[0].text)[1][: ids.shape[1]]
    if ids[0].tolist() != own:
        raise ValueError("the examples begin with other tokens")
    found = {}
    for name, tensor in spec.inputs.items():
        if name.startswith(PREFIX):
            if tensor.ndim not in (2, 3) or tensor.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"{name} is not known for each token")
            row = tensor[:1] if tensor.ndim == 2 else tensor[:, 0]
            found[name] = row.tolist()
    return found


def _stands_for(asked: Asked, mark: str, *, special: bool) -> str:
    """What the processor writes for a mark in a text of the user's."""
    plain = replace(asked, recipe=replace(asked.recipe, prompt="plain"))
    written = _written(plain, f"{_TEXT}{mark}{_OTHER}")[0]
    expanded = written.removeprefix(_TEXT).removesuffix(_OTHER)
    text = f"{mark}\n{_SAMPLES[0]}"
    expected = _written(plain, text)[1]
    same = written == f"{_TEXT}{expanded}{_OTHER}"
    if not same or _ids(asked, text.replace(mark, expanded), special=special) != expected:
        raise ValueError("the processor writes more than the places of an image")
    return expanded
