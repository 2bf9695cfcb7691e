"""Whisper, exported once, writes down speech of any length, in any language that it knows.

python examples/whisper.py CHECKPOINT SOUND.wav [--language en] [--timestamps] [--output FOLDER]

CHECKPOINT is a folder with a Whisper model of transformers (safetensors). Where the bundle is there
already, neither PyTorch nor transformers is imported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import crossfuse
from crossfuse import runtime


def transcribe(checkpoint: str, sound: Path, bundle: Path, **how: object) -> runtime.Transcript:
    """Export to ``bundle`` unless that was done before, and transcribe."""
    if not bundle.exists():
        crossfuse.export(f"hf:{checkpoint}", bundle, drop_outputs=["encoder_last_hidden_state"])
    with runtime.load(bundle) as session:
        return runtime.transcribe(session, runtime.load_processor(bundle), sound, **how)


def main() -> None:
    """Export, transcribe, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("sound", type=Path)
    parser.add_argument("--language")
    parser.add_argument("--timestamps", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("whisper-bundle"))
    given = parser.parse_args()
    how = {"language": given.language, "timestamps": given.timestamps}
    found = transcribe(given.checkpoint, given.sound, given.output, **how)
    for segment in found.segments:
        times = f"[{segment.start:.2f} – {segment.end:.2f}] " if given.timestamps else ""
        print(times + segment.text.strip())


if __name__ == "__main__":
    main()
