"""The command ``crossfuse generate``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from crossfuse.commands.generation_options import named_settings
from crossfuse.commands.options import BuiltTarget, BundlePath, Device, Json, Provider, Threads
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from crossfuse.commands.output import Output
    from crossfuse.runtime import Processor, Segment, Session, Transcript

__all__ = ["generate"]

_FROM = "What it is generated from"
_CHOICE = "How tokens are chosen"
_SPEECH = "Speech"


def generate(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SOUND]...", help="Further sounds behind --audio: --audio *.wav."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="What the model reads; with --image or --audio, what stands before the answer.",
            rich_help_panel=_FROM,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="An image.", rich_help_panel=_FROM),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio",
            metavar="FILE",
            help="A sound: WAV, or NPY at the model's rate.",
            rich_help_panel=_FROM,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="At most so many.", rich_help_panel=_CHOICE),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option("--beams", min=1, help="1 is greedy.", rich_help_panel=_CHOICE),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting, as generation_config.json names it; repeat.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help="Its code, such as en; where omitted, heard.",
            rich_help_panel=_SPEECH,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="transcribe or translate.", rich_help_panel=_SPEECH),
    ] = None,
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Segments with times.", rich_help_panel=_SPEECH),
    ] = False,
    word_timestamps: Annotated[
        bool,
        typer.Option(
            "--word-timestamps",
            help="Words with times; of bundles exported with --keep-probabilities alignment_heads.",
            rich_help_panel=_SPEECH,
        ),
    ] = False,
    at_once: Annotated[
        int,
        typer.Option(
            "--at-once",
            min=1,
            help="Of several sounds of speech so many are decoded at once.",
            rich_help_panel=_SPEECH,
        ),
    ] = 8,
    target: BuiltTarget = None,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Generate text from a text, an image or a sound, printed as it comes. Needs no PyTorch."""
    from crossfuse.bundle.store import open_bundle
    from crossfuse.commands.output import Output
    from crossfuse.runtime import SessionOptions, load, load_processor, transcribe
    from crossfuse.runtime import transcribe_several as several
    from crossfuse.runtime.speech.hearing import writes_down_speech

    output = Output(as_json=as_json)
    chosen = _settings(settings or (), max_new_tokens, beams)
    options = SessionOptions(threads=threads, provider=provider, device_id=device)
    opened = open_bundle(bundle)
    needed = [stage for stage in ("context", "step") if stage in opened.manifest.stages]
    sounds = _sounds(audio, more or ())
    with load(opened, target, options, stages=needed or None) as session:
        processor = load_processor(opened)
        speech = {"language": language, "task": task}
        times = _Times(timestamps, word_timestamps)
        hears = audio is not None and writes_down_speech(session.generation)
        if hears:
            _require_alone(image)
        else:
            said = {"timestamps": timestamps, "word-timestamps": word_timestamps}
            _require_unsaid({**speech, **{name: one or None for name, one in said.items()}})

        how = {**times.asked, "prompt": text or "", **speech, **chosen}
        heard: Iterator[Transcript] = iter(())
        if hears and len(sounds) > 1:
            each = min(at_once, len(sounds))
            heard = several(session, processor, sounds, at_once=each, **how)

        def answered(sound: Path | None) -> dict[str, Any]:
            if hears and len(sounds) > 1:
                return _heard(output, times, _pieces(next(heard), times))
            if hears:
                steps = transcribe(session, processor, sound, stream=True, **how)
                return _heard(output, times, steps)
            given = {"text": text, "image": image, "audio": sound}
            return _answered(output, session, processor, given, chosen)

        used = {"target": session.target, "provider": session.provider}
        if len(sounds) < 2:
            found = answered(audio)
        else:
            found = {"answers": [_titled(output, sound, answered) for sound in sounds]}
    output.result({**used, **found}, lambda: None)


def _sounds(first: Path | None, more: Sequence[Path]) -> list[Path]:
    """All sounds, in their order."""
    if more and first is None:
        raise InputError(
            "files alone don't say what they are", got=more[0], do="Give sounds behind --audio"
        )
    return [] if first is None else [first, *more]


def _titled(
    output: Output, sound: Path, answered: Callable[[Path | None], dict[str, Any]]
) -> dict[str, Any]:
    """An answer under the name of its file."""
    if not output.as_json:
        output.heading(str(sound))
    return {"file": str(sound), **answered(sound)}


def _settings(
    named: Iterable[str], max_new_tokens: int | None, beams: int | None
) -> dict[str, Any]:
    """Settings by name."""
    found = named_settings(named)
    for name, number in (("max_new_tokens", max_new_tokens), ("num_beams", beams)):
        if number is not None:
            found[name] = number
    return found


def _require_alone(image: Path | None) -> None:
    if image is not None:
        raise InputError("the model hears, and takes no image", where="--image", got=image)


def _require_unsaid(speech: dict[str, Any]) -> None:
    """Refuse options of speech where there is none, or a model that knows none of them."""
    for name, value in speech.items():
        if value is not None:
            raise InputError(
                f"--{name} is for sounds, and models that know languages, tasks or times",
                got=value if value is not True else f"--{name}",
                do="Leave it out",
            )


class _Times(NamedTuple):
    """Which times are asked for."""

    segments: bool
    words: bool

    @property
    def asked(self) -> dict[str, bool | None]:
        """As options of `transcribe`."""
        return {"timestamps": self.segments or None, "word_timestamps": self.words}


def _pieces(whole: Transcript, times: _Times) -> Generator[Segment, None, Transcript]:
    """A transcript that is there, as if it came."""
    if times.segments or times.words:
        yield from whole.segments
    else:
        from crossfuse.runtime import Segment

        yield Segment(whole.text, None, None, ())
    return whole


def _heard(
    output: Output, times: _Times, steps: Generator[Segment, None, Transcript]
) -> dict[str, Any]:
    """Speech, printed as it is understood."""
    text, printed = _Text(output), False
    while True:
        try:
            segment = next(steps)
        except StopIteration as stop:
            found = stop.value
            break
        lines = segment.words if times.words else [segment] if times.segments else []
        for one in lines:
            if one.start is not None and one.end is not None:
                text.line(f"[{one.start:.2f} – {one.end:.2f}] {one.text.strip()}")
                printed = True
        if not (times.words or times.segments):
            text.add(segment.text)
    if not printed:
        text.end()
    return {
        "text": found.text.strip(),
        "language": found.language,
        "duration": found.duration,
        "segments": [
            ({"words": []} if times.words else {}) | one.to_plain() for one in found.segments
        ],
        "tokens": found.tokens.tolist(),
    }


def _answered(
    output: Output,
    session: Session,
    processor: Processor,
    given: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """An answer to a text, an image or a sound, printed token by token."""
    from crossfuse.runtime import GenerationSettings, asked
    from crossfuse.runtime import generate as generated

    question = asked(session, processor, **given)
    context = session.encode(question.inputs)
    prompt = None if question.prompt is None else [question.prompt]
    begin = processor.decode(question.said)
    text = _Text(output)
    text.add(begin)
    if GenerationSettings.of(settings, session.generation).num_beams > 1:
        best = generated(session, context, prompt, **settings)
        tokens = best.new_tokens[0].tolist()
        whole = processor.decode([*question.said, *tokens])
        text.add(whole.removeprefix(begin))
        text.end()
        return {"text": whole.strip(), "tokens": tokens}
    pieces, tokens = processor.pieces(), []
    for token in question.said:
        pieces.add(token)
    for step in generated(session, context, prompt, stream=True, **settings):
        tokens.append(int(step.tokens[0]))
        text.add(pieces.add(tokens[-1]))
    text.add(pieces.rest())
    text.end()
    whole = processor.decode([*question.said, *tokens])
    return {"text": whole.strip(), "tokens": tokens}


class _Text:
    """A text as it comes, without the spaces in front; nothing for JSON."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._begun = False

    def add(self, piece: str) -> None:
        shown = piece if self._begun else piece.lstrip()
        if shown and not self._output.as_json:
            self._output.piece(shown)
        self._begun = self._begun or bool(shown)

    def line(self, line: str) -> None:
        if not self._output.as_json:
            self._output.line(line)

    def end(self) -> None:
        if not self._output.as_json:
            self._output.line("")
