"""Which linear layers have to stay in fp32 for an int8 build to pass: as few as a bounded search
finds, those first to whose results int8 does most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crossfuse.errors import Advice, ParityError, Said
from crossfuse.targets.precision.fewest import AddedError, Progress, Trials, fewest
from crossfuse.targets.quantize.sensitivity import Sensitivity

__all__ = ["most_sensitive", "search_layers"]

_MOST_NAMED = 4


def search_layers(
    measure: Callable[[], Sequence[Sensitivity]],
    passes: Callable[[Mapping[str, str]], bool],
    progress: Progress = lambda _: None,
) -> list[Sensitivity]:
    """The layers that stay.

    Args:
        measure: gives all layers, the most sensitive first; called where plain int8 fails.
        passes: whether the build passes with these nodes (→ why) in fp32.
        progress: told what is tried.

    Raises:
        ParityError: it doesn't pass with all of them in fp32.
    """
    trials = Trials(passes, progress, "mixed-int8", "linear layers stay in fp32")
    if trials.holds({}):
        return []
    progress("mixed-int8: what int8 does to each layer")
    ranked = list(measure())
    enough = fewest(trials, {}, [AddedError(one.layer.key, one.worst) for one in ranked])
    if enough is None:
        raise ParityError(
            "parity doesn't hold in int8, even with all linear layers in fp32",
            got=f"{len(ranked)} layers kept",
            do=Advice(
                "Build in fp32, and see with {} whether that passes",
                Said("`crossfuse verify`", "crossfuse.verify"),
            ),
        )
    return ranked[:enough]


def most_sensitive(ranked: Sequence[Sensitivity]) -> str:
    """The layers to which int8 does most, with the relative error of each, for people."""
    return ", ".join(f"{one.layer.site} ({one.worst:.2g})" for one in ranked[:_MOST_NAMED])
