"""`transcribe_several`: sounds written down beside each other, their windows in the slots of one
state. Each is heard by a thread of its own, whose windows follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.slot_checks import require_slots
from crossfuse.runtime.speech.fallback import Fallback
from crossfuse.runtime.speech.segments import Transcript
from crossfuse.runtime.speech.transcribe import transcribe

__all__ = ["transcribe_several"]

_SEQUENCES = ("num_beams", "num_return_sequences")


@door
def transcribe_several(
    session: Session,
    processor: Processor,
    sounds: Iterable[Any],
    *,
    at_once: int = 8,
    **options: Any,
) -> Iterator[Transcript]:
    """Write down several sounds: each comes out as by `transcribe`, in their order.

    So many of them are decoded in one run for each of their tokens. Their contexts and states take
    memory for as many: `Slots.bytes_of` says how much. With beams, where windows may be heard
    again, and where sequences of the bundle can't stand side by side, one sound is behind the
    other.

    Args:
        session, processor, options: as of :func:`transcribe`; but for ``engine`` and ``stream``.
        sounds: each as of `transcribe`.
        at_once: how many are heard at once.

    Returns:
        an iterator; what is wrong with a sound is raised at its turn, and no more come then.

    Raises:
        InputError: as of `transcribe`, or a number that isn't positive.
    """
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise InputError("a number has to be positive", where="at_once", got=repr(at_once))
    for name in ("engine", "stream"):
        if name in options:
            raise InputError("several sounds are given one by one, each whole", where=name)
    if at_once == 1 or not _share_runs(session, options):
        return (transcribe(session, processor, sound, **options) for sound in sounds)
    return _side_by_side(session, processor, sounds, at_once, options)


def _share_runs(session: Session, options: Mapping[str, Any]) -> bool:
    """Whether windows of several sounds can be decoded in one run."""
    try:
        require_slots(session, None)
    except InputError:
        return False
    asked = {name: options[name] for name in _SEQUENCES if name in options}
    known = GenerationSettings.of(asked, session.generation)
    again = Fallback.taken_from(dict(options), session.generation).is_asked
    return known.num_beams == known.num_return_sequences == 1 and not again


def _side_by_side(
    session: Session,
    processor: Processor,
    sounds: Iterable[Any],
    at_once: int,
    options: dict[str, Any],
) -> Iterator[Transcript]:
    # The engine is closed before the threads are waited for: nobody goes on for no one.
    with (
        ThreadPoolExecutor(at_once, "crossfuse sounds") as pool,
        GenerationEngine(session, at_once, queue=at_once) as engine,
    ):

        def heard(sound: Any) -> Transcript:
            whole: Transcript = transcribe(session, processor, sound, engine=engine, **options)
            return whole

        yield from pool.map(heard, sounds)
