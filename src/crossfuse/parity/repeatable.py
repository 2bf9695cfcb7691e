"""Whether the eager model is a function of its inputs: nothing else can be exported, and nothing
else compared.

A module left in training mode, or one with noise of its own, gives another result at each run;
taken for rounding, that difference would let anything pass. The module runs twice on the same
inputs, seeded differently:

1. Results differ, and with the first seed again they don't: it is random, unless they differ by
   rounding alone, as where an order alone was drawn. Results that differ although nothing was drawn
   are refused too, but for last bits: sums in threads.
2. Results are equal although something was drawn: a rare event may not have happened (a layer
   dropped once in a hundred runs). So the draws that decide are forced to both their ends; where
   that changes nothing, no draw reaches the results. Draws whose generator is in the same state in
   both runs are seeded inside and belong to the function.
3. Modules in training mode whose tensors change at each run (statistics of a batch) are refused,
   whatever they return.

Random operators are seen by PyTorch's own tag; Python's and NumPy's global generators by their
states. All of them, and what the module keeps, are afterwards what they were before.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from crossfuse.errors import InputError
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.parity.draws import HIGH, LOW, Force
from crossfuse.parity.run_difference import Difference, difference
from crossfuse.parity.seeded_runs import (
    FIRST,
    SECOND,
    Before,
    Run,
    changed_buffers,
    copied_buffers,
    extreme_seeds,
    kept_as_it_was,
    run_seeded,
)
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["require_repeatable"]

_MOST_NAMES = 5


@without_fast_paths()
def require_repeatable(spec: ModelSpec) -> None:
    """Refuse a module whose results depend on more than its inputs.

    A module that can't run at all is left to the steps that say why.

    Raises:
        InputError: naming what draws or changes, and the modules in training mode.
    """
    with kept_as_it_was(spec.module) as before:
        try:
            try:
                first = run_seeded(spec, before, FIRST)
            except NotImplementedError:  # an operator that no dispatch mode can watch
                before.watched = False
                first = run_seeded(spec, before, FIRST)
            middle = copied_buffers(spec.module)
            second = run_seeded(spec, before, SECOND)
        except (Exception, SystemExit):  # noqa: BLE001 -- the user's code; the export's own first run names the error
            return
        if any(tensor.is_meta for tensor in first.outputs.values()):
            return
        changed, drawn = changed_buffers(spec.module, middle), _drawn(first, second)
        trained = [
            name for name in changed if spec.module.get_submodule(name.rpartition(".")[0]).training
        ]
        apart = difference(first.outputs, second.outputs)
        if drawn and apart.rounding:
            apart = _rare_event(spec, before, first, second)
        elif drawn:
            before.restore()
            again = difference(first.outputs, run_seeded(spec, before, FIRST).outputs)
            if again.largest > apart.largest / 8:
                drawn = []
        if drawn and not apart.rounding:
            raise _random(spec, drawn, apart)
        if trained:
            raise _changing(spec, trained)
        if not apart.last_bits:
            raise _unsteady(spec, changed, apart)


def _rare_event(spec: ModelSpec, before: Before, first: Run, second: Run) -> Difference:
    """How far results come apart when draws that decide are forced, of two runs that gave the same
    results."""
    same = zip(first.draws, second.draws, strict=False)
    seeded = frozenset(i for i, (a, b) in enumerate(same) if a.state == b.state)
    results = [first.outputs]
    for end in (LOW, HIGH):
        results.append(run_seeded(spec, before, extreme_seeds(end), Force(end, seeded)).outputs)
    return max(
        (difference(a, b) for a in results for b in results), key=lambda found: found.largest
    )


def _random(spec: ModelSpec, drawn: Sequence[str], apart: Difference) -> InputError:
    return InputError(
        "the model is random: two runs on the same inputs differ",
        where=", ".join(drawn[:_MOST_NAMES]) or spec.name,
        got=apart.sentence(),
        expected="the same outputs",
        do=_advice(
            spec.module, "Take out what draws, or make its numbers an input of the model", drawn
        ),
    )


def _unsteady(spec: ModelSpec, changed: Sequence[str], apart: Difference) -> InputError:
    why = (
        f"it keeps a state that changes at each run ({_listed(changed)})"
        if changed
        else "no random operator was seen"
    )
    return InputError(
        "the model's results depend on more than its inputs: two runs on the same inputs differ, "
        f"and {why}",
        where=spec.name,
        got=apart.sentence(),
        expected="the same outputs",
        do=_advice(spec.module, "Make what changes an input and an output of the model"),
    )


def _changing(spec: ModelSpec, changed: Sequence[str]) -> InputError:
    return InputError(
        "the model is in training mode: running it changes its own tensors, and what it computes "
        "depends on the batch",
        where=_listed(changed),
        do=_advice(spec.module, ""),
    )


def _advice(module: nn.Module, otherwise: str, drawn: Sequence[str] = ()) -> str:
    """To call ``.eval()`` where a module is in training mode, naming those that draw first."""
    training = {name: type(part).__name__ for name, part in module.named_modules() if part.training}
    if not training:
        return otherwise
    first = [name for name in training if any(text.startswith(f"{name}: ") for text in drawn)]
    names = list(dict.fromkeys([*first, *(name for name in training if name)])) or [""]
    listed = _listed([f"{name} ({training[name]})".strip() for name in names])
    return f"Call .eval() on the model first; in training mode: {listed}"


def _listed(names: Sequence[str]) -> str:
    more = f", … and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _drawn(first: Run, second: Run) -> list[str]:
    """What was drawn that is not seeded inside: operators with their modules, and global
    generators."""
    same = len(first.draws) == len(second.draws)
    found = [
        f"{draw.module or 'the model'}: {draw.operator}"
        for i, draw in enumerate(second.draws)
        if not same or draw.state != first.draws[i].state
    ]
    for name, (used, state) in second.others.items():
        if used and first.others[name] != (used, state):
            found.append(name)
    return list(dict.fromkeys(found))
