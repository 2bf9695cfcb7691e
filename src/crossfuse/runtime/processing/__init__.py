"""What stands before and behind a bundle: texts, images and sounds to inputs, ids to text."""

from crossfuse.runtime.processing.processor import Processor, load_processor
from crossfuse.runtime.processing.words import Pieces, Words

__all__ = ["Pieces", "Processor", "Words", "load_processor"]
