"""`Fallback`: when a window is heard again at a higher temperature, and when it is taken for
silence; by the rules of ``transformers``."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.prepared import scoring_output
from crossfuse.runtime.generation.sampling import log_softmax
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Attempt", "Fallback", "compression_ratio"]

_THRESHOLDS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
_HOT = 0.5
"""From this temperature on, what was said is nothing to go on from."""


class Attempt(NamedTuple):
    """A window as it was heard.

    Attributes:
        tokens: with the end.
        is_silent: nothing is said in it.
        is_calm: the next window may go on from it.
    """

    tokens: NDArray[np.int64]
    is_silent: bool
    is_calm: bool


@dataclass(frozen=True)
class Fallback:
    """What a window has to fulfil, and how it is heard again where it does not.

    Attributes:
        temperatures: tried one after the other until a window is good; the last one counts
            whatever comes out. 0 is without samples, None as the other settings say.
        compression_ratio_threshold: tokens that compress better repeat themselves.
        logprob_threshold: the least that the tokens' log-probabilities have to be on average.
        no_speech_threshold: where the token of silence is likelier than this, and the tokens are
            less likely than `logprob_threshold`, nothing is said.
    """

    temperatures: tuple[float | None, ...] = (None,)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in _THRESHOLDS:
            value = getattr(self, name)
            if value is not None and not _is_number(value):
                raise InputError("a threshold is a number", where=name, got=value)
        if not self.temperatures or any(
            t is not None and not (_is_number(t) and t >= 0) for t in self.temperatures
        ):
            raise InputError(
                "temperatures are numbers from 0 on, one at least",
                where="temperature",
                got=self.temperatures,
            )

    @classmethod
    def taken_from(cls, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Fallback:
        """Take what belongs here out of a caller's settings; what they don't say of thresholds is
        the bundle's.

        Raises:
            InputError: wrong numbers.
        """
        given: dict[str, Any] = {
            n: settings.pop(n) if n in settings else defaults.get(n) for n in _THRESHOLDS
        }
        asked = settings.get("temperature")
        asked = asked.tolist() if isinstance(asked, np.ndarray) else asked
        if isinstance(asked, list | tuple):
            del settings["temperature"]
            return cls(tuple(asked), **given)
        if _is_number(asked) and asked == 0:
            del settings["temperature"]
            return cls((0.0,), **given)
        return cls(**given)

    @property
    def is_asked(self) -> bool:
        """Whether a window has anything to fulfil, or temperatures are named."""
        return self != Fallback()

    def hear(
        self,
        session: Session,
        context: Context,
        prompt: Sequence[int],
        settings: Mapping[str, Any],
        begins: int,
    ) -> Attempt:
        """Hear a window until it is good.

        Args:
            session: of the bundle.
            context: the window.
            prompt: the tokens in front.
            settings: of the generation.
            begins: the place in the prompt at which the transcript begins.
        """
        vocabulary = _vocabulary(session)
        for number, temperature in enumerate(self.temperatures, 1):
            found = generate(session, context, [list(prompt)], **{**settings, **_at(temperature)})
            tokens, unscaled = found.new_tokens[0], found.unscaled[0]
            average = float(unscaled[: len(tokens)].sum()) / max(len(tokens), 1)
            is_calm = temperature is None or temperature < _HOT
            if self._is_silent(average, session, context, prompt[: begins + 1]):
                return Attempt(tokens, True, is_calm)
            if number == len(self.temperatures) or self._is_good(tokens, average, vocabulary):
                break
        return Attempt(tokens, False, is_calm)

    def _is_good(self, tokens: NDArray[np.int64], average: float, vocabulary: int) -> bool:
        most, least = self.compression_ratio_threshold, self.logprob_threshold
        repeats = most is not None and compression_ratio(tokens, vocabulary) > most
        return not repeats and not (least is not None and average < least)

    def _is_silent(
        self, average: float, session: Session, context: Context, beginning: Sequence[int]
    ) -> bool:
        """Whether the token of silence is likely behind the first of the transcript, and what was
        heard is not."""
        if self.no_speech_threshold is None:
            return False
        if self.logprob_threshold is not None and not average < self.logprob_threshold:
            return False
        none = session.generation.get("no_timestamps_token_id")
        if none is None:
            raise InputError(
                "which token says that there is no speech is not known",
                where="no_timestamps_token_id",
                got="nothing",
                do="Leave no_speech_threshold out",
            )
        outputs = session.start(context, prompt=[list(beginning)]).outputs
        scores = np.asarray(outputs[scoring_output(session, None)], np.float32)[0, -1]
        return float(np.exp(log_softmax(scores)[int(none) - 1])) > self.no_speech_threshold


def compression_ratio(tokens: NDArray[np.int64], vocabulary: int) -> float:
    """How many times smaller tokens become by compression; large where they repeat themselves.

    Args:
        tokens: of a window.
        vocabulary: how many there are to choose from.
    """
    width = int(math.log2(vocabulary) / 8) + 1
    written = b"".join(int(token).to_bytes(width, "little") for token in tokens)
    return len(written) / len(zlib.compress(written))


def _at(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {}
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": float(temperature), "num_beams": 1}


def _vocabulary(session: Session) -> int:
    name = scoring_output(session, None)
    spec = next(spec for spec in session.stages["step"].outputs if spec.name == name)
    assert isinstance(spec.shape[-1], int)
    return spec.shape[-1]


def _is_number(value: object) -> bool:
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool) and bool(np.isfinite(value))
