"""Speech to text by Whisper's rules: languages and tasks, times, sounds of any length."""

from crossfuse.runtime.speech.segments import Segment
from crossfuse.runtime.speech.transcribe import Transcript, transcribe

__all__ = ["Segment", "Transcript", "transcribe"]
