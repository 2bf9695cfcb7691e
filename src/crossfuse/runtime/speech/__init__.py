"""Speech to text by Whisper's rules: languages and tasks, times, sounds of any length."""

from crossfuse.runtime.speech.segments import Segment, Transcript, Word
from crossfuse.runtime.speech.several import transcribe_several
from crossfuse.runtime.speech.transcribe import transcribe

__all__ = ["Segment", "Transcript", "Word", "transcribe", "transcribe_several"]
