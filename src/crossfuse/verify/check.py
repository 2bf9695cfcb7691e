"""Verify a bundle's target against the reference set that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError
from crossfuse.runtime.engines import PROVIDERS, best_target
from crossfuse.runtime.loading import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.specs import NEXT, names_of
from crossfuse.verify.parity import ParityReport, compare
from crossfuse.verify.reference import ReferenceSet, load_reference

__all__ = ["check_session", "verify_bundle"]


def verify_bundle(
    path: str | Path,
    target: str | None = None,
    *,
    options: SessionOptions | None = None,
    reference: ReferenceSet | None = None,
) -> ParityReport:
    """Parity of a target on this machine.

    Args:
        path: the bundle.
        target: where omitted, the best that runs here.
        options: of the session; ``SessionOptions(provider="CPUExecutionProvider")`` checks ``ort-cuda`` without a GPU.
        reference: a fresh reference set instead of the bundle's own.

    Raises:
        BundleError: the bundle is damaged, or holds no reference set, or can't run here.
    """
    bundle = open_bundle(path)
    name = target or best_target(bundle.targets)
    precision = bundle.target(name).precision
    with load(path, name, options) as session:
        return check_session(session, reference or _reference_of(bundle), precision)


def check_session(session: Session, reference: ReferenceSet, precision: str) -> ParityReport:
    """Parity of an open session; of one that decodes, also of decoding step by step."""
    own = PROVIDERS.get(session.target) == session.provider
    executed_on = session.provider if own else f"{session.provider} (not the target's own)"
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in session.inputs}
    report = compare(
        lambda inputs: session.run(**{name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()}),
        reference,
        target=session.target,
        executed_on=executed_on,
        precision=precision,
    )
    if session.decode is None:
        return report
    steps = _check_steps(session, reference, session.decode.tokens, precision)
    return replace(report, outputs={**report.outputs, **{f"{n}, step by step": o for n, o in steps.outputs.items()}})


def _check_steps(session: Session, reference: ReferenceSet, tokens: str, precision: str) -> ParityReport:
    """Parity of decoding token by token with the eager model over whole sequences, at the first and the last point."""
    context_inputs = names_of(session.stages["context"].inputs)
    kept = [spec.name for spec in session.stages["step"].outputs if not spec.name.startswith(NEXT)]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        context = session.encode(**{name: inputs[name] for name in context_inputs})
        ids = inputs[tokens]
        state = session.start(context, ids.shape[0])
        rows = [{n: a.copy() for n, a in session.step(state, ids[:, i]).items()} for i in range(ids.shape[1])]
        return {name: np.concatenate([row[name] for row in rows], axis=1) for name in kept}

    ends = (reference.points[0], reference.points[-1])
    points = tuple(replace(point, outputs={name: point.outputs[name] for name in kept}) for point in ends)
    return compare(
        run, ReferenceSet(reference.dtype, points), target=session.target, executed_on=session.provider, precision=precision
    )


def _reference_of(bundle: Bundle) -> ReferenceSet:
    name = bundle.manifest.reference
    if name is None:
        raise BundleError(
            "the bundle holds no reference set", where=bundle.path, do="Verify against the model: pass its source"
        )
    return load_reference(bundle.verified([name])[0])
