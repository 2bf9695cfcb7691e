"""What a build leaves: kernels by site over all stages, and what an engine that compiles says."""

from __future__ import annotations

from crossfuse.api.built_files import BuiltFiles, Fusions


def test_an_attention_of_several_stages_is_fused_if_it_is_in_all() -> None:
    fusions = Fusions()
    fusions.note({"a": "MHA", "b": "MHA", "c": "MHA"}, {})
    fusions.note({"a": "MHA", "b": "flash"}, {"c": "no kernel"})
    fusions.note({"c": "MHA"}, {})
    assert fusions.kernels == {"a": "MHA", "b": "MHA, flash"}
    assert fusions.reasons == {"c": "no kernel"}
    built = BuiltFiles({"model": "m"}, frozenset({"m"}), fusions.kernels, fusions.reasons)
    assert built.engine is None
