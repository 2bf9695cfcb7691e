"""What a manifest says in open mappings, field by field: where the model came from, and how a
target compared with it.

The mappings stay mappings, because what wrote them knows more than a reader has to; these classes
are what a reader may rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from crossfuse.core.json_form import AtLeast, Matches, OneOf
from crossfuse.core.tensors import SIZES

__all__ = ["OutputRecord", "ParityRecord", "SourceRecord"]


_Axis = Annotated[str, Matches("[0-9]{1,3}", "an axis, counted from 0")]


@dataclass(frozen=True)
class SourceRecord:
    """What was exported.

    Only a zoo model's name, size and seed are ever used to load it again.

    Attributes:
        kind: zoo, huggingface, onnx, factory or spec.
        name: the source as it was given.
        checkpoint: of a zoo model.
        task: of a checkpoint with several heads.
        size: of a zoo model.
        seed: of a zoo model's random weights.
        context: inputs that the export was told to be the context, in place of the source's own.
        dynamic: axes that the export was told to be dynamic: input, axis, NAME[:MIN[:MAX]].
        decode: the input of ids that the export was told to decode by.
        drop_outputs: outputs that the export was told to leave out; * for any text.
        keep_probabilities: attentions whose probabilities the export was told to keep.
        prefix: how many tokens the export was told to make inputs of their own, or "placeholders".
        missing_weights: that the checkpoint lacks, or has in another shape: they are random.
        left_over_weights: tensors of the checkpoint that the model has no place for.
        constants: arguments of the model that are no tensors, and part of what was exported.
        renamed_outputs: outputs that the model calls as one of its inputs → their names here.
        inputs_from: where the example inputs of a checkpoint came from, in words.
        fixed_sizes: dimensions that could not be varied → why.
        unread_inputs: inputs of features that no result depends on.
    """

    kind: str | None = None
    name: str | None = None
    checkpoint: str | None = None
    task: str | None = None
    size: Annotated[str | None, OneOf(SIZES)] = None
    seed: Annotated[int | None, AtLeast(0, 2**63)] = None
    context: tuple[str, ...] | None = None
    dynamic: Mapping[str, Mapping[_Axis, str]] | None = None
    decode: str | None = None
    drop_outputs: tuple[str, ...] | None = None
    keep_probabilities: tuple[str, ...] | None = None
    prefix: Annotated[str | None, Matches("[0-9]{1,9}|placeholders", "a number of tokens")] = None
    missing_weights: tuple[str, ...] | None = None
    left_over_weights: tuple[str, ...] | None = None
    constants: Mapping[str, Any] | None = None
    renamed_outputs: Mapping[str, str] | None = None
    inputs_from: str | None = None
    fixed_sizes: Mapping[str, str] | None = None
    unread_inputs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OutputRecord:
    """One output against the reference.

    Attributes:
        passed: within its tolerance, and finite.
        max_abs: largest absolute error at the worst point, or null where it is not finite.
        max_rel: largest error relative to the reference's largest magnitude, or null.
        cosine: smallest cosine similarity with the reference, or null.
        tolerance: what ``max_abs`` may be.
        tolerance_from: where that comes from.
        worst_at: the sizes there.
        finite: no NaN or infinity anywhere.
    """

    passed: bool
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    tolerance: float
    tolerance_from: str
    worst_at: Mapping[str, int]
    finite: bool


@dataclass(frozen=True)
class ParityRecord:
    """A target against the reference, when it was built.

    Attributes:
        passed: every output did.
        target: its name.
        executed_on: the provider that computed it.
        precision: of the target.
        reference_dtype: of the reference.
        points: sizes of the named dimensions at each point.
        outputs: by name.
        computed_by: what computed the reference.
        reference_reason: why the reference is not plain float64 of a float32 model.
        kinds: of the points: the user's own example, made, or made to reach tails.
        notes: what was not tried or judged, and why.
        fault: where a bisection found the first difference.
    """

    passed: bool
    target: str
    executed_on: str
    precision: str
    reference_dtype: str
    points: tuple[Mapping[str, int], ...]
    outputs: Mapping[str, OutputRecord]
    computed_by: str | None = None
    reference_reason: str | None = None
    kinds: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    fault: Mapping[str, Any] | None = None
