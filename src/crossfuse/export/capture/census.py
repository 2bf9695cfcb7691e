"""The census: how many attentions the eager model computes, and where, counted without the passes.

The module runs once, eagerly, under a dispatch mode that sees ATen operators. An attention is

* a call of ``crossfuse::fused_attention`` or of a scaled-dot-product-attention kernel, or
* a product of two activations (``bmm``, ``mm``, ``baddbmm``) whose result goes through something
  non-linear along the way to the left side of a second product with an activation: softmax(Q Kᵀ) V
  and everything that takes softmax's place; or
* the same with a product that is written as a sum over a multiplication (`SummedFactors`), where a
  softmax is between the two.

So an attention that no pass knows still has a row in the ledger, with the operators between its two
products as evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from crossfuse.export.capture.control_flow import both_branches
from crossfuse.export.capture.einsum_order import WeightsFirst
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.flex_attention import flex_as_sdpa
from crossfuse.export.capture.flow import Flow
from crossfuse.export.capture.module_paths import module_stack
from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.capture.operator_watch import OperatorWatch
from crossfuse.export.capture.summed_factors import SummedFactors
from crossfuse.export.capture.traceable import noted_vmaps
from crossfuse.spec.arguments import Arguments
from crossfuse.spec.containers import leaves_of

__all__ = ["Sighting", "census"]

_ADDING = frozenset({"aten::baddbmm", "aten::addmm"})
_PRODUCTS = _ADDING | {"aten::bmm", "aten::mm"}
_VIEWS = frozenset(
    {
        *("aten::view", "aten::_unsafe_view", "aten::expand", "aten::t", "aten::transpose"),
        *("aten::permute", "aten::unsqueeze", "aten::squeeze", "aten::clone", "aten::detach"),
        *("aten::slice", "aten::alias", "aten::reshape", "aten::_to_copy", "aten::contiguous"),
        *("aten::select", "aten::_reshape_alias", "aten::split", "aten::copy"),
    }
)
"""Operators that move elements, or convert them: a weight behind them is still one."""

_LINEAR = _VIEWS | {
    *("aten::mul", "aten::div", "aten::add", "aten::sub", "aten::where", "aten::masked_fill"),
    *("aten::neg", "aten::native_dropout", "aten::bernoulli_", "aten::cat", "aten::stack"),
}
"""Operators behind which a product of products is still linear in both: no attention yet."""


_EXPONENTIALS = frozenset({"exp", "exp2", "exponential"})
_SUMS = frozenset({"sum", "logsumexp", "linalg_vector_norm"})


@dataclass
class Sighting:
    """One attention seen in eager execution.

    Attributes:
        module: path of the innermost module that was running.
        form: ``operator``, ``sdpa``, or ``products`` for one written out by hand.
        between: for ``products``, the operators between the two products.
        returned: the attention's probabilities are an output of the model.
        body: the operator whose function it is in: ``cond``, ``while_loop``, ``scan``.
        used: something else than the product with the values is made of its probabilities, and
            comes to an output.
        reaches: what it computes comes to an output. One that does not is no part of the model's
            function, and of no graph.
    """

    module: str
    form: str
    between: tuple[str, ...] = ()
    returned: bool = False
    body: str = ""
    used: bool = False
    reaches: bool = True

    @property
    def normal(self) -> bool:
        """There is a softmax, written out or not, or an operator that has one, between its
        products."""
        return self.form != "products" or _has_softmax(self.between)

    @property
    def reason(self) -> str:
        """Why an attention of this form could not be captured."""
        if self.body:
            return (
                f"it is in a function that {self.body} runs, a graph of its own in ONNX, where no "
                "target fuses; write the loop or the choice in Python, or compute both branches "
                "and choose with torch.where"
            )
        if self.returned:
            return (
                "its attention probabilities are an output of the model, so no fused operator "
                "can hide them"
            )
        if self.form != "products":
            return "the exported graph does not hold it as one operator"
        steps = ", ".join(dict.fromkeys(self.between)) or "nothing"
        if not self.normal:
            return f"its scores are not normalised by a softmax (between the two products: {steps})"
        return f"it is written out in a form that is not known (between the two products: {steps})"


@dataclass(eq=False)
class _Scores:
    """The life of one product's result until a second product consumes it; of several products
    whose results are joined, the life of all."""

    module: str
    joined: bool = False
    summed: bool = False
    steps: list[str] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)

    @property
    def normalised(self) -> bool:
        if self.summed:
            return self.has_softmax
        return any(f"aten::{step}" not in _LINEAR for step in self.steps)

    @property
    def has_softmax(self) -> bool:
        """One of PyTorch's, or exponentials and their sum."""
        return _has_softmax(self.steps)


@without_fast_paths()
def census(
    module: nn.Module, inputs: Mapping[str, Tensor], arguments: Arguments | None = None
) -> list[Sighting]:
    """Run the module once on ``inputs`` and list its attentions in order of execution.

    Args:
        module: the user's.
        inputs: by flat names.
        arguments: how it is called; where omitted, with the inputs as keywords.
    """
    with torch.no_grad(), kept_state(module), module_stack(module) as stack:
        observer = _Observer(module, stack)
        ordered = WeightsFirst(lambda tensor: tensor in observer.weights)
        with observer, ordered, flex_as_sdpa(), both_branches(), noted_vmaps(observer.mapped):
            result = (arguments or Arguments()).call(module, inputs)
    outputs = [leaf for _, leaf in leaves_of("", result) if isinstance(leaf, Tensor)]
    for sighting, scores in observer.by_hand:
        sighting.returned = any(_same_data(p, out) for p in scores.probabilities for out in outputs)
        sighting.used = any(scores in observer.made_of.get(out, ()) for out in outputs)
    reaching = observer.flow.behind(outputs)
    for i, sighting in enumerate(observer.sightings):
        sighting.reaches = i in reaching
    return [sighting for sighting in observer.sightings if sighting.reaches]


class _Observer(OperatorWatch):
    def __init__(self, root: nn.Module, stack: list[str]) -> None:
        super().__init__()
        self.sightings: list[Sighting] = []
        self.by_hand: list[tuple[Sighting, _Scores]] = []
        self.stack = stack
        self.mapping: list[str] = []
        self.scores = WeakTensorKeyDictionary()
        self.made_of = WeakTensorKeyDictionary()
        self.flow = Flow()
        self.sums = SummedFactors()
        self.mixed = WeakTensorKeyDictionary()
        self.weights = WeakTensorKeyDictionary()
        for tensor in [*root.parameters(), *root.buffers()]:
            self.weights[tensor] = True

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        name, before = func._schema.name, len(self.sightings)
        if name == "crossfuse::fused_attention":
            self.sightings.append(self._sighting("operator"))
        elif "scaled_dot_product" in name and "backward" not in name:
            self.sightings.append(self._sighting("sdpa"))
        elif name in _PRODUCTS:
            self._product(args[-2:] if name in _ADDING else args[:2], result)
        elif (multiplied := self.sums.multiplied(name, args, result)) is not None:
            self._product(multiplied, result, summed=True)
        else:
            self._other(name, tree_leaves((args, kwargs)), tree_leaves(result))
        new = range(before, len(self.sightings))
        self.flow.note(tree_leaves((args, kwargs)), tree_leaves(result), new)
        return result

    def ran(self, operands: Sequence[Any], results: Sequence[Any]) -> None:
        self.flow.note(operands, results, ())

    def mapped(self, begins: bool) -> None:
        """``torch.vmap`` begins or ends: what it runs belongs to the module that called it, as in a
        trace."""
        if begins:
            self.mapping.append(self.stack[-1])
        else:
            self.mapping.pop()

    def _module(self) -> str:
        return (self.mapping or self.stack[-1:])[0]

    def _sighting(self, form: str, between: tuple[str, ...] = ()) -> Sighting:
        return Sighting(self._module(), form, between, body=next(iter(self.bodies), ""))

    def _product(self, operands: Any, result: Tensor, *, summed: bool = False) -> None:
        left, right = operands
        if left in self.weights or right in self.weights:
            before = next((self.scores[t] for t in (left, right) if t in self.scores), None)
            if before is not None:
                self.mixed[result] = _Scores(self._module(), steps=list(before.steps))
            return
        scores = self.scores.get(left)
        if scores is None or not (scores.has_softmax if summed else scores.normalised):
            # The transposed form, Vᵀ softmax(·)ᵀ. Only a softmax counts here: many products have
            # something on their right.
            mirrored = self.scores.get(right)
            scores = mirrored if mirrored is not None and mirrored.has_softmax else None
        if scores is not None and scores.joined and any(s is scores for _, s in self.by_hand):
            return  # with the rest of its values
        if scores is not None:
            # PyTorch's own attention, where it has no kernel for a case, is these products around a
            # softmax of its own.
            form = "sdpa" if "safe_softmax" in scores.steps else "products"
            sighting = self._sighting(form, tuple(scores.steps))
            self.sightings.append(sighting)
            self.by_hand.append((sighting, scores))
            return
        self.scores[result] = _Scores(self._module(), summed=summed)

    def _other(self, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        tensors = [t for t in inputs if isinstance(t, Tensor)]
        made = [t for t in outputs if isinstance(t, Tensor)]
        if name in _VIEWS and tensors and tensors[0] in self.weights:
            for out in made:
                self.weights[out] = True
            return
        scores = next((self.scores[t] for t in tensors if t in self.scores), None)
        short = self._step(name, inputs[0] if inputs else None)
        if scores is None:
            scores = self._mixed(name, short, tensors, made)
            if scores is None:
                return
        elif name not in _VIEWS:
            scores.steps.append(short)
        several = {id(self.scores[t]) for t in tensors if t in self.scores}
        scores.joined |= short == "cat" and len(several) > 1
        made_of = [self.made_of.get(t, ()) for t in tensors]
        made_of += [(self.scores[t],) for t in tensors if t in self.scores]
        behind = tuple(s for each in made_of for s in each if s.has_softmax)
        for out in made:
            self.scores[out] = scores
            self.made_of[out] = behind
            if "softmax" in short:
                scores.probabilities.append(out)

    def _mixed(
        self, name: str, short: str, tensors: list[Tensor], made: list[Tensor]
    ) -> _Scores | None:
        """Scores mixed by weights (talking heads) are still an attention's once they went through a
        softmax, before or after, which may be written out; None as long as they have not."""
        before = [self.mixed[t] for t in tensors if t in self.mixed]
        if not before:
            return None
        steps = list(dict.fromkeys(step for each in before for step in each.steps))
        scores = _Scores(self._module(), steps=steps if name in _VIEWS else [*steps, short])
        if scores.has_softmax:
            return scores
        for out in made:
            self.mixed[out] = scores
        return None

    def _step(self, name: str, first: Any) -> str:
        """What an operator is called; a power of a number is an exponential."""
        short = name.removeprefix("aten::").removeprefix("_").removesuffix("_")
        of_scores = isinstance(first, Tensor) and first in self.scores
        return "exponential" if short == "pow" and not of_scores else short


def _has_softmax(steps: Collection[str]) -> bool:
    """One of PyTorch's, or exponentials and their sum."""
    written = not _EXPONENTIALS.isdisjoint(steps) and not _SUMS.isdisjoint(steps)
    return written or any("softmax" in step for step in steps)


def _same_data(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and (
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        or torch.equal(a.flatten(), b.flatten().to(a.dtype))
    )
