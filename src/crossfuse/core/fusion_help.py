"""What helps where an attention did not fuse, in the terms of its source.

A reason is one sentence of a pass, the census or a target. What to do about it depends on what the
user can change: the code of a module, an ONNX file, or nothing but options, as of a model that a
library defines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crossfuse.errors import Advice, Said

__all__ = ["advice"]

_FILE, _LIBRARY = "onnx", "huggingface"
_UNFUSED = Said("--allow-unfused", "allow_unfused=True")
_KEEP = Said("--keep-probabilities SITE", "keep_probabilities=[SITE]")
_DROP = Said("--drop-output NAME", "drop_outputs=[NAME]")


@dataclass(frozen=True)
class _Help:
    """For reasons that a pattern finds: what helps whoever has the code, and whoever has a file.

    ``anyone`` is said to users of a library's models as well; the others are not theirs to do.
    """

    pattern: str
    code: Advice | None = None
    file: Advice | None = None
    anyone: Advice | None = None


_HELPS = (
    _Help(
        r"probabilities are an output|probabilities are also used",
        anyone=Advice(
            "Probabilities that are used otherwise can be computed beside the fused operator ({}); "
            "an output that only they make can be left out ({})",
            _KEEP,
            _DROP,
        ),
    ),
    _Help(
        r"probabilities go through",
        code=Advice(
            "Targets weigh values with probabilities as they are. What is linear in them can be "
            "done to the results: (p - c * q) @ v is p @ v - c * (q @ v)"
        ),
        file=Advice("Targets weigh values with probabilities as they are"),
    ),
    _Help(
        r"scores are also used by",
        code=Advice("What else is made of the scores can be made of a second product"),
    ),
    _Help(
        r"in a form that is not known|does not hold it as one operator",
        code=Advice(
            "Call F.scaled_dot_product_attention or crossfuse's fused_attention in its place"
        ),
        file=Advice(
            "Give the file as it was before an optimizer, or one in which the attention is an "
            "Attention node (opset 23), or the PyTorch module"
        ),
    ),
    _Help(
        r"limited by|caps the scores|go through Tanh|between the two products: .*tanh",
        code=Advice("The operator that every target is lowered from has no cap on scores"),
        file=Advice("The operator that every target is lowered from has no cap on scores"),
    ),
    _Help(
        r"not normalised by a softmax",
        code=Advice("Targets have fused operators for softmax attention alone"),
        file=Advice("Targets have fused operators for softmax attention alone"),
    ),
    _Help(
        r"which doesn't hide them|mix scores and fills",
        code=Advice("Fill with -inf, or with the lowest number of the dtype, what is to be hidden"),
        file=Advice("Let the file fill with −∞, or with the lowest number, what is to be hidden"),
    ),
    _Help(
        r"joined with|joined to them|its scores are padded|are cut off",
        code=Advice(
            "Sinks fuse where a known number of logits is joined to the scores on one side, and "
            "their columns are cut off behind the softmax"
        ),
        file=Advice(
            "Sinks fuse where a known number of logits is joined to the scores on one side, and "
            "their columns are cut off behind the softmax"
        ),
    ),
    _Help(
        r"inside the body of",
        code=Advice("Move it out of the branch or loop"),
        file=Advice(
            "Give a file whose branch is taken or whose loop is unrolled, such as an exporter "
            "writes for one fixed case"
        ),
    ),
    _Help(
        r"quantize",
        file=Advice("Leave the attention's own products out of quantisation"),
    ),
    _Help(
        r"unknown|not known|can't be followed",
        file=Advice("Give the file with its shapes inferred (onnx.shape_inference)"),
    ),
)


def advice(reasons: Iterable[str], source: str) -> Advice:
    """What to do about reasons, each piece of advice once, and how to go on without.

    Args:
        reasons: why attentions did not fuse.
        source: the manifest's word for the source's kind: ``onnx``, ``huggingface``, or another,
            whose code is the user's.
    """
    found = [each for reason in reasons for each in _HELPS if re.search(each.pattern, reason)]
    said = [_of_source(each, source) for each in dict.fromkeys(found)]
    pieces = [piece for piece in said if piece is not None]
    if not pieces and source not in (_FILE, _LIBRARY):
        return Advice("Change these attentions, or pass {} to export them as they are", _UNFUSED)
    last = (
        "Or pass {} to export them as they are" if pieces else "Pass {} to export them as they are"
    )
    return Advice(". ".join(["{}"] * len(pieces) + [last]), *pieces, _UNFUSED)


def _of_source(found: _Help, source: str) -> Advice | None:
    own = {_FILE: found.file, _LIBRARY: None}.get(source, found.code)
    return found.anyone or own
