"""Which attentions keep their probabilities beside the fused operator, and how.

``SITE`` or ``SITE:0,3`` asks for those of an attention, or of some of its heads. Where the model
gives them by itself, or something that is made of them, these outputs stay, and the attention fuses
beside them (`separate_probabilities`). Where it doesn't, they become a further output
(`recorded_probabilities`). ``alignment_heads`` asks for the heads that the model's settings of
generation name as those that follow the sound (`alignment_heads`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from crossfuse.errors import Advice, InputError, Said, unknown
from crossfuse.export.alignment_heads import ALIGNMENT, alignment_texts, with_alignment
from crossfuse.export.capture.census import Sighting, census
from crossfuse.export.capture.recorded_probabilities import Wanted, recording
from crossfuse.export.passes.name_sites import site_name
from crossfuse.export.sources.onnx_file.load import OnnxModule
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["KeptProbabilities", "kept_probabilities", "with_probabilities"]

_KEEP = Said("--keep-probabilities SITE", "keep_probabilities=[SITE]")


@dataclass(frozen=True)
class KeptProbabilities:
    """What is kept of a model.

    Attributes:
        spec: the model, whose outputs hold all that was asked for.
        sites: whose probabilities are kept.
        modules: paths of those modules whose softmax's result comes to an output.
    """

    spec: ModelSpec
    sites: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def kept_probabilities(spec: ModelSpec, sightings: Sequence[Sighting]) -> KeptProbabilities:
    """Find what the spec asks for among the attentions that the census saw.

    Raises:
        InputError: a site that doesn't exist, heads that can't be chosen, an ONNX file that does
            not have the probabilities as an output, or settings without alignment heads.
    """
    if not spec.keep_probabilities:
        return KeptProbabilities(spec)
    seen = dict(_sites(sightings))
    added: dict[str, Wanted] = {}
    modules: list[str] = []
    texts = [
        text
        for one in spec.keep_probabilities
        for text in ([one] if one != ALIGNMENT or one in seen else alignment_texts(spec, seen))
    ]
    asked = _asked(texts)
    for site, heads in asked.items():
        if site not in seen:
            raise unknown("there is no attention whose probabilities to keep", site, seen)
        sighting, wanted = seen[site]
        if sighting.returned or sighting.used:
            _refuse_heads(site, heads)
            modules.append(sighting.module)
        else:
            added[site] = replace(wanted, heads=heads)
            # A softmax whose result the trace gives is one that something else is made of.
            modules += [sighting.module] if wanted.written_out else []
    if added and isinstance(spec.module, OnnxModule):
        raise InputError(
            "an ONNX file's attentions can keep only the probabilities that the file has among its "
            "outputs",
            got=", ".join(added),
            do="Give the file an output of them, or export the PyTorch module",
        )
    if added:
        spec = replace(spec, module=recording(spec.module, added, spec.outputs_of))
    spec = with_alignment(spec, {site: one.heads for site, one in added.items()})
    return KeptProbabilities(spec, tuple(asked), tuple(dict.fromkeys(modules)))


def with_probabilities(spec: ModelSpec) -> ModelSpec:
    """The model with all outputs that it is exported with.

    Raises:
        InputError: as `kept_probabilities`.
    """
    if not spec.keep_probabilities or isinstance(spec.module, OnnxModule):
        return spec
    sample = spec.sample(spec.example_sizes, seed=0)
    sightings = census(spec.module, sample, spec.arguments)
    return kept_probabilities(spec, sightings).spec


def _sites(sightings: Sequence[Sighting]) -> Iterator[tuple[str, tuple[Sighting, Wanted]]]:
    per_module, per_form = Counter[str](), Counter[tuple[str, bool]]()
    for sighting in sightings:
        form = (sighting.module, sighting.form == "products")
        per_module[sighting.module] += 1
        wanted = Wanted(sighting.module, per_form[form], form[1])
        per_form[form] += 1
        yield site_name(sighting.module, per_module[sighting.module]), (sighting, wanted)


def _asked(texts: Sequence[str]) -> dict[str, tuple[int, ...] | None]:
    """Heads by site; None for all of them.

    Raises:
        InputError: a text that can't be read, or a site that is asked for in two ways.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    for site, heads in map(_parsed, texts):
        if found.get(site, heads) != heads:
            raise InputError(
                "the probabilities of an attention are asked for twice, of other heads",
                where=site,
                got=", ".join(text for text in texts if text.partition(":")[0] == site),
                do="Name each attention once, with all its heads",
            )
        found[site] = heads
    return found


def _parsed(text: str) -> tuple[str, tuple[int, ...] | None]:
    site, colon, heads = text.partition(":")
    if not colon:
        return site, None
    if not site or re.fullmatch(r"\d+(,\d+)*", heads) is None:
        raise InputError(
            "what to keep the probabilities of can't be read",
            got=repr(text),
            expected="SITE, or SITE:HEAD,HEAD with heads counted from 0",
        )
    return site, tuple(int(head) for head in heads.split(","))


def _refuse_heads(site: str, heads: tuple[int, ...] | None) -> None:
    if heads is not None:
        raise InputError(
            "heads can be chosen only of probabilities that the model doesn't return by itself",
            where=site,
            got=",".join(map(str, heads)),
            do=Advice("Ask for the site alone: {}", _KEEP),
        )
